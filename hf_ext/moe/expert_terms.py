"""What each expert says of a row's label: its log-likelihood, and the slope of that in the expert's outputs."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def expert_terms(outputs: Tensor, y: Tensor, log_variance: Tensor, expert_type: str) -> tuple[Tensor, Tensor]:
    """
    Log-likelihood of labels under each expert, and what its slope in the outputs is made of.

    Args:
        outputs (`torch.Tensor` of shape `(n, A, k, m)`):
            Logits, or means, of A restarts.
        y (`torch.Tensor` of shape `(n,)`, linear experts `(n, m)`):
            Classes, or standardised numbers.
        log_variance (`torch.Tensor` of shape `(A, k)`):
            Of linear experts.
        expert_type (`str`):
            One of `hf_ext.losses.moe_likelihood.EXPERT_TYPES`, whose table this follows.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: nats `(n, A, k)`; and `(n, A, k, m)`, probabilities of softmax experts,
        otherwise prediction minus label.
    """
    if expert_type == "linear":
        error = outputs - y[:, None, None, :]
        width = outputs.shape[-1]
        constant = math.log(2 * math.pi) + log_variance
        return -0.5 * (width * constant + error.square().sum(-1) * (-log_variance).exp()), error
    if expert_type == "logistic":
        labels = y.to(outputs).view(-1, 1, 1)
        logits = outputs[..., 0]
        return F.logsigmoid((2 * labels - 1) * logits), logits.sigmoid().sub_(labels).unsqueeze(-1)
    index = y.view(-1, 1, 1, 1).expand(*outputs.shape[:-1], 1)
    probabilities = outputs.softmax(-1)
    # The most probable class has probability 1 over the sum of exponentials: one exponential serves value and slope.
    log_total = outputs.amax(-1) - probabilities.amax(-1).log()
    return outputs.gather(-1, index).squeeze(-1) - log_total, probabilities


def mixed_terms(outputs: Tensor, weights: Tensor, labels: Tensor, expert_type: str) -> tuple[Tensor, Tensor]:
    """
    As [`expert_terms`], for the expected labels of a partial step.

    Args:
        outputs (`torch.Tensor` of shape `(n, A, k, m)`):
            Logits of logistic or softmax experts.
        weights (`torch.Tensor` of shape `(n, A, k)`), labels (`torch.Tensor` of shape `(n, A, k, m)`):
            As in [`~hf_ext.moe.objective.Targets`].
        expert_type (`str`):
            `"logistic"` or `"softmax"`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: weighted nats `(n, A, k)`, and probabilities `(n, A, k, m)`.
    """
    if expert_type == "logistic":
        positive = F.logsigmoid(outputs)
        negative = F.logsigmoid(-outputs)
        return (labels * positive + (weights.unsqueeze(-1) - labels) * negative).sum(-1), outputs.sigmoid()
    log_probabilities = outputs.log_softmax(-1)
    return (labels * log_probabilities).sum(-1), log_probabilities.exp()
