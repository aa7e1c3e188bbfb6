r"""
What a fit looks like: how sharply gate and posterior choose, how far the experts lie apart, and how fast EM will be.

EM's linear rate is the largest eigenvalue of the missing information matrix $M = I_c^{-1} I_m$ at the optimum: the
information about the parameters that is lost by not seeing who handled a row, in units of that of the complete data.
$I_c$ is the Hessian of $-Q(\cdot \mid t)$ at $t$, $I_c - I_m$ that of the objective.

Reference: Dempster, Laird and Rubin 1977, section 3; Fruytier et al. 2025 (arXiv 2411.06056), the conditions for
linear convergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_ext.moe.em import MixtureFit
from hf_ext.moe.objective import Objective

_CRAWL = 0.98  # a rate with which an order of magnitude takes more than a hundred iterations
_CG_STEPS = 60
_ROUNDING = 1e-8
_CG_TOLERANCE = 1e-8  # so that two processes, whose sums round otherwise, agree on the rate to 1e-9


@dataclass(frozen=True)
class Diagnostics:
    """
    The best restart of a fit, at its present parameters.

    Args:
        n_i (`list[float]`):
            Rows that each expert handles, weighted.
        gate_entropy, responsibility_entropy (`float`):
            Mean entropy in nats a row of the gate and of the posterior; at most $\\log k$. A gate near 0 with one
            expert in use is a single model.
        snr (`list[float]`):
            Of each expert, the standard deviation of its outputs over the rows, over $s_i$ of linear experts.
        separation (`float`):
            Mean divergence KL(p_i, p_j) of the predictions of two different experts, in nats a row.
        mim_lambda_max (`float`):
            EM's rate: what remains of the distance to the optimum after an iteration.
        predicted_iterations (`float`):
            Iterations of EM to a millionth of that distance.
        advice (`str`):
            What follows, or nothing.
    """

    n_i: list[float]
    gate_entropy: float
    responsibility_entropy: float
    snr: list[float]
    separation: float
    mim_lambda_max: float
    predicted_iterations: float
    advice: str


@torch.no_grad()
def diagnose(fit: MixtureFit, *, max_rows: int = 2048) -> Diagnostics:
    """
    Look at a fit. Changes nothing in it.

    Args:
        fit ([`MixtureFit`]):
            At any iteration.
        max_rows (`int`, *optional*):
            Rows of each process, evenly spaced, that are looked at: the rate takes some hundred sweeps over them.

    Returns:
        [`Diagnostics`]
    """
    objective = _some_rows(fit.objective, max_rows)
    state = fit.state
    best = int(state.objective.nan_to_num(math.inf).argmin())
    point = state.point[best]
    ridge = float(state.ridge[best])
    gate_logits, outputs, log_variance = _logits(objective, point, slice(None))
    weights = objective.rows.weights
    look = objective.e_step(point[None], state.ridge[best : best + 1])
    log_gate = gate_logits.log_softmax(-1)
    gate_entropy = -(weights @ (log_gate.exp() * log_gate).sum(-1)).reshape(1)
    responsibilities = look.responsibilities[:, 0]
    responsibility_entropy = -(weights @ torch.xlogy(responsibilities, responsibilities).sum(-1)).reshape(1)
    separation = (weights @ _divergence(outputs, log_variance, fit.shape.expert_type)).reshape(1)
    sums = objective.reduce(torch.cat([gate_entropy, responsibility_entropy, separation])).tolist()
    rate = mim_lambda_max(objective, point, ridge)
    iterations = predicted_iterations(rate)
    advice = ""
    if rate > _CRAWL:
        advice = f"EM will crawl (its rate is {rate:.4f}, {iterations:.0f} iterations): switch to em+lbfgs."
    return Diagnostics(
        n_i=(look.shares[0] * fit.objective.rows.total).tolist(),
        gate_entropy=sums[0],
        responsibility_entropy=sums[1],
        snr=_signal_to_noise(objective, outputs, log_variance),
        separation=sums[2],
        mim_lambda_max=rate,
        predicted_iterations=iterations,
        advice=advice,
    )


def predicted_iterations(rate: float, reduction: float = 1e-6) -> float:
    """Iterations after which a linear rate leaves a share `reduction` of the distance; infinite at a rate of 1."""
    if rate >= 1:
        return math.inf
    return max(1.0, math.log(reduction) / math.log(max(rate, 1e-300)))


def mim_lambda_max(objective: Objective, point: Tensor, ridge: float, *, iterations: int = 12) -> float:
    """
    Largest eigenvalue of the missing information matrix at some parameters.

    Lanczos iterations in the inner product of the complete-data information, each solved by conjugate gradients on
    products with Hessians: no matrix is formed. (Power iterations stop short where the second eigenvalue is near.)

    Args:
        objective ([`Objective`]):
            Of the rows; its coordinates do not matter to the eigenvalue.
        point (`torch.Tensor` of shape `(P,)`):
            Coordinates, best a fixed point of EM.
        ridge (`float`):
            Penalty.
        iterations (`int`, *optional*, defaults to 12):
            Lanczos iterations.

    Returns:
        `float` in [0, 1] at a minimum of the objective; above 1 where the objective curves downwards.
    """
    if objective.shape.num_experts == 1:
        return 0.0
    information = _Information(objective, point, ridge)
    vector = torch.randn(len(point), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(point)
    scale = 0.0
    basis: list[Tensor] = []  # orthonormal in the complete-data information, whose images follow
    images: list[Tensor] = []
    missing_images: list[Tensor] = []
    for _ in range(min(iterations, len(point))):
        length = vector.norm()
        for _ in range(2):  # twice: rounding leaves a part of the earlier vectors
            for earlier, earlier_image in zip(basis, images, strict=True):
                vector = vector - (vector @ earlier_image) * earlier
        image = information.complete(vector)
        square = float(vector @ image)
        # What is left is rounding, or a shift of intercepts that no row sees.
        if not (vector.norm() > _ROUNDING * length and square > _ROUNDING * float(vector @ vector) * scale):
            break
        scale = max(scale, square / float(vector @ vector))
        basis.append(vector / square**0.5)
        images.append(image / square**0.5)
        missing_images.append(information.missing(basis[-1]))
        vector = _conjugate_gradients(information.complete, missing_images[-1])
    if not basis:
        return 0.0
    projected = torch.stack(basis) @ torch.stack(missing_images).T
    return float(torch.linalg.eigvalsh((projected + projected.T) / 2)[-1])


class _Information:
    """Products of vectors with complete and missing information at some parameters."""

    def __init__(self, objective: Objective, point: Tensor, ridge: float) -> None:
        self.objective = objective
        self.ridge = ridge
        shape = objective.shape
        gate_logits, outputs, log_variance = _logits(objective, point, slice(None))
        self.gate = gate_logits.softmax(-1)
        look = objective.e_step(point[None], point.new_tensor([ridge]))
        self.responsibilities = look.responsibilities[:, 0]
        self.precision = (-log_variance).exp()
        y = objective.rows.y
        # Slopes of the log-likelihood: `scores` (n, k, m) in outputs, `variance_scores` (n, k) in log-variances.
        self.variance_scores = torch.zeros_like(self.gate)
        self.probabilities = outputs
        if shape.expert_type == "linear":
            error = y[:, None, :] - outputs
            self.squares = error.square().sum(-1) * self.precision
            self.scores = error * self.precision[:, None]
            self.variance_scores = 0.5 * (self.squares - shape.num_outputs)
        elif shape.expert_type == "logistic":
            self.probabilities = outputs.sigmoid()
            self.scores = y.to(outputs)[:, None, None] - self.probabilities
        else:
            self.probabilities = outputs.softmax(-1)
            self.scores = torch.nn.functional.one_hot(y, shape.num_outputs).to(outputs)[:, None] - self.probabilities

    def _changes(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Changes of gate logits, outputs and log-variances along a vector `(P,)`, and the vectors of it."""
        experts = self.objective.shape.num_experts
        count = self.objective.shape.num_variances
        free = self.objective.free_vectors(vector[None])[0]
        vectors = self.objective.shape.expand(free)[0]
        logits = self.objective.rows.X @ vectors.T
        log_variance = vector[len(vector) - count :].expand(experts) if count else self.precision.new_zeros(experts)
        return logits[:, :experts], logits[:, experts:].unflatten(1, (experts, -1)), log_variance, vectors

    def _product(self, gate: Tensor, outputs: Tensor, log_variance: Tensor, vectors: Tensor | None) -> Tensor:
        """Coordinates of slopes `(n, k)`, `(n, k, m)` and `(n, k)` of each row; with vectors also the penalty's."""
        rows = self.objective.rows
        slopes = torch.cat([gate, outputs.flatten(1)], dim=1) * rows.weights[:, None]
        sums = (rows.weights @ log_variance).view(1, -1)
        reduced = self.objective.reduce(torch.cat([slopes.T @ rows.X, sums.T.expand(-1, rows.X.shape[1])]))
        gradient, variances = reduced.split([slopes.shape[1], sums.shape[1]])
        if vectors is not None:
            gradient = gradient + self.ridge * vectors * self.objective.penalised
        count = self.objective.shape.num_variances
        variances = variances[:, 0]
        variances = variances.sum().view(1) if count == 1 else variances[:count]
        return self.objective.pull_back(gradient[None], variances[None])[0]

    def complete(self, vector: Tensor) -> Tensor:
        """The Hessian of the penalised expected likelihood, times a vector `(P,)`."""
        gate, outputs, log_variance, vectors = self._changes(vector)
        gate_slopes = self.gate * (gate - (self.gate * gate).sum(-1, keepdim=True))
        weights = self.responsibilities.unsqueeze(-1)
        variance_slopes = torch.zeros_like(gate)
        match self.objective.shape.expert_type:
            case "linear":
                slopes = weights * (self.precision[:, None] * outputs + self.scores * log_variance[:, None])
                crossed = (self.scores * outputs).sum(-1) + 0.5 * self.squares * log_variance
                variance_slopes = self.responsibilities * crossed
            case "logistic":
                slopes = weights * self.probabilities * (1 - self.probabilities) * outputs
            case _:
                mean = (self.probabilities * outputs).sum(-1, keepdim=True)
                slopes = weights * self.probabilities * (outputs - mean)
        return self._product(gate_slopes, slopes, variance_slopes, vectors)

    def missing(self, vector: Tensor) -> Tensor:
        """Covariance of the complete-data score under the posterior, times a vector `(P,)`."""
        gate, outputs, log_variance, _ = self._changes(vector)
        change = gate + (self.scores * outputs).sum(-1) + self.variance_scores * log_variance
        mean = (self.responsibilities * change).sum(-1, keepdim=True)
        posterior = self.responsibilities * (change - mean)
        return self._product(posterior, posterior.unsqueeze(-1) * self.scores, posterior * self.variance_scores, None)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = residual
    square = residual @ residual
    least = _CG_TOLERANCE**2 * square
    for _ in range(_CG_STEPS):
        if not square > least:
            break
        image = product(direction)
        curvature = direction @ image
        # A direction that the data do not tell, such as a shift of all of the gate's intercepts.
        if not curvature > 1e-14 * (direction @ direction):
            break
        step = square / curvature
        solution = solution + step * direction
        residual = residual - step * image
        latest = residual @ residual
        direction = residual + (latest / square) * direction
        square = latest
    return solution


def _logits(objective: Objective, point: Tensor, block: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Gate logits `(n, k)`, outputs `(n, k, m)` and log-variances `(k,)` of a block of rows at coordinates `(P,)`."""
    vectors, log_variance = objective.vectors(point[None])
    experts = objective.shape.num_experts
    logits = objective.rows.X[block] @ vectors[0].T
    return logits[:, :experts], logits[:, experts:].unflatten(1, (experts, -1)), log_variance[0]


def _some_rows(objective: Objective, max_rows: int) -> Objective:
    rows = objective.rows
    step = max(1, math.ceil(len(rows.X) / max_rows))
    weights = rows.weights[::step]
    share = objective.reduce(weights.sum().reshape(1))
    sample = replace(
        rows, X=rows.X[::step], y=rows.y[::step], weights=weights / share, total=rows.total * float(share)
    )
    return objective.on_rows(sample)


def _divergence(outputs: Tensor, log_variance: Tensor, expert_type: str) -> Tensor:
    """Mean of KL(p_i, p_j) over pairs of different experts, of each row `(n,)`."""
    experts = outputs.shape[1]
    if experts == 1:
        return torch.zeros_like(outputs[:, 0, 0])
    first = outputs[:, :, None]
    second = outputs[:, None, :]
    if expert_type == "linear":
        ratio = (log_variance[:, None] - log_variance[None, :]).exp()
        distances = (first - second).square().sum(-1) * (-log_variance).exp()[None, None, :]
        divergences = 0.5 * (outputs.shape[-1] * (ratio - 1 - ratio.log()) + distances)
    else:
        if expert_type == "logistic":
            first = torch.cat([first, torch.zeros_like(first)], dim=-1)
            second = torch.cat([second, torch.zeros_like(second)], dim=-1)
        log_first = first.log_softmax(-1)
        divergences = (log_first.exp() * (log_first - second.log_softmax(-1))).sum(-1)
    return divergences.sum((1, 2)) / (experts * (experts - 1))


def _signal_to_noise(objective: Objective, outputs: Tensor, log_variance: Tensor) -> list[float]:
    if objective.shape.expert_type == "softmax":
        outputs = outputs - outputs.mean(-1, keepdim=True)  # a shift of all logits is no signal
    weights = objective.rows.weights
    mean = objective.reduce(torch.einsum("n,nkm->km", weights, outputs))
    variance = objective.reduce(torch.einsum("n,nkm->km", weights, (outputs - mean).square())).mean(-1)
    return (variance / log_variance.exp()).sqrt().tolist()
