r"""
M-steps: raise the expected log-likelihood of gate and experts, given who handled each row.

The problem falls apart into a gate, a multinomial logistic regression on soft labels, and experts, each a regression
on weighted rows. Linear experts have a closed form; gate, logistic and softmax experts take a few steps of L-BFGS. Any
decrease of $-Q$ keeps the likelihood monotone (generalised EM), so few steps are enough, and the curvature pairs of
one M-step serve the next: the problem changes little between them. The first gradient comes with the E-step.

Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3; Dempster, Laird and Rubin 1977 (generalised EM).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ext.moe.lbfgs import Curvature, line_search
from hf_ext.moe.objective import Look, Objective, Targets

_LEAST_SHARE = 1e-3  # of the rows, in a metric


class Descent(NamedTuple):
    """
    Where an M-step ended.

    Args:
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates.
        passes (`torch.Tensor` of shape `(A,)`):
            What it cost.
    """

    point: Tensor
    passes: Tensor


def em_targets(objective: Objective, point: Tensor, look: Look, eta: Tensor) -> Targets:
    r"""
    Expected sufficient statistics of a step of length $\eta$: $\eta$ of the rows', the rest of the model's own.

    $\tilde r = (1 - \eta) g + \eta r$, and likewise for the expected labels. $\eta = 1$ is EM; below it a partial step
    of mirror descent; above it an over-relaxed one, whose weights may be negative.

    Args:
        objective ([`Objective`]):
            Of the rows.
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates of the E-step.
        look ([`Look`]):
            Of the E-step there.
        eta (`torch.Tensor` of shape `(A,)`):
            In (0, 2).

    Returns:
        [`Targets`]

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3: the step of mirror descent in mean parameters.
    """
    if bool((eta == 1).all()):
        return Targets(look.responsibilities)
    shape = objective.shape
    vectors, log_variance = objective.vectors(point)
    share = eta[None, :, None]
    weights = torch.empty_like(look.responsibilities)
    labels = look.responsibilities.new_empty(*weights.shape, shape.num_outputs)
    squares = torch.zeros_like(look.shares)
    for block in objective.rows.blocks(vectors[..., 0].numel()):
        logits = (objective.rows.X[block] @ vectors.flatten(0, 1).T).unflatten(1, vectors.shape[:2])
        gate = logits[..., : shape.num_experts].softmax(-1)
        outputs = logits[..., shape.num_experts :].unflatten(-1, (shape.num_experts, -1))
        model = (1 - share) * gate
        rows = share * look.responsibilities[block]
        weights[block] = model + rows
        y = objective.rows.y[block]
        if shape.expert_type == "linear":
            expected = outputs
            observed = y[:, None, None, :]
            lengths = model * (outputs.square().sum(-1) + shape.num_outputs * log_variance.exp())
            lengths += rows * y.square().sum(-1)[:, None, None]
            squares += (lengths * objective.rows.weights[block, None, None]).sum(0)
        elif shape.expert_type == "logistic":
            expected = outputs.sigmoid()
            observed = y.to(outputs)[:, None, None, None]
        else:
            expected = outputs.softmax(-1)
            observed = torch.nn.functional.one_hot(y, shape.num_outputs).to(outputs)[:, None, None, :]
        labels[block] = model.unsqueeze(-1) * expected + rows.unsqueeze(-1) * observed
    return Targets(weights, labels, objective.reduce(squares) if shape.expert_type == "linear" else None)


def complete_information(objective: Objective, point: Tensor, shares: Tensor) -> Tensor:
    r"""
    Curvature of the expected likelihood in each coordinate, as if features were white and said nothing of the expert.

    With $\pi_i$ the share of the rows: $\pi_i (1 - \pi_i)$ in an expert's part of the gate, $\pi_i / s_i^2$ in the
    coefficients of a linear expert and $m \pi_i / 2$ in its log-variance. This is the metric of EM's mirror descent;
    L-BFGS, started in it, makes EM-like steps until its own pairs know better: half the passes on linear experts.
    Classifiers keep a metric of ones, as theirs gained nothing.

    Args:
        objective ([`Objective`]):
            Of the rows.
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates.
        shares (`torch.Tensor` of shape `(A, k)`):
            $\pi$, means of the responsibilities there.

    Returns:
        `torch.Tensor` of shape `(A, P)`.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3 (the metric); Lange 1995, *A Quasi-Newton
    Acceleration of the EM Algorithm* (as the start of a quasi-Newton method).
    """
    shape = objective.shape
    if shape.expert_type != "linear":
        return torch.ones_like(point)
    pi = shares.clamp(min=_LEAST_SHARE)
    precision = (-objective.vectors(point)[1]).exp()
    gate = (pi * (1 - pi)).clamp(min=_LEAST_SHARE)[:, : shape.gate_rows]
    experts = pi * precision
    variances = 0.5 * shape.num_outputs * pi
    if shape.symmetric:
        experts = experts.sum(1, keepdim=True)
    if shape.num_variances == 1:
        variances = variances.sum(1, keepdim=True)
    blocks = torch.cat([gate, experts.repeat_interleave(shape.num_outputs, dim=1)], dim=1)
    return torch.cat([blocks.repeat_interleave(objective.width, dim=1), variances], dim=1)


def m_step_lbfgs(
    objective: Objective,
    point: Tensor,
    ridge: Tensor,
    targets: Targets,
    start: tuple[Tensor, Tensor] | None,
    curvature: Curvature,
    *,
    steps: int,
    tolerance: Tensor,
    gate_only: bool = False,
) -> Descent:
    """
    Raise the expected log-likelihood by steps of L-BFGS: of gate and experts, or of the gate alone.

    Args:
        objective ([`Objective`]):
            Of the rows.
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates to start from; of the gate alone `(A, gate_rows * d)`.
        ridge (`torch.Tensor` of shape `(A,)`):
            Penalty of each restart.
        targets ([`Targets`]):
            What to fit.
        start (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Value `(A,)` and gradient `(A, P)` at `point`: the E-step's. Without it, one more evaluation is made.
        curvature ([`Curvature`]):
            Pairs of earlier M-steps of the same A restarts; it takes up those of this one.
        steps (`int`):
            At most so many.
        tolerance (`torch.Tensor` of shape `(A,)`):
            A restart whose gradient has no larger entry is left where it is.
        gate_only (`bool`, *optional*, defaults to `False`):
            Whether `point` is the gate.

    Returns:
        [`Descent`]: never higher in the objective than the start.
    """
    compute = objective.gate_expected if gate_only else objective.expected
    cost = objective.gate_passes if gate_only else 1.0
    passes = torch.zeros_like(ridge)

    def evaluate(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        evaluation = compute(points, ridge[index], targets.take(index))
        return evaluation.value, evaluation.gradient

    everyone = torch.arange(len(point), device=point.device)
    if start is None:
        start = evaluate(point, everyone)
        passes += cost
    value, gradient = (values.clone() for values in start)
    point = point.clone()
    for _ in range(steps):
        active = (gradient.abs().amax(1) > tolerance).nonzero()[:, 0]
        if not len(active):
            break
        direction = curvature.direction(gradient[active], active, torch.ones_like(gradient[active]))
        step = line_search(
            lambda points, index, active=active: evaluate(points, active[index]),  # type: ignore[misc]
            point[active],
            value[active],
            gradient[active],
            direction,
        )
        curvature.add(active, step.point - point[active], step.gradient - gradient[active])
        point[active] = step.point
        value[active] = step.value
        gradient[active] = step.gradient
        passes[active] += cost * step.evaluations
        if not bool(step.moved.any()):
            break
    return Descent(point, passes)


def m_step_linear(objective: Objective, point: Tensor, ridge: Tensor, targets: Targets) -> Descent:
    r"""
    The M-step of linear experts in closed form; the gate stays.

    Coefficients first, with the variances as they are, then the variances: each is the exact maximum, so the expected
    likelihood cannot fall.

    $$(X^\top R_i X + n \lambda s_i^2 I)\, b_i = X^\top R_i y, \qquad
      s_i^2 = \max\Big(\text{floor}, \frac{\sum_n r_{ni} \lVert y_n - b_i x_n \rVert^2}{m \sum_n r_{ni}}\Big)$$

    A symmetric pair has one system, with the sum of both Gram matrices and the difference of the right sides.

    Args:
        objective ([`Objective`]):
            Of the rows, with linear experts.
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates; those of the experts are replaced.
        ridge (`torch.Tensor` of shape `(A,)`):
            Penalty of each restart.
        targets ([`Targets`]):
            What to fit.

    Returns:
        [`Descent`]

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3; Meng and Rubin 1993 (one conditional maximum after
    the other).
    """
    point = solve_experts(objective, point, ridge, objective.normal_equations(targets))
    passes = objective.gram_passes(targets.weights.shape[2])
    return Descent(point, torch.full_like(ridge, passes))


def solve_experts(
    objective: Objective, point: Tensor, ridge: Tensor, equations: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Tensor:
    """
    Coordinates with the linear experts and variances that solve some normal equations.

    Args:
        objective ([`Objective`]):
            Its coordinates and penalty.
        point (`torch.Tensor` of shape `(A, P)`):
            Coordinates; the gate stays, and the variances weigh the penalty.
        ridge (`torch.Tensor` of shape `(A,)`):
            Penalty of each restart.
        equations (`tuple` of four):
            What [`Objective.normal_equations`] gives, or a running mean of it.

    Returns:
        `torch.Tensor` of shape `(A, P)`.
    """
    shape = objective.shape
    free = objective.free_vectors(point)[0]
    variance = objective.vectors(point)[1].exp()
    gram, cross, squares, counts = equations
    penalty = (ridge[:, None] * variance)[..., None, None] * torch.diag(objective.penalised)
    if shape.symmetric:
        experts = _solve((gram + penalty).sum(1), cross[:, 0] - cross[:, 1])
        vectors = torch.stack([experts, -experts], dim=1)
    else:
        vectors = _solve(gram + penalty, cross)
        experts = vectors.flatten(1, 2)
    errors = squares - 2 * (vectors * cross).sum((2, 3)) + ((vectors @ gram) * vectors).sum((2, 3))
    if shape.num_variances == 1:
        errors = errors.sum(1, keepdim=True)
        counts = counts.sum(1, keepdim=True)
    variance = errors / (shape.num_outputs * counts.clamp(min=1e-300))
    log_variance = variance.clamp(min=0).log().clamp(min=objective.least_log_variance)
    return objective.pack(torch.cat([free[:, : shape.gate_rows], experts], dim=1), log_variance)


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Solutions `(..., m, d)` of symmetric systems `(..., d, d)`; the least one where a system has many."""
    factor, failures = torch.linalg.cholesky_ex(gram)
    if not bool(failures.any()):
        return torch.cholesky_solve(cross.mT, factor).mT
    return (torch.linalg.pinv(gram, hermitian=True) @ cross.mT).mT
