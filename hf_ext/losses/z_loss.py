"""The loss of pretraining: next tokens, and a pull on the logarithm of the softmax's normaliser."""

from __future__ import annotations

from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32, divided


def next_token_nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    Negative log-likelihood of each target, and the logarithm of its softmax's normaliser.

    $$\log Z_{b,t} = \log \sum_v \exp z_{b,t,v},\quad -\log p_{b,t} = \log Z_{b,t} - z_{b,t,y_{b,t}}$$

    Args:
        logits (`torch.Tensor` of shape `(batch, seq_len, vocab_size)`):
            Unnormalised log-probabilities; of half precision they are taken to float32.
        targets (`torch.Tensor` of shape `(batch, seq_len)`):
            The token that each position predicts; every one counts.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: both of shape `(batch, seq_len)`, in nats.
    """
    logits = at_least_float32(logits)
    log_normalizers = logits.logsumexp(dim=-1)
    return log_normalizers - logits.gather(-1, targets[..., None])[..., 0], log_normalizers


def z_loss(log_normalizers: Tensor, denominator: Tensor | float) -> Tensor:
    r"""
    Mean squared logarithm of the normaliser, which keeps logits from drifting away together.

    $$\mathcal{L}_z = \frac{1}{D} \sum_{b,t} \log^2 Z_{b,t}$$

    A softmax does not change when all its logits grow by the same number, so nothing else holds them; in bf16 large
    ones lose digits, and training grows unstable. The gradient in a logit is $2 p_v \log Z / D$.

    Args:
        log_normalizers (`torch.Tensor` of shape `(batch, seq_len)`):
            From [`next_token_nll`], in nats.
        denominator (`torch.Tensor` or `float`):
            $D \ge 0$ of the whole accumulated, gathered batch: its number of tokens.

    Returns:
        `torch.Tensor`: scalar, nats squared per token.

    Relations: added to the mean of [`next_token_nll`] with a weight of 1e-4 (DCLM up to 3B) or 5e-6 (7B), in nats per
    squared nat; a weight of 0 gives the plain loss.

    Reference: Chowdhery et al. 2022, *PaLM*, section 5 (arXiv 2204.02311); Li et al. 2024, *DataComp-LM* (arXiv
    2406.11794).
    """
    return divided(log_normalizers.square().sum(), denominator)
