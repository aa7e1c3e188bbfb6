"""
EM with experts of any kind: whatever has `fit(X, y, sample_weight)`, such as scikit-learn's trees or boosted trees.

The gate is ours, a multinomial logistic regression; an expert's M-step is its own `fit` with the responsibilities as
row weights. An expert that maximises another objective than the weighted likelihood may lower the mixture's: the fit
then stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hf_ext.moe.arguments import DEFAULT_RIDGE
from hf_ext.moe.em import VARIANCE_FLOOR
from hf_ext.moe.lbfgs import Curvature
from hf_ext.moe.m_steps import m_step_lbfgs
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import MixtureRows, mixture_rows

_GATE_STEPS = 10
_LEAST_PROBABILITY = 1e-12  # of a class that an expert has not seen, or deems impossible


@runtime_checkable
class ExpertProtocol(Protocol):
    """
    An expert: an estimator that takes row weights.

    A classifier also has `predict_proba(X)` and `classes_`, a regressor `predict(X)`; arrays of numpy, as in
    scikit-learn.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """Learn from rows `(n, d)`, labels `(n,)` and weights `(n,)`, forgetting what was learnt before."""


@dataclass(frozen=True)
class ExpertMixture:
    """
    Experts of any kind under one gate.

    Args:
        experts (`list[ExpertProtocol]`):
            Fitted.
        gate (`torch.Tensor` of shape `(k, d + 1)`):
            On standardised features; the last column multiplies 1.
        mean, scale (`torch.Tensor` of shape `(d,)`):
            A feature is standardised as `(x - mean) / scale`, for the gate alone.
        variance (`float` or `None`):
            Of regressors, shared, in the labels' squared unit.
        num_classes (`int`):
            0 of regressors.
        nll (`list[float]`):
            Nats a row on the training rows after each iteration.
    """

    experts: list[ExpertProtocol]
    gate: Tensor
    mean: Tensor
    scale: Tensor
    variance: float | None
    num_classes: int
    nll: list[float]

    def gate_probabilities(self, X: Tensor) -> Tensor:
        """Probability `(n, k)` with which each expert handles raw features `(n, d)`."""
        standardised = (X.to(self.gate) - self.mean) / self.scale
        return (standardised @ self.gate[:, :-1].T + self.gate[:, -1]).softmax(-1)

    def predict(self, X: Tensor) -> Tensor:
        """Probabilities of the classes `(n, classes)`; of regressors the mixture's mean `(n,)`."""
        gate = self.gate_probabilities(X)
        if self.num_classes:
            tables = [_class_probabilities(expert, X.numpy(), self.num_classes) for expert in self.experts]
            return (gate.unsqueeze(-1) * torch.stack(tables, dim=1)).sum(1)
        means = [torch.as_tensor(_predictions(expert, X.numpy())) for expert in self.experts]
        return (gate * torch.stack(means, dim=1)).sum(1)


def fit_em_experts(
    X: Tensor,
    y: Tensor,
    experts: Sequence[ExpertProtocol],
    *,
    sample_weight: Tensor | None = None,
    iterations: int = 20,
    ridge: float = DEFAULT_RIDGE,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> ExpertMixture:
    """
    Fit a gate and experts of any kind by EM.

    Args:
        X (`torch.Tensor` of shape `(n, d)`):
            Features; the experts see them as they are.
        y (`torch.Tensor` of shape `(n,)`):
            Classes from 0 where the experts have `predict_proba`, otherwise numbers.
        experts (sequence of [`ExpertProtocol`]):
            One estimator each; they are fitted in place.
        sample_weight (`torch.Tensor` of shape `(n,)`, *optional*):
            Non-negative row weights.
        iterations (`int`, *optional*, defaults to 20):
            Most iterations.
        ridge (`float`, *optional*, defaults to 1e-4):
            Penalty of the gate, in nats a row on half a squared coefficient.
        tol (`float`, *optional*, defaults to 1e-5):
            Nats a row: the fit ends where an iteration gains less, or where experts lower the likelihood.
        generator (`torch.Generator`, *optional*):
            Of the first responsibilities; seeded with 0 by default.

    Returns:
        [`ExpertMixture`]

    Raises:
        TypeError: if an expert has no `fit`, or neither `predict_proba` nor `predict`.
        ValueError: if rows cannot be used (see [`mixture_rows`]).
    """
    for expert in experts:
        if not isinstance(expert, ExpertProtocol) or not (
            hasattr(expert, "predict_proba") or hasattr(expert, "predict")
        ):
            raise TypeError(f"{type(expert).__name__} has no fit, or neither predict_proba nor predict: no expert.")
    is_classifier = hasattr(experts[0], "predict_proba")
    num_classes = int(y.max()) + 1 if is_classifier and len(y) else 0
    k = len(experts)
    shape = MixtureShape(k, "softmax", max(2, num_classes)) if is_classifier else MixtureShape(k, "linear")
    rows = mixture_rows(X, y, shape, sample_weight=sample_weight)
    objective = Objective(rows, shape, whiten=True, variance_floor=VARIANCE_FLOOR)
    features = X.numpy()
    labels = y.numpy()
    draw = torch.randn(len(X), k, generator=generator or torch.Generator().manual_seed(0), dtype=torch.float64)
    responsibilities = (2 * draw).softmax(-1)
    gate_point = rows.X.new_zeros(1, k * objective.width)
    curvature = Curvature.empty(1, gate_point.shape[1], gate_point)
    penalty = gate_point.new_tensor([ridge])
    history: list[float] = []
    variance = None
    for _ in range(iterations):
        for i, expert in enumerate(experts):
            expert.fit(features, labels, sample_weight=(responsibilities[:, i] * rows.weights * rows.total).numpy())
        targets = Targets(responsibilities[:, None])
        if k > 1:
            gate_point = m_step_lbfgs(
                objective, gate_point, penalty, targets, None, curvature,
                steps=_GATE_STEPS, tolerance=torch.full_like(penalty, 1e-8), gate_only=True,
            ).point  # fmt: skip
        log_gate = (rows.X @ _gate_vectors(objective, gate_point).T).log_softmax(-1)
        log_likelihood, variance = _log_likelihood(experts, features, y, rows, responsibilities, num_classes)
        joint = log_gate + log_likelihood
        row_log_likelihood = joint.logsumexp(-1)
        responsibilities = (joint - row_log_likelihood.unsqueeze(-1)).exp()
        history.append(-float(rows.weights @ row_log_likelihood))
        if len(history) > 1 and history[-2] - history[-1] < tol:
            break
    standardisation = rows.standardisation
    gate = _gate_vectors(objective, gate_point)
    return ExpertMixture(
        list(experts), gate, standardisation.mean, standardisation.scale, variance, num_classes, history
    )


def _gate_vectors(objective: Objective, gate_point: Tensor) -> Tensor:
    gate = gate_point.view(-1, objective.width)
    return gate if objective.whitening is None else gate @ objective.whitening


def _log_likelihood(
    experts: Sequence[ExpertProtocol],
    features: np.ndarray,
    y: Tensor,
    rows: MixtureRows,
    responsibilities: Tensor,
    num_classes: int,
) -> tuple[Tensor, float | None]:
    """Log-likelihood `(n, k)` of the labels under each expert, and the variance of regressors."""
    if num_classes:
        tables = [_class_probabilities(expert, features, num_classes) for expert in experts]
        index = y.to(torch.int64)[:, None]
        return torch.cat([table.gather(1, index) for table in tables], dim=1).log(), None
    means = torch.stack([torch.as_tensor(_predictions(expert, features)) for expert in experts], dim=1)
    squares = (y.double()[:, None] - means).square()
    floor = VARIANCE_FLOOR * float(rows.standardisation.label_scale) ** 2
    variance = max(floor, float(rows.weights @ (responsibilities * squares).sum(1)))
    return -0.5 * (np.log(2 * np.pi * variance) + squares / variance), variance


def _class_probabilities(expert: Any, features: np.ndarray, num_classes: int) -> Tensor:
    """Probabilities `(n, classes)`; a class that the expert has not seen has next to none."""
    table = torch.full((len(features), num_classes), _LEAST_PROBABILITY, dtype=torch.float64)
    columns = torch.as_tensor(np.asarray(expert.classes_).astype(np.int64))
    table[:, columns] = torch.as_tensor(expert.predict_proba(features), dtype=torch.float64)
    return table.clamp(min=_LEAST_PROBABILITY) / table.clamp(min=_LEAST_PROBABILITY).sum(1, keepdim=True)


def _predictions(expert: Any, features: np.ndarray) -> np.ndarray:
    return np.asarray(expert.predict(features), dtype=np.float64).reshape(len(features))
