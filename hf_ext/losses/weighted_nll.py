"""The weighted likelihood that FLOW, context-free data and plain weighted fine-tuning share."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_nll(log_probs: Tensor, weights: Tensor, denominator: Tensor | float) -> Tensor:
    r"""
    Weighted negative log-likelihood of the supervised tokens.

    $$\mathcal{L} = -\frac{1}{D} \sum_{b,t} w_{b,t} \log p_\theta(y_{b,t} \mid y_{b,<t})$$

    Args:
        log_probs (`torch.Tensor` of shape `(batch, seq_len - 1)`):
            Log-probabilities of the labels in nats, zero where a position is not supervised.
        weights (`torch.Tensor` of shape `(batch, seq_len - 1)`):
            Unitless, non-negative; any finite value where a position is not supervised.
        denominator (`torch.Tensor` or `float`):
            $D \ge 0$ of the whole accumulated, gathered batch: tokens, or $\sum w$. A micro-batch's own sum is wrong
            under accumulation. Where it is 0 every weight is 0, and so is the loss; below the least normal number of
            its type, where dividing by it would overflow, the loss is as good as 0 too.

    Returns:
        `torch.Tensor`: scalar, nats per token (or per unit of weight).

    Requirements: one row of weights per row of labels; finite everywhere (`guards.finite` checks before this).

    Relations: weights of one give `SFTTrainer`'s loss; `FlowWeights` fills them from losses under the original model;
    `ContextFreeSFTTrainer` calls it once a stratum.

    Reference: Sanyal et al. 2025, *Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting*, Algorithm 1
    (arXiv 2502.02797).
    """
    return divided((-log_probs * weights).sum(), denominator)


def divided(total: Tensor, denominator: Tensor | float) -> Tensor:
    """A sum over its denominator; where that is 0, or too small to divide by, the sum itself: as good as 0 there."""
    denominator = torch.as_tensor(denominator, device=total.device, dtype=total.dtype)
    return total / torch.where(denominator < torch.finfo(total.dtype).tiny, 1, denominator)


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
