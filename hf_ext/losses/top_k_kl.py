"""KL from the original model to the new one over the original's likeliest tokens, and all others as one."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ext.losses.kl import exact_kl
from hf_ext.losses.weighted_nll import at_least_float32

LEAST_REST = 1e-7  # what float32 leaves uncertain of a sum of probabilities: a smaller rest is noise


def top_k_kl(original_log_probs: Tensor, new_log_probs: Tensor) -> Tensor:
    r"""
    A lower bound of KL(original || new): over $k$ tokens $S$ and one lump of all others.

    $$\mathrm{KL}_S(p \,\|\, q) = \sum_{v \in S} p_v \log\frac{p_v}{q_v} + p_r \log\frac{p_r}{q_r} \le
      \mathrm{KL}(p \,\|\, q),\qquad p_r = 1 - \sum_{v \in S} p_v$$

    Telling fewer outcomes apart never adds to a divergence, hence the bound; what the models do inside the lump is not
    seen. Where both give equal log-probabilities value and gradient are exactly zero.

    Args:
        original_log_probs (`torch.Tensor` of shape `(..., k)`):
            Log-probabilities in nats of $k$ different tokens under the original model, usually its likeliest.
        new_log_probs (`torch.Tensor` of shape `(..., k)`):
            Log-probabilities in nats of the same tokens under the new model.

    Returns:
        `torch.Tensor` of shape `(...)`: nats per position, non-negative, in float32 (float64 for float64).

    Requirements: log-probabilities of the whole vocabulary, not renormalised over the $k$ tokens. A rest below 1e-7
    counts as 1e-7.

    Relations: `exact_kl` where the $k$ tokens are the whole vocabulary; `kl_k1` and `kl_k3` see one token.

    Reference: the log-sum inequality; Cover and Thomas 2006, *Elements of Information Theory*, Theorem 2.7.1.
    """
    return exact_kl(_with_rest(original_log_probs), _with_rest(new_log_probs))


def _with_rest(log_probs: Tensor) -> Tensor:
    """The same, and the log-probability of all other tokens together."""
    values = at_least_float32(log_probs)
    covered = torch.logsumexp(values, dim=-1, keepdim=True).clamp(max=-LEAST_REST)
    rest = torch.log(-torch.expm1(covered))
    return torch.cat([values, rest], dim=-1)
