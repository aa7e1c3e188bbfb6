"""What InfoPO logs of a batch, as sums: their ratios are means over micro-batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_ext.losses.infopo import (
    MI_CEILING,
    InfoPOOutput,
    bound_of_loss,
    infopo_loss,
    infopo_unpaired_loss,
    pull_and_push,
)

Ratios = dict[str, tuple[Tensor, Tensor]]
"""Metric to numerator and denominator."""


def pair_ratios(chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Ratios:
    """
    What the two sides of pairs do, whatever the loss.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(pairs,)`):
            Log-ratios $u_w$ and $u_l$ against the reference, in nats per sequence.
        chosen_lengths, rejected_lengths (`torch.Tensor` of shape `(pairs,)`):
            Completion tokens.

    Returns:
        `dict`: `chosen_delta` and `rejected_delta` (mean $u/n$, nats per token), `chosen_dropped` (share of pairs with
        $u_w < 0$) and `squeeze` (mean of $-(u_w + u_l)/2$, nats per sequence, over pairs where both fall while the
        margin rises, other pairs counting 0).
    """
    count = torch.ones_like(chosen)
    both_fall = (chosen < 0) & (rejected < 0) & (chosen > rejected)
    squeeze = torch.where(both_fall, -(chosen + rejected) / 2, torch.zeros_like(chosen))
    return {
        "chosen_delta": (chosen / chosen_lengths.clamp(min=1), count),
        "rejected_delta": (rejected / rejected_lengths.clamp(min=1), count),
        "chosen_dropped": ((chosen < 0).float(), count),
        "squeeze": (squeeze, count),
    }


def paired_bound_ratios(output: InfoPOOutput, estimator: str, max_exponent: float, reference_free: bool) -> Ratios:
    """
    The estimator's state on pairs.

    Args:
        output ([`InfoPOOutput`]):
            Of [`infopo_loss`].
        estimator (`str`), max_exponent (`float`):
            Those of the loss.
        reference_free (`bool`):
            Without a reference there is no bound: `mi` and `mi_js` are left out.

    Returns:
        `dict`: `mi`, `mi_js` and, where there is one, `mi_ceiling` (nats), `push_pull` (the mean push on rejected
        responses over the mean pull on chosen ones) and `clipped` (share of pairs beyond `max_exponent`).
    """
    chosen = output.chosen_critic
    rejected = output.rejected_critic
    count = torch.ones_like(chosen)
    js = infopo_loss(chosen, rejected, estimator="jsd", beta=1.0).losses  # of critics: beta is in them
    pull, push = pull_and_push(chosen, rejected, estimator=estimator, max_exponent=max_exponent)
    ratios: Ratios = {"push_pull": (push, pull), "clipped": (output.clipped.float(), count)}
    if not reference_free:
        ratios["mi"] = (bound_of_loss(output.losses.detach(), estimator), count)
        ratios["mi_js"] = (bound_of_loss(js, "jsd"), count)
        ceiling = MI_CEILING[estimator]
        if ceiling is not None:
            ratios["mi_ceiling"] = (ceiling * count, count)
    return ratios


def host_bound_ratios(chosen: Tensor, rejected: Tensor, beta: float) -> Ratios:
    """The `jsd` bound (nats) of pairs that another loss trains on, from their log-ratios in nats per sequence."""
    losses = infopo_loss(chosen.detach(), rejected.detach(), estimator="jsd", beta=beta).losses
    return {"mi_js": (bound_of_loss(losses, "jsd"), torch.ones_like(losses))}


def unpaired_ratios(
    logratios: Tensor, labels: Tensor, lengths: Tensor, output: InfoPOOutput, settings: dict[str, Any]
) -> Ratios:
    """
    The same of single responses: the bounds follow from the mean row loss, which is half a pair's.

    Args:
        logratios, labels, lengths (`torch.Tensor` of shape `(rows,)`):
            Log-ratios in nats per sequence, whether the response is good, completion tokens.
        output ([`InfoPOOutput`]):
            Of [`infopo_unpaired_loss`].
        settings (`dict`):
            The keyword arguments it was called with, and `reference_free`.

    Returns:
        `dict`: as for pairs, without `squeeze`, which compares the two responses of one prompt.
    """
    good = labels.bool()
    pulled = good.float()
    pushed = (~good).float()
    count = torch.ones_like(pulled)
    delta = logratios / lengths.clamp(min=1)
    arguments = {name: value for name, value in settings.items() if name != "reference_free"}
    estimator = arguments["estimator"]
    critics = torch.zeros_like(logratios)
    critics[good] = output.chosen_critic.to(critics)
    critics[~good] = output.rejected_critic.to(critics)
    pull, push = pull_and_push(critics, critics, estimator=estimator, max_exponent=arguments["max_exponent"])
    share = arguments["positive_fraction"]
    ratios: Ratios = {
        "chosen_delta": (delta * pulled, pulled),
        "rejected_delta": (delta * pushed, pushed),
        "chosen_dropped": (pulled * (logratios < 0), pulled),
        "push_pull": (push * pushed / (1 - share), pull * pulled / share),
        "clipped": (output.clipped.float(), count),
    }
    if not settings["reference_free"]:
        for name, bound in (("mi", estimator), ("mi_js", "jsd")):
            bound_arguments = arguments | {"estimator": bound}
            policy_bound, reference_bound = (
                bound_of_loss(2 * infopo_unpaired_loss(values, labels, **bound_arguments).losses, bound)
                for values in (logratios, torch.zeros_like(logratios))
            )
            # Row by row against the loss at the reference, where every bound is 0: the same mean as from the losses
            # themselves, without the noise of which classes a batch happens to hold.
            ratios[name] = (policy_bound - reference_bound, count)
        ceiling = MI_CEILING[estimator]
        if ceiling is not None:
            ratios["mi_ceiling"] = (ceiling * count, count)
    return ratios
