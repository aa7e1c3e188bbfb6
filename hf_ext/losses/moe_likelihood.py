r"""
The likelihood of a mixture of experts, and the posterior over who handled a row.

A row with features $x$ has gate logits $a_i$ and, of each of $k$ experts, outputs $u_i$ of $m$ numbers:

| `expert_type` | label $y$ | $m$ | $\log p(y \mid x, i)$ in nats |
|---|---|---|---|
| `linear` | $m$ numbers | any | $-\frac{m}{2} \log 2 \pi s_i^2 - \lVert y - u_i \rVert^2 / 2 s_i^2$ |
| `logistic` | 0 or 1 | 1 | $\log \sigma((2y - 1) u_i)$ |
| `softmax` | a class below $m$ | classes | $u_{iy} - \log \sum_c e^{u_{ic}}$ |

With $g = \mathrm{softmax}(a)$ the density is $p(y \mid x) = \sum_i g_i\, p(y \mid x, i)$, and the responsibility of
expert $i$ is $r_i = g_i\, p(y \mid x, i) / p(y \mid x)$.

Every logarithm comes from `log_softmax`, `logsigmoid` or `logsumexp`, none from a probability: logits of hundreds of
nats are exact. Further dimensions between rows and experts (restarts of a fit) pass through.

Reference: Jordan and Jacobs 1994, *Hierarchical mixtures of experts and the EM algorithm*; Fruytier, Mokhtari and
Sanghavi 2025, *Learning Mixtures of Experts with EM: A Mirror Descent Perspective* (ICML 2025, PMLR 267; arXiv
2411.06056), section 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32

EXPERT_TYPES = ("linear", "logistic", "softmax")


def check_expert_type(expert_type: str) -> None:
    """
    Refuse an expert that does not exist.

    Raises:
        ValueError: if it does not; the message holds the names that there are.
    """
    if expert_type not in EXPERT_TYPES:
        raise ValueError(f"expert_type={expert_type!r} is not one of {', '.join(EXPERT_TYPES)}.")


def expert_log_likelihood(
    expert_outputs: Tensor, labels: Tensor, *, expert_type: str = "softmax", variance: Tensor | None = None
) -> Tensor:
    r"""
    Log-likelihood of the labels under each expert: the table in the module's docstring.

    Args:
        expert_outputs (`torch.Tensor` of shape `(batch, ..., k, m)`):
            $u$: logits in nats, or means in the unit of the labels.
        labels (`torch.Tensor` of shape `(batch,)`, linear experts also `(batch, m)`):
            Classes as integers, or numbers.
        expert_type (`str`, *optional*, defaults to `"softmax"`):
            One of `EXPERT_TYPES`.
        variance (`torch.Tensor` of shape `(k,)` or `(..., k)`, *optional*):
            $s_i^2 > 0$ of linear experts, per output, in the squared unit of the labels; 1 without it.

    Returns:
        `torch.Tensor` of shape `(batch, ..., k)`: nats a row.

    Raises:
        ValueError: if the expert type is unknown, the rows of the two tensors differ in number, or the outputs do not
            go with the type.
    """
    check_expert_type(expert_type)
    if expert_outputs.ndim < 3 or len(expert_outputs) != len(labels):
        raise ValueError(
            f"expert_outputs {tuple(expert_outputs.shape)} must be (batch, ..., k, m) with one row for each of the "
            f"labels {tuple(labels.shape)}."
        )
    outputs = at_least_float32(expert_outputs)
    width = outputs.shape[-1]
    if expert_type == "linear":
        targets = labels.reshape(len(labels), *[1] * (outputs.ndim - 2), -1).to(outputs.dtype)
        if targets.shape[-1] != width:
            raise ValueError(f"labels {tuple(labels.shape)} must hold {width} numbers a row, as the experts do.")
        scale = torch.ones((), dtype=outputs.dtype, device=outputs.device) if variance is None else variance
        squares = (outputs - targets).square().sum(-1)
        return -0.5 * (width * (math.log(2 * math.pi) + scale.log()) + squares / scale)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels of {expert_type} experts must be (batch,) whole numbers, got {labels.dtype}.")
    if expert_type == "logistic":
        if width != 1:
            raise ValueError(f"a logistic expert has one output, not {width}: take softmax experts for more classes.")
        signs = (2 * labels - 1).reshape(-1, *[1] * (outputs.ndim - 2)).to(outputs.dtype)
        return F.logsigmoid(signs * outputs[..., 0])
    index = labels.reshape(-1, *[1] * (outputs.ndim - 1)).expand(*outputs.shape[:-1], 1)
    return outputs.log_softmax(-1).gather(-1, index).squeeze(-1)


def moe_log_responsibilities(
    gate_logits: Tensor,
    expert_outputs: Tensor,
    labels: Tensor,
    *,
    expert_type: str = "softmax",
    variance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""
    The E-step: who handled a row, and how likely the row is.

    $$\log r_i = \log g_i + \log p(y \mid x, i) - \log p(y \mid x)$$

    Args:
        gate_logits (`torch.Tensor` of shape `(batch, ..., k)`):
            $a$, in nats.
        expert_outputs, labels, expert_type, variance:
            As in [`expert_log_likelihood`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: $\log r$ of shape `(batch, ..., k)` and $\log p(y \mid x)$ of shape
        `(batch, ...)`, in nats. For any gate and experts $\sum_i r_i = 1$.

    Raises:
        ValueError: if the gate's shape is not that of the experts without their outputs, or as
            [`expert_log_likelihood`] says.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3, E-step.
    """
    if gate_logits.shape != expert_outputs.shape[:-1]:
        raise ValueError(
            f"gate_logits {tuple(gate_logits.shape)} must have the shape of expert_outputs "
            f"{tuple(expert_outputs.shape)} without its last dimension."
        )
    experts = expert_log_likelihood(expert_outputs, labels, expert_type=expert_type, variance=variance)
    joint = at_least_float32(gate_logits).log_softmax(-1) + experts
    row_log_likelihood = joint.logsumexp(-1)
    return joint - row_log_likelihood.unsqueeze(-1), row_log_likelihood


def moe_nll(
    gate_logits: Tensor,
    expert_outputs: Tensor,
    labels: Tensor,
    *,
    expert_type: str = "softmax",
    variance: Tensor | None = None,
) -> Tensor:
    r"""
    Negative log-likelihood of each row under the mixture.

    $$l = -\log \sum_i g_i\, p(y \mid x, i)$$

    Its gradient is that of the expected complete-data likelihood at the same parameters (Fisher's identity), so a
    gradient step on the mean of `l` is one step of "gradient EM".

    Args:
        gate_logits (`torch.Tensor` of shape `(batch, ..., k)`):
            $a$, in nats.
        expert_outputs, labels, expert_type, variance:
            As in [`expert_log_likelihood`].

    Returns:
        `torch.Tensor` of shape `(batch, ...)`: nats a row; differentiable, not yet averaged.

    Raises:
        ValueError: as [`moe_log_responsibilities`] says.

    Requirements: finite inputs (`guards.finite` checks before this). A row weight multiplies the result.

    Relations: cross entropy of [`moe_log_probs`]; with $k = 1$ cross entropy, binary cross entropy, or a Gaussian's.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 2.
    """
    return -moe_log_responsibilities(gate_logits, expert_outputs, labels, expert_type=expert_type, variance=variance)[
        1
    ]


def moe_log_probs(gate_logits: Tensor, expert_outputs: Tensor, *, expert_type: str = "softmax") -> Tensor:
    r"""
    Log-probability of every class under the mixture: logits for stock code, whose softmax is the mixture itself.

    Args:
        gate_logits (`torch.Tensor` of shape `(batch, ..., k)`):
            $a$, in nats.
        expert_outputs (`torch.Tensor` of shape `(batch, ..., k, m)`):
            Logits of the experts; of logistic ones that of class 1.
        expert_type (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"` or `"logistic"`.

    Returns:
        `torch.Tensor` of shape `(batch, ..., classes)`: nats; 2 classes of logistic experts.

    Raises:
        ValueError: if the experts are linear, which have no classes, or the type is unknown.
    """
    check_expert_type(expert_type)
    if expert_type == "linear":
        raise ValueError("linear experts predict numbers: their mixture has a mean, not log-probabilities of classes.")
    outputs = at_least_float32(expert_outputs)
    if expert_type == "logistic":
        outputs = torch.cat([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=-1)
    else:
        outputs = outputs.log_softmax(-1)
    return (at_least_float32(gate_logits).log_softmax(-1).unsqueeze(-1) + outputs).logsumexp(-2)
