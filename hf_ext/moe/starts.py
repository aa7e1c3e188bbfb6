r"""
Where a fit starts, and where an expert that handles nobody starts again.

$W = B = 0$ is a stationary point at which every responsibility is $1/k$, so the experts start around the fit of a
single expert, and the gate near 0. Labels that are numbers then tell the experts apart at once. Classes do it slowly,
and on features that lie in clusters most of these starts end in poor optima: every other start of a classifier
therefore has the gate of a few steps of k-means.

Reference: Dasgupta and Schulman 2007, *A Probabilistic Analysis of EM for Mixtures of Separated, Spherical Gaussians*
(many starts, few survivors); Lloyd 1982, *Least Squares Quantization in PCM* (k-means).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ext.moe.lbfgs import Curvature
from hf_ext.moe.m_steps import m_step_lbfgs, m_step_linear
from hf_ext.moe.objective import Look, Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import MixtureRows, Reduce

_GATE_SPREAD = 0.1
_EXPERT_SPREAD = 0.5
_CLUSTER_LOGIT = 3.0  # root mean square: the gate of clusters is fairly sure, and can still be changed
_CLUSTER_STEPS = 4  # of k-means: a start, not a clustering
_SINGLE_STEPS = 10  # of L-BFGS: a start, not a fit
_LEAST_SHARE = 0.005  # of the rows: an expert with fewer is dead


def single_fit(objective: Objective, ridge: float, *, steps: int = _SINGLE_STEPS) -> tuple[Tensor, float]:
    """
    Fit of one expert, without a gate.

    Args:
        objective ([`Objective`]):
            Of the mixture: its rows and coordinates serve.
        ridge (`float`):
            Penalty.
        steps (`int`, *optional*):
            Most steps of L-BFGS; linear experts have a closed form.

    Returns:
        `tuple` of the vectors `(m, d)` and the passes of the mixture that it cost.
    """
    shape = MixtureShape(1, objective.shape.expert_type, objective.shape.num_outputs)
    single = objective.of_shape(shape)
    point = single.rows.X.new_zeros(1, single.size)
    penalty = point.new_tensor([ridge])
    targets = Targets(point.new_ones(len(single.rows.X), 1, 1))
    if shape.expert_type == "linear":
        descent = m_step_linear(single, m_step_linear(single, point, penalty, targets).point, penalty, targets)
    else:
        descent = m_step_lbfgs(
            single, point, penalty, targets, None, Curvature.empty(1, single.size, point),
            steps=steps, tolerance=torch.full_like(penalty, 1e-6),
        )  # fmt: skip
    share = shape.columns / objective.shape.columns
    return single.free_vectors(descent.point)[0][0, 1:], float(descent.passes[0]) * share


def starting_points(
    objective: Objective, restarts: int, ridge: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """
    Coordinates of some random starts around the single fit.

    Args:
        objective ([`Objective`]):
            Of the mixture.
        restarts (`int`):
            How many. The first of them are the same whatever their number.
        ridge (`float`):
            Penalty of the single fit.
        generator (`torch.Generator`):
            On the CPU, in the same state on every process.

    Returns:
        `tuple` of coordinates `(restarts, P)` and the passes of the single fit and the clusters.
    """
    shape = objective.shape
    single, passes = single_fit(objective, ridge)
    width = objective.width
    experts = shape.expert_rows // shape.num_outputs
    # Opposite experts average to a single fit near 0, whose scale would leave them at the stationary point.
    spread = _EXPERT_SPREAD * max(float(single.std(correction=0)), width**-0.5) if shape.num_experts > 1 else 0.0
    has_clusters = shape.num_experts > 1 and shape.expert_type != "linear" and not shape.symmetric
    points = []
    for restart in range(restarts):
        draw = torch.randn(shape.gate_rows + shape.expert_rows, width, generator=generator, dtype=torch.float64)
        draw = draw.to(single)
        gate = _GATE_SPREAD * draw[: shape.gate_rows] / width**0.5
        if has_clusters and restart % 2 == 0:
            centres = draw[: shape.gate_rows, :-1]
            if objective.unwhitening is not None:  # as the rows vary: k-means is then nearly there
                centres = centres @ objective.unwhitening[:-1, :-1]
            gate, cost = cluster_gate(objective, centres)
            passes += cost
        vectors = single.repeat(experts, 1) + spread * draw[shape.gate_rows :]
        free = torch.cat([gate * (shape.num_experts > 1), vectors])
        points.append(objective.pack(free[None], free.new_zeros(1, shape.num_variances)))
    return torch.cat(points), passes


def cluster_gate(objective: Objective, centres: Tensor) -> tuple[Tensor, float]:
    r"""
    Gate that tells clusters of the rows apart, after a few steps of k-means.

    The posterior of clusters of equal weight and spread $\sigma$ is a gate with the logits
    $(x \cdot c_i - |c_i|^2 / 2) / \sigma^2$; here $\sigma$ is such that their root mean square is 3.

    Args:
        objective ([`Objective`]):
            Of the mixture.
        centres (`torch.Tensor` of shape `(k, d - 1)`):
            To start from.

    Returns:
        `tuple` of the gate's vectors `(k, d)` and the passes that it cost.
    """
    rows = objective.rows
    columns = len(centres)

    def logits_of(gate: Tensor, block: slice) -> Tensor:
        return rows.X[block] @ gate.T

    for step in range(_CLUSTER_STEPS + 1):
        gate = torch.cat([centres, -0.5 * centres.square().sum(1, keepdim=True)], dim=1)
        gate -= gate.mean(0)
        if step == _CLUSTER_STEPS:
            break
        sums = torch.zeros_like(gate)
        for block in rows.blocks(columns):
            nearest = logits_of(gate, block).argmax(1)
            sums.index_add_(0, nearest, rows.X[block] * rows.weights[block, None])
        sums = objective.reduce(sums)
        weights = sums[:, -1:]  # the last column is one of ones
        centres = torch.where(weights > 0, sums[:, :-1] / weights, centres)
    square = gate.new_zeros(1)
    for block in rows.blocks(columns):
        square += rows.weights[block] @ logits_of(gate, block).square().mean(1)
    scale = objective.reduce(square).sqrt().clamp(min=1e-9)
    return _CLUSTER_LOGIT * gate / scale, (_CLUSTER_STEPS + 0.5) * columns / objective.shape.columns


def least_rows(objective: Objective, ridge: float) -> float:
    r"""
    Weight of rows below which an expert is dead: the larger of its effective dimension and 0.5 % of the rows.

    The effective dimension is $1 + \sum_j \lambda_j / (\lambda_j + \lambda)$ over the variances $\lambda_j$ of the
    features. No more than a quarter of an equal share, so that a small data set has living experts too.
    """
    total = objective.rows.total
    dimension = objective.effective_dimension(ridge)
    return min(max(dimension, _LEAST_SHARE * total), total / (4 * objective.shape.num_experts))


def seed_responsibilities(
    look: Look, rows: MixtureRows, position: int, expert: int, share: float, reduce: Reduce
) -> None:
    """
    Hand an expert the rows that the mixture explains worst, in place.

    Args:
        look ([`Look`]):
            Of the E-step.
        rows ([`MixtureRows`]):
            Of this process.
        position (`int`), expert (`int`):
            Which restart of the look, and which expert.
        share (`float`):
            Share of the rows to hand over.
        reduce (`Callable`):
            Sum over processes.
    """
    log_likelihood = look.row_log_likelihood[:, position]
    low = torch.full_like(log_likelihood[:1], -1e6)
    high = -low
    for _ in range(64):  # the quantile by bisection: a sum is all that processes share
        middle = (low + high) / 2
        enough = reduce((rows.weights * (log_likelihood <= middle)).sum().reshape(1)) >= share
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle)
    worst = log_likelihood <= high
    look.responsibilities[worst, position] = 0
    look.responsibilities[worst, position, expert] = 1


def restart_expert(point: Tensor, shape: MixtureShape, width: int, expert: int) -> None:
    """Set an expert's coordinates `(P,)`, and its part of the gate, to the mean of the others', in place."""
    size = (shape.gate_rows + shape.expert_rows) * width
    free = point[:size].view(-1, width)
    others = [i for i in range(shape.num_experts) if i != expert]
    gate = free[: shape.num_experts]
    gate[expert] = gate[others].mean(0)
    experts = free[shape.num_experts :].view(shape.num_experts, -1, width)
    experts[expert] = experts[others].mean(0)
