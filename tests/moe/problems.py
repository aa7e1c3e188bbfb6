"""Mixtures to fit: rows drawn from a gate and experts, the same on every run."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.em import VARIANCE_FLOOR, EMArguments, EMResult, fit_em
from hf_ext.moe.objective import Objective
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import mixture_rows

SHAPES = {
    "softmax": MixtureShape(3, "softmax", 4),
    "logistic": MixtureShape(2, "logistic"),
    "logistic symmetric": MixtureShape(2, "logistic", symmetric=True),
    "linear": MixtureShape(3, "linear"),
    "linear, two numbers, own variances": MixtureShape(2, "linear", 2, shared_variance=False),
    "linear symmetric": MixtureShape(2, "linear", symmetric=True),
}


def normal(*size: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _draw(
    shape: MixtureShape, n: int = 300, d: int = 4, seed: int = 0, gate_norm: float = 2.0, norm: float = 4.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard normal features, the labels drawn for them, and the truth: gate logits and outputs of all experts."""
    draws = torch.Generator().manual_seed(1000 + seed)
    X = normal(n, d, seed=seed)
    gate = gate_norm / d**0.5 * normal(shape.num_experts, d, seed=seed + 1)
    experts = norm / d**0.5 * normal(shape.num_experts, shape.num_outputs, d, seed=seed + 2)
    if shape.symmetric:
        experts[1] = -experts[0]
    gate_logits = X @ gate.T
    all_outputs = torch.einsum("nd,kmd->nkm", X, experts)
    handled_by = torch.multinomial(gate_logits.softmax(-1), 1, generator=draws)[:, 0]
    outputs = all_outputs[torch.arange(n), handled_by]
    if shape.expert_type == "linear":
        y = outputs + torch.randn(outputs.shape, generator=draws, dtype=torch.float64)
    elif shape.expert_type == "logistic":
        y = (torch.rand(n, generator=draws, dtype=torch.float64) < outputs[:, 0].sigmoid()).long()
    else:
        y = torch.multinomial(outputs.softmax(-1), 1, generator=draws)[:, 0]
    return X, y, gate_logits, all_outputs


def rows_of(shape: MixtureShape, **settings: float) -> tuple[Tensor, Tensor]:
    """Raw features `(n, d)`, neither centred nor scaled, and labels drawn from a mixture of the shape."""
    X, y, *_ = _draw(shape, **settings)
    return 3 * X + torch.arange(X.shape[1]), y.squeeze(-1)


def true_nll(shape: MixtureShape, **settings: float) -> float:
    """Nats a row of the same labels under the mixture that they were drawn from."""
    _, y, gate_logits, outputs = _draw(shape, **settings)
    return moe_nll(gate_logits, outputs, y, expert_type=shape.expert_type).mean().item()


def objective_of(shape: MixtureShape, *, whiten: bool = True, weighted: bool = True, **size: int) -> Objective:
    """An objective on drawn rows, with random row weights."""
    X, y = rows_of(shape, **size)
    weights = normal(len(X), seed=5).abs() if weighted else None
    rows = mixture_rows(X, y, shape, sample_weight=weights)
    return Objective(rows, shape, whiten=whiten, variance_floor=VARIANCE_FLOOR)


def points_of(objective: Objective, restarts: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Random coordinates `(restarts, P)` and a ridge for each."""
    shape = objective.shape
    free = normal(restarts, shape.gate_rows + shape.expert_rows, objective.width, seed=seed)
    log_variance = 0.5 * normal(restarts, shape.num_variances, seed=seed + 1)
    return objective.pack(free, log_variance), 0.01 * torch.arange(1, restarts + 1, dtype=torch.float64)


def fitted(shape: MixtureShape, X: Tensor, y: Tensor, seed: int = 0, **settings: object) -> EMResult:
    """A fit from the starts of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return fit_em(X, y, shape, arguments=EMArguments(**settings), generator=generator)
