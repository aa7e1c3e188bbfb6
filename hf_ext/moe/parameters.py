"""What a mixture of experts is made of: its shape, and its parameters in the layout of `torch.nn.Linear`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_ext.guards.numbers import SIZE
from hf_ext.losses.moe_likelihood import check_expert_type, moe_log_probs, moe_log_responsibilities


@dataclass(frozen=True)
class MixtureShape:
    r"""
    How many experts of which kind.

    Args:
        num_experts (`int`):
            $k \ge 1$.
        expert_type (`str`):
            `"linear"`, `"logistic"` or `"softmax"`.
        num_outputs (`int`):
            $m$: classes of softmax experts (2 or more), 1 of logistic ones, numbers a label of linear ones.
        symmetric (`bool`):
            Two experts with opposite coefficients, $b_1 = -b_2$, and the gate $\sigma(x \cdot w)$: linear
            (SymMoLinE) or logistic (SymMoLogE) ones.
        shared_variance (`bool`):
            One variance for all linear experts. Without it an expert may shrink onto a few rows, down to the floor.

    Raises:
        ValueError: if the type is unknown, a number is out of range, or the symmetric form does not exist.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 2 and its symmetric cases.
    """

    num_experts: int
    expert_type: str
    num_outputs: int = 1
    symmetric: bool = False
    shared_variance: bool = True

    def __post_init__(self) -> None:
        check_expert_type(self.expert_type)
        for name in ("num_experts", "num_outputs"):
            problem = SIZE.problem_of(getattr(self, name))
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        if self.symmetric and (self.num_experts != 2 or self.expert_type == "softmax"):
            raise ValueError(
                "symmetric=True means two linear or logistic experts with opposite coefficients, got "
                f"num_experts={self.num_experts}, expert_type={self.expert_type!r}."
            )
        if self.expert_type == "logistic" and self.num_outputs != 1:
            raise ValueError(f"a logistic expert has one output, got num_outputs={self.num_outputs}.")
        if self.expert_type == "softmax" and self.num_outputs < 2:
            raise ValueError("softmax experts need num_outputs of at least 2, one a class.")

    @property
    def gate_rows(self) -> int:
        """Free vectors of the gate: k, or 1 of a symmetric pair."""
        return 1 if self.symmetric else self.num_experts

    @property
    def expert_rows(self) -> int:
        """Free vectors of the experts: k m, or m of a symmetric pair."""
        return self.num_outputs if self.symmetric else self.num_experts * self.num_outputs

    @property
    def columns(self) -> int:
        """Outputs of gate and experts together, `k (1 + m)`: a pass multiplies the features by that many vectors."""
        return self.num_experts * (1 + self.num_outputs)

    @property
    def num_variances(self) -> int:
        """Free variances: none, 1 or k."""
        if self.expert_type != "linear":
            return 0
        return 1 if self.shared_variance or self.symmetric else self.num_experts

    def expand_gate(self, gate: Tensor) -> Tensor:
        """`(R, gate_rows, d)` to `(R, k, d)`."""
        return torch.cat([gate / 2, -gate / 2], dim=1) if self.symmetric else gate

    def expand(self, free: Tensor) -> Tensor:
        """Free vectors `(R, gate_rows + expert_rows, d)` to those of gate and experts `(R, columns, d)`."""
        if not self.symmetric:
            return free
        gate = self.expand_gate(free[:, :1])
        return torch.cat([gate, free[:, 1:], -free[:, 1:]], dim=1)

    def fold_gate(self, gradient: Tensor) -> Tensor:
        """Gradient in the gate `(R, k, d)` to one in its free vectors: the transpose of `expand_gate`."""
        return (gradient[:, :1] - gradient[:, 1:2]) / 2 if self.symmetric else gradient

    def fold(self, gradient: Tensor) -> Tensor:
        """Gradient in gate and experts `(R, columns, d)` to one in the free vectors: the transpose of `expand`."""
        if not self.symmetric:
            return gradient
        middle = 2 + self.num_outputs
        return torch.cat([self.fold_gate(gradient[:, :2]), gradient[:, 2:middle] - gradient[:, middle:]], dim=1)


@dataclass(frozen=True)
class MixtureParameters:
    """
    A mixture of experts on raw features: what a fit returns and a model stores. float64.

    Args:
        gate (`torch.Tensor` of shape `(k, d + 1)`):
            $W$, on standardised features; the last column multiplies 1 and is not penalised.
        experts (`torch.Tensor` of shape `(k, m, d + 1)`):
            $B$, likewise; of linear experts in the unit of the labels.
        variance (`torch.Tensor` of shape `(k,)`, or `None`):
            $s_i^2$ of linear experts, in the labels' squared unit.
        mean, scale (`torch.Tensor` of shape `(d,)`):
            A feature is standardised as `(x - mean) / scale`.
        expert_type (`str`):
            One of `EXPERT_TYPES`.
    """

    gate: Tensor
    experts: Tensor
    variance: Tensor | None
    mean: Tensor
    scale: Tensor
    expert_type: str

    def outputs(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Gate logits `(n, k)` and expert outputs `(n, k, m)` of raw features `(n, d)`."""
        standardised = (X.to(self.gate) - self.mean) / self.scale
        gate_logits = standardised @ self.gate[:, :-1].T + self.gate[:, -1]
        flat = self.experts.flatten(0, 1)
        outputs = standardised @ flat[:, :-1].T + flat[:, -1]
        return gate_logits, outputs.unflatten(1, self.experts.shape[:2])

    def predict(self, X: Tensor) -> Tensor:
        """Log-probabilities `(n, classes)` in nats; of linear experts the mixture's mean `(n, m)`."""
        gate_logits, outputs = self.outputs(X)
        if self.expert_type == "linear":
            return (gate_logits.softmax(-1).unsqueeze(-1) * outputs).sum(1)
        return moe_log_probs(gate_logits, outputs, expert_type=self.expert_type)

    def posterior(self, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Responsibilities `(n, k)` and log-likelihoods `(n,)` in nats of labelled rows."""
        log_responsibilities, row_log_likelihood = moe_log_responsibilities(
            *self.outputs(X), y, expert_type=self.expert_type, variance=self.variance
        )
        return log_responsibilities.exp(), row_log_likelihood

    def without(self, experts: Iterable[int]) -> MixtureParameters:
        """
        The mixture without some experts: the gate's softmax shares their probability among the others.

        Raises:
            ValueError: if none would remain.
        """
        absent = set(experts)
        remaining = [i for i in range(len(self.gate)) if i not in absent]
        if not remaining:
            raise ValueError("every expert would be pruned.")
        variance = None if self.variance is None else self.variance[remaining]
        return replace(self, gate=self.gate[remaining], experts=self.experts[remaining], variance=variance)
