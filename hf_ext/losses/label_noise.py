"""Losses for labels that passed through a known noise channel, and for soft targets, in nats per label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32, divided

Channel = Tensor | tuple[float, float]
IGNORED = -100


def forward_corrected_nll(
    logits: Tensor,
    labels: Tensor,
    channel: Channel,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    r"""
    Negative log-likelihood of the noisy labels under the model's prediction sent through the channel.

    $$\mathcal{L} = -\frac{1}{D} \sum_i w_i \log \sum_{y} f_y(x_i)\, T_{y, s_i},\qquad
    -\log\big(q + (p - q) f_{s_i}\big) \text{ for randomised response}$$

    Args:
        logits (`torch.Tensor` of shape `(..., num_classes)`):
            Of the clean label, unnormalised.
        labels (`torch.Tensor` of shape `(...)`):
            Noisy classes $s$, int64; `ignore_index` where there is none.
        channel (`torch.Tensor` of shape `(num_classes, num_classes)`, or `(p, q)`):
            $T_{y,s} = P(s \mid y)$, rows summing to one; or a matrix for every label, shape `(..., num_classes,
            num_classes)`; or, for randomised response, the probabilities of the true class and of each other one.
        weights (`torch.Tensor` of the shape of `labels`, *optional*):
            Unitless, non-negative; one by default.
        denominator (`torch.Tensor` or `float`, *optional*):
            $D$ of the whole accumulated, gathered batch: labels, or $\sum w$. By default that of this call, which is
            wrong under accumulation. Where it is 0, so is the loss.
        ignore_index (`int`, *optional*, defaults to `-100`):
            Label of positions that do not count; they may hold any finite logits.

    Returns:
        `torch.Tensor`: scalar, nats per label (or per unit of weight).

    Raises:
        ValueError: if shapes do not fit, or `(p, q)` are no channel of randomised response.

    Requirements: $p \ge q$. Finite logits; at $\pm 10^4$ value and gradient are finite, as nothing leaves the log.

    Relations: with $p = 1$ it is cross-entropy; its minimiser over the data is that of the clean loss whenever $T$ is
    invertible. `backward_corrected_nll` is unbiased for the clean loss, but unbounded below.

    Reference: Patrini et al. 2017, *Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach*,
    Theorem 2 (arXiv 1609.03683).
    """
    log_probs, labels, weights = _flat(logits, labels, weights)
    is_labelled, classes = _labelled(labels, ignore_index)
    if isinstance(channel, tuple):
        p, q = _checked(channel, log_probs.shape[1])
        log_prob_given = log_probs.gather(1, classes[:, None])[:, 0]  # (labels,)
        floor = log_prob_given.new_tensor(_log(q))
        losses = -torch.logaddexp(floor, log_prob_given + _log(p - q))
    else:
        columns = _columns(channel, classes, logits.shape)  # (labels, num_classes): P(given label | y) for every y
        losses = -torch.logsumexp(log_probs + columns.to(log_probs).log(), dim=1)
    return _reduce(losses, is_labelled, weights, denominator)


def backward_corrected_nll(
    logits: Tensor,
    labels: Tensor,
    channel: Channel,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    r"""
    Unbiased estimate, from noisy labels, of the negative log-likelihood of the clean ones.

    $$\mathcal{L} = \frac{1}{D} \sum_i w_i \sum_y (T^{-1})_{s_i, y}\, \ell_y(x_i),\quad \ell_y = -\log f_y,\qquad
    \frac{\ell_{s_i} - q \sum_y \ell_y}{p - q} \text{ for randomised response}$$

    Args:
        logits, labels, channel, weights, denominator, ignore_index:
            As in `forward_corrected_nll`; $T$ invertible ($p > q$).

    Returns:
        `torch.Tensor`: scalar, nats per label. Averaged over the noise it is the clean loss, but it has no lower bound
        and much variance where the channel is noisy: a model that can memorise drives it to minus infinity.

    Raises:
        ValueError: if shapes do not fit, or $p \le q$ in `(p, q)`.

    Relations: `forward_corrected_nll` is the one to train with.

    Reference: Natarajan et al. 2013, *Learning with Noisy Labels*, Lemma 1; Patrini et al. 2017, Theorem 1
    (arXiv 1609.03683).
    """
    log_probs, labels, weights = _flat(logits, labels, weights)
    is_labelled, classes = _labelled(labels, ignore_index)
    if isinstance(channel, tuple):
        p, q = _checked(channel, log_probs.shape[1])
        if p == q:
            raise ValueError(f"p and q are both {p}: labels that say nothing have no unbiased loss. Raise epsilon.")
        log_prob_given = log_probs.gather(1, classes[:, None])[:, 0]
        losses = (q * log_probs.sum(dim=1) - log_prob_given) / (p - q)
    else:
        inverse = torch.linalg.inv(channel.double())
        rows = _columns(inverse.mT, classes, logits.shape)  # (labels, num_classes): the given label's row
        losses = -(rows.to(log_probs) * log_probs).sum(dim=1)
    return _reduce(losses, is_labelled, weights, denominator)


def soft_nll(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    r"""
    Cross-entropy against soft targets, such as the posterior of the clean label.

    $$\mathcal{L} = -\frac{1}{D} \sum_i w_i \sum_y t_{i,y} \log f_y(x_i)$$

    Args:
        logits (`torch.Tensor` of shape `(..., num_classes)`):
            Unnormalised.
        targets (`torch.Tensor` of the shape of `logits`):
            Non-negative. A row that sums to one is a distribution; a row of zeros does not count.
        weights (`torch.Tensor` of shape `(...)`, *optional*):
            Unitless, non-negative; one by default.
        denominator (`torch.Tensor` or `float`, *optional*):
            As in `forward_corrected_nll`; rows of zeros are not counted.

    Returns:
        `torch.Tensor`: scalar, nats per target.

    Raises:
        ValueError: if the shapes differ.

    Relations: one-hot targets give cross-entropy; the mean over $y \sim t_i$ of the hard loss, that is, rows repeated
    once a class with $t_{i,y}$ as their `weight`.
    """
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}: they must be equal."
        )
    flat = targets.reshape(-1, targets.shape[-1])
    log_probs, _, weights = _flat(logits, flat.sum(dim=1).reshape(targets.shape[:-1]), weights)
    losses = -(flat.to(log_probs) * log_probs).sum(dim=1)
    return _reduce(losses, (flat != 0).any(dim=1), weights, denominator)


def forward_loss_func(channel: Channel | object) -> Callable[..., Tensor]:
    """
    `forward_corrected_nll` for `Trainer(compute_loss_func=...)`: no subclass is needed where all rows share a channel.

    The sum over a micro-batch is divided by the number of labels in the whole accumulated batch, so that the loss does
    not depend on how a batch is split. Evaluation without that number takes the mean of the batch.

    Args:
        channel (`torch.Tensor`, `(p, q)`, or an object with `p` and `q` or with `matrix()`):
            What the labels passed through; `hf_ext.data.relabeling.RRChannel` is such an object.

    Returns:
        `Callable`: `(outputs, labels, num_items_in_batch=None) -> loss`; it pickles.

    Raises:
        TypeError: if `channel` is none of these.

    Requirements: `label_smoothing_factor=0` (the trainer skips smoothing silently where a loss function is given).
    """
    return _ForwardLoss(_channel_of(channel))


class _ForwardLoss:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else getattr(outputs, "logits", outputs)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return forward_corrected_nll(logits, labels, self.channel, denominator=num_items_in_batch)


def _channel_of(channel: object) -> Channel:
    if isinstance(channel, Tensor | tuple):
        return channel
    if hasattr(channel, "p") and hasattr(channel, "q"):
        return float(channel.p), float(channel.q)
    if hasattr(channel, "matrix"):
        return torch.as_tensor(channel.matrix())
    raise TypeError(f"channel must be a matrix, (p, q) or have a matrix(), got {type(channel).__name__}.")


def _flat(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities `(labels, num_classes)` in float32 or wider, labels and weights `(labels,)`."""
    for name, values in (("labels", labels), ("weights", weights)):
        if values is not None and values.shape != logits.shape[:-1]:
            raise ValueError(f"{name} have shape {tuple(values.shape)}, logits {tuple(logits.shape)}.")
    log_probs = torch.log_softmax(at_least_float32(logits.reshape(-1, logits.shape[-1])), dim=1)
    return log_probs, labels.reshape(-1), None if weights is None else weights.reshape(-1).to(log_probs)


def _labelled(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which labels count, and the labels with some class in place of the others."""
    is_labelled = labels != ignore_index
    return is_labelled, torch.where(is_labelled, labels, 0)


def _checked(channel: tuple[float, float], num_classes: int) -> tuple[float, float]:
    p, q = channel
    total = p + (num_classes - 1) * q
    if not (p >= q >= 0 and abs(total - 1) < 1e-6):
        raise ValueError(
            f"p={p}, q={q} is no channel of {num_classes} classes: p >= q >= 0 and p + (K-1) q = 1 are needed (it is "
            f"{total:.6g}). The model's number of classes and the channel's must be equal."
        )
    return p, q


def _columns(channel: Tensor, classes: Tensor, shape: torch.Size) -> Tensor:
    """Entries `[:, s]` for every label `s`, shape `(labels, num_classes)`."""
    size = shape[-1]
    channel = channel.to(classes.device)
    if channel.shape == (size, size):
        return channel.T[classes]
    if channel.shape != (*shape[:-1], size, size):
        raise ValueError(
            f"channel has shape {tuple(channel.shape)}; expected ({size}, {size}), or one such matrix for every label "
            f"of shape {tuple(shape[:-1])}."
        )
    flat = channel.reshape(-1, size, size)
    return flat[torch.arange(len(flat), device=flat.device), :, classes]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _reduce(losses: Tensor, is_labelled: Tensor, weights: Tensor | None, denominator: Tensor | float | None) -> Tensor:
    # where, not a product: a position without a label may hold anything, and 0 * inf is NaN.
    counts = is_labelled if weights is None else torch.where(is_labelled, weights, 0)
    losses = torch.where(is_labelled, losses, 0) * counts
    return divided(losses.sum(), counts.sum() if denominator is None else denominator)
