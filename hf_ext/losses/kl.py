"""KL divergence from the original model to the new one: two sampled estimates and the exact value, all in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    keep = mask.bool()
    # where, not a product: a masked position may hold anything, and 0 * inf is NaN.
    return torch.where(keep, values, torch.zeros_like(values)).sum() / keep.sum().clamp(min=1)


def kl_k1(log_p: Tensor, log_q: Tensor, mask: Tensor) -> Tensor:
    r"""
    Sampled KL(original || new): the mean log-ratio of tokens drawn from the original model.

    $$\widehat{\mathrm{KL}}_1 = \frac{1}{|M|} \sum_{(b,t) \in M} \big(\log p(x_{b,t}) - \log q(x_{b,t})\big)$$

    Args:
        log_p (`torch.Tensor` of shape `(batch, seq_len)`):
            Log-probabilities in nats of the tokens under the original model, which sampled them.
        log_q (`torch.Tensor` of shape `(batch, seq_len)`):
            Log-probabilities in nats of the same tokens under the new model.
        mask (`torch.Tensor` of shape `(batch, seq_len)`):
            True or non-zero where the token was sampled. Masked positions may hold any value.

    Returns:
        `torch.Tensor`: scalar, nats per token; 0 if the mask is empty. Unbiased, and negative on some samples.

    Requirements: the tokens were drawn from the original model itself (temperature 1, no filter).

    Relations: `kl_k3` has the same expectation, is never negative, and varies less where the two models are close.

    Reference: Schulman 2020, *Approximating KL Divergence*.
    """
    return _masked_mean(at_least_float32(log_p) - at_least_float32(log_q), mask)


def kl_k3(log_p: Tensor, log_q: Tensor, mask: Tensor) -> Tensor:
    r"""
    Sampled KL(original || new) that is never negative: the log-ratio plus a control variate of mean zero.

    $$\widehat{\mathrm{KL}}_3 = \frac{1}{|M|} \sum_{(b,t) \in M} \big(r_{b,t} - 1 - \log r_{b,t}\big),\quad
    r_{b,t} = \frac{q(x_{b,t})}{p(x_{b,t})}$$

    Args:
        log_p (`torch.Tensor` of shape `(batch, seq_len)`):
            Log-probabilities in nats of the tokens under the original model, which sampled them.
        log_q (`torch.Tensor` of shape `(batch, seq_len)`):
            Log-probabilities in nats of the same tokens under the new model.
        mask (`torch.Tensor` of shape `(batch, seq_len)`):
            True or non-zero where the token was sampled. Masked positions may hold any value.

    Returns:
        `torch.Tensor`: scalar, nats per token, non-negative; 0 if the mask is empty. Unbiased, but heavy-tailed once
        the new model gives much more mass than the original to rare tokens: then trust `kl_k1`.

    Requirements: as `kl_k1`.

    Relations: the expectation of `kl_k1`; summed over the vocabulary instead of sampled it is `exact_kl`.

    Reference: Schulman 2020, *Approximating KL Divergence*.
    """
    log_ratio = at_least_float32(log_q) - at_least_float32(log_p)
    # Clamped: the rounding of expm1 leaves values such as -1e-9 where the ratio is all but one.
    return _masked_mean((torch.expm1(log_ratio) - log_ratio).clamp(min=0), mask)


def exact_kl(original_logits: Tensor, new_logits: Tensor) -> Tensor:
    r"""
    KL(original || new) of the next-token distributions, over the whole vocabulary.

    $$\mathrm{KL}(p \,\|\, q) = \sum_v p_v \log\frac{p_v}{q_v} = \sum_v \big(q_v - p_v - p_v \log\frac{q_v}{p_v}\big)$$

    The second form is the one computed: its terms are non-negative, so nothing cancels where the models are close, and
    at equal logits both the value and the gradient are exactly zero.

    Args:
        original_logits (`torch.Tensor` of shape `(..., vocab_size)`):
            Logits of the original model. `-inf` (a forbidden token) is allowed.
        new_logits (`torch.Tensor` of shape `(..., vocab_size)`):
            Logits of the new model at the same positions.

    Returns:
        `torch.Tensor` of shape `(...)`: nats per position, non-negative, in float32 (float64 for float64 logits);
        infinite where the new model forbids a token that the original allows.

    Requirements: about six temporary tensors as large as the logits; score long rows in chunks of positions.

    Relations: the expectation of `kl_k1` and `kl_k3` over the next token; by the chain rule its mean over positions of
    context-free rows is the sequence KL divided by the number of positions, with less variance than the sampled forms.
    """
    log_p = torch.log_softmax(at_least_float32(original_logits), dim=-1)
    log_q = torch.log_softmax(at_least_float32(new_logits), dim=-1)
    p = log_p.exp()
    q = log_q.exp()
    allowed = log_p > -torch.inf
    log_ratio = torch.where(allowed, log_q - log_p, torch.zeros_like(log_q))
    # The second form in two guises: expm1 where the ratio is near 1 and q - p would cancel, q itself where it is not.
    near = p * (torch.expm1(log_ratio.clamp(-1, 1)) - log_ratio).clamp(min=0)
    far = q - p - p * log_ratio
    return torch.where(allowed & (log_ratio.abs() < 1), near, far).sum(dim=-1)
