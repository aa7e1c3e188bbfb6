"""The weighted cross-entropy of classifiers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32, divided


def weighted_class_nll(logits: Tensor, labels: Tensor, weights: Tensor, denominator: Tensor | float) -> Tensor:
    r"""
    Weighted negative log-likelihood of each row's class.

    $$\mathcal{L} = -\frac{1}{D} \sum_i w_i \log p_\theta(y_i \mid x_i)$$

    Args:
        logits (`torch.Tensor` of shape `(batch, num_classes)`):
            Unnormalised, finite.
        labels (`torch.Tensor` of shape `(batch,)`):
            Classes, int64; -100 where a row has none, which then counts nothing.
        weights (`torch.Tensor` of shape `(batch,)`):
            Unitless, non-negative.
        denominator (`torch.Tensor` or `float`):
            $D \ge 0$ of the whole accumulated, gathered batch: rows, or $\sum w$. Where it is 0, so is the loss.

    Returns:
        `torch.Tensor`: scalar, nats per row (or per unit of weight).

    Relations: with weights of one and the rows' number as denominator it is `torch.nn.functional.cross_entropy`, bit
    for bit in value and gradient, since both sum in the same kernel.

    Reference: Sanyal et al. 2025, *Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting*, Algorithm 1
    (arXiv 2502.02797).
    """
    log_probs = at_least_float32(logits).log_softmax(dim=1)
    weighted = weights[:, None] * log_probs  # (batch, num_classes)
    return divided(F.nll_loss(weighted, labels, reduction="sum"), denominator)
