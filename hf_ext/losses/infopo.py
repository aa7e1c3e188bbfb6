r"""
Preference losses that are lower bounds on mutual information: the NWJ reading of InfoPO and its relatives.

A pair gives two log-ratios against the reference model, $u_w$ of the chosen and $u_l$ of the rejected response, in
nats per sequence: $u = \log \pi_\theta(y|x) - \log \pi_{ref}(y|x)$, summed over completion tokens. The critic is
$f = \beta u$, or $f = \beta u / n$ with $n$ completion tokens. Each estimator below is a variational bound on how far
the chosen responses' distribution $p_w$ lies from the rejected ones' $p_l$, averaged over prompts; its loss is the
negative bound up to a constant and a factor. Of the five only `infonce` is a difference of rewards.

| estimator | loss $l$ | pull $-\partial l/\partial f_w$ | push $\partial l/\partial f_l$ | bound, $L$ = mean of $l$ |
|---|---|---|---|---|
| `nwj` | $-f_w + e^{f_l}$ | $1$ | $e^{f_l}$ | $1 - L \le$ KL(p_w, p_l) |
| `infonce` | $-\log\sigma(f_w - f_l)$ | $\sigma(f_l - f_w)$ | $\sigma(f_l - f_w)$ | $\log 2 - L \le$ KL, log 2 |
| `jsd` | $\zeta(-f_w) + \zeta(f_l)$ | $\sigma(-f_w)$ | $\sigma(f_l)$ | $\log 2 - L/2 \le$ JS(p_w, p_l) $\le$ log 2 |
| `lsif` | $-e^{f_w} + e^{2 f_l}/2$ | $e^{f_w}$ | $e^{2 f_l}$ | $-2L - 1 \le$ chi-square(p_w, p_l), not nats |
| `nwj_mixture` | $-f_w + (e^{f_w} + e^{f_l})/2$ | $1 - e^{f_w}/2$ | $e^{f_l}/2$ | $1 - L \le$ KL(p_w, m) $\le$ log 2 |

($\sigma$ the logistic function, $\zeta$ softplus, $m = (p_w + p_l)/2$. Gradients in $u$ are $\beta$ times those in
$f$, $\beta / n$ times where normalised. `lsif` is not convex in $f$ and pulls least where a chosen response fell most;
`nwj_mixture` pulls back once $f_w > \log 2$: both are for comparison.)

**Derivation of `nwj`.** For any critic $T$, $\mathrm{KL}(p \| q) \ge E_p[T] - E_q[e^{T - 1}]$ (Nguyen, Wainwright and
Jordan). With $p = p_w$, $q = p_l$ and $T = 1 + f$ the right side is $1 + E_w[f_w] - E_l[e^{f_l}] = 1 - E[l]$: 0 where
policy and reference are equal, and tight at $e^f = p_w / p_l$, that is $\pi \propto \pi_{ref} (p_w / p_l)^{1/\beta}$.

**What it does to the chosen response.** Its pull on $u_w$ is constant, while its push on $u_l$ decays as $e^{f_l}$. In
DPO (`infonce`) both carry one factor, so $u_w$ may fall for as long as $u_l$ falls faster. At $\pi = \pi_{ref}$ the
`nwj` gradient is exactly twice DPO's: the first steps are the same, and nothing here promises that the chosen
likelihood never falls.

The equation of the InfoPO paper itself was not available to the authors of this module: this is *the NWJ reading* of
it, and the estimator is a named choice.

Reference: Xiao et al. 2025, *InfoPO: On Mutual Information Maximization for Large Language Model Alignment* (arXiv
2505.08507). Nguyen, Wainwright and Jordan 2010, *Estimating Divergence Functionals and the Likelihood Ratio by Convex
Risk Minimization* (`nwj`). Oord et al. 2018 (`infonce`). Nowozin et al. 2016, *f-GAN* (`jsd`). Kanamori et al. 2009
(`lsif`).
"""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.losses.weighted_nll import at_least_float32

ESTIMATORS = ("nwj", "infonce", "jsd", "lsif", "nwj_mixture")
UNPAIRED_ESTIMATORS = tuple(name for name in ESTIMATORS if name != "infonce")

# The value no critic can exceed, in nats; None where the bound has no ceiling.
MI_CEILING: dict[str, float | None] = {
    "nwj": None,
    "infonce": math.log(2),
    "jsd": math.log(2),
    "lsif": None,
    "nwj_mixture": math.log(2),
}

LARGEST_EXPONENT = 80.0  # exp(80) is 5.5e34; float32 ends at 3.4e38


class InfoPOOutput(NamedTuple):
    """
    What the two losses return. All but `clipped` are float32 (float64 for float64 log-ratios).

    Args:
        losses (`torch.Tensor` of shape `(batch,)`):
            Loss of each pair, or of each row of [`infopo_unpaired_loss`]; differentiable, not yet averaged.
        chosen_critic (`torch.Tensor` of shape `(batch,)`):
            $f_w$, detached. Of unpaired rows: the critics of the positive rows, shape `(positives,)`.
        rejected_critic (`torch.Tensor` of shape `(batch,)`):
            $f_l$, detached. Of unpaired rows: the critics of the negative rows, shape `(batch - positives,)`.
        clipped (`torch.Tensor` of shape `(batch,)`):
            Whether an exponent of the pair (of the row) lies above `max_exponent`, so that its tangent stands in.
    """

    losses: Tensor
    chosen_critic: Tensor
    rejected_critic: Tensor
    clipped: Tensor


def bounded_exp(exponent: Tensor, max_exponent: float = 10.0) -> Tensor:
    r"""
    `exp`, continued above `max_exponent` $= c$ by its tangent, $e^c (1 + x - c)$.

    Value and slope are continuous and the function is convex, so a runaway exponent is still pushed down, by $e^c$; a
    clamp would leave it there with gradient zero. Up to $c$ it is `torch.exp`, bit for bit.

    Args:
        exponent (`torch.Tensor`):
            Any shape, unitless.
        max_exponent (`float`, *optional*, defaults to `10.0`):
            $c$, in (0, 80].

    Returns:
        `torch.Tensor`: same shape, float32 at least. Finite for every finite half-precision input at the default $c$.

    Raises:
        ValueError: if `max_exponent` is out of range.
    """
    _check_max_exponent(max_exponent)
    exponent = at_least_float32(exponent)
    tangent = math.exp(max_exponent) * (1 + (exponent - max_exponent))
    inside = exponent <= max_exponent
    # where, not clamp: at the bound itself clamp's slope is 1 or 0, depending on torch's version.
    return torch.where(inside, torch.exp(torch.where(inside, exponent, max_exponent)), tangent)


def check_estimator(estimator: str, *, paired: bool = True) -> None:
    """
    Refuse an estimator that does not exist, or that needs pairs where there are none.

    Raises:
        ValueError: if it does; the message holds the names there are, the closest match, and for `dv` and unpaired
            `infonce` the alternative.
    """
    names = ESTIMATORS if paired else UNPAIRED_ESTIMATORS
    if estimator in names:
        return
    if estimator == "dv":
        raise ValueError(
            "estimator='dv' (Donsker-Varadhan) takes the logarithm of a mean over the micro-batch: it is biased, and "
            "changes with gradient accumulation and the number of processes. Use 'nwj', a bound on the same "
            "divergence without the logarithm."
        )
    if estimator == "infonce":
        raise ValueError(
            "estimator='infonce' compares the two responses of a pair, and unpaired rows have no partner. Use 'jsd', "
            "which has the same ceiling, or 'nwj'."
        )
    close = difflib.get_close_matches(str(estimator), names, n=1, cutoff=0.4)
    raise ValueError(
        f"estimator={estimator!r} is not one of {', '.join(names)}."
        + (f" Did you mean {close[0]!r}?" if close else "")
    )


def infopo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    *,
    estimator: str = "nwj",
    beta: float = 0.1,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    max_exponent: float = 10.0,
) -> InfoPOOutput:
    r"""
    Loss of preference pairs; the table of losses, gradients and ceilings is in the module's docstring.

    $$l_{\text{nwj}} = -f_w + e^{f_l},\qquad f = \beta u \text{ or } \beta u / n$$

    Args:
        chosen_logratios (`torch.Tensor` of shape `(batch,)`):
            $u_w$: log-probability of the chosen completion minus the reference's, summed over tokens, in nats.
        rejected_logratios (`torch.Tensor` of shape `(batch,)`):
            $u_l$, likewise.
        estimator (`str`, *optional*, defaults to `"nwj"`):
            One of `ESTIMATORS`.
        beta (`float`, *optional*, defaults to `0.1`):
            $\beta > 0$: critic per nat of log-ratio; with lengths, critic per nat per token. A larger one retires the
            push on the rejected response sooner. To keep that pace with lengths, multiply by the mean length.
        chosen_lengths, rejected_lengths (`torch.Tensor` of shape `(batch,)`, *optional*):
            Completion tokens: the log-ratios are divided by them. 0 (nothing left after truncation) counts as 1.
        max_exponent (`float`, *optional*, defaults to `10.0`):
            Exponents above it are continued by the tangent of exp, see [`bounded_exp`]; in (0, 80].

    Returns:
        [`InfoPOOutput`]: losses and critics of shape `(batch,)`.

    Raises:
        ValueError: if the estimator is unknown, `beta` or `max_exponent` is out of range, lengths come for one side
            only, or shapes differ.

    Requirements: finite log-ratios (`guards.finite` checks before this). A row weight multiplies `losses`.

    Relations: `infonce` is DPO (`sigmoid` of [`~trl.DPOTrainer`]), `jsd` its `bco_pair`; `nwj` at log-ratios of 0 has
    twice DPO's gradient. [`mi_estimate`] turns the critics into nats; [`infopo_unpaired_loss`] needs no pairs.

    Reference: Xiao et al. 2025 (arXiv 2505.08507), in the NWJ reading.
    """
    check_estimator(estimator)
    if chosen_logratios.shape != rejected_logratios.shape:
        raise ValueError(
            f"chosen_logratios {tuple(chosen_logratios.shape)} and rejected_logratios "
            f"{tuple(rejected_logratios.shape)} must have one entry a pair each."
        )
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("Give chosen_lengths and rejected_lengths, or neither.")
    chosen = _critic(chosen_logratios, beta, chosen_lengths)
    rejected = _critic(rejected_logratios, beta, rejected_lengths)
    if estimator == "infonce":
        _check_max_exponent(max_exponent)
        losses = -F.logsigmoid(chosen - rejected)
    else:
        losses = _positive_term(chosen, estimator, max_exponent) + _negative_term(rejected, estimator, max_exponent)
    clipped = _clipped(chosen, rejected, estimator, max_exponent)
    return InfoPOOutput(losses, chosen.detach(), rejected.detach(), clipped)


def infopo_unpaired_loss(
    logratios: Tensor,
    labels: Tensor,
    *,
    estimator: str = "nwj",
    beta: float = 0.1,
    positive_fraction: float = 0.5,
    lengths: Tensor | None = None,
    max_exponent: float = 10.0,
) -> InfoPOOutput:
    r"""
    Loss of single responses labelled good or bad: the bound is a sum of two expectations, so pairs were never needed.

    $$l_i = \frac{[y_i \text{ good}]}{2\rho}\, a(f_i) + \frac{[y_i \text{ bad}]}{2(1-\rho)}\, b(f_i)$$

    with $a(f_w) + b(f_l)$ the loss of a pair: for `nwj`, $a = -f$ and $b = e^f$.

    Args:
        logratios (`torch.Tensor` of shape `(batch,)`):
            $u$: log-probability of the completion minus the reference's, summed over tokens, in nats.
        labels (`torch.Tensor` of shape `(batch,)`):
            Whether the response is good; bool, or 0 and 1.
        estimator (`str`, *optional*, defaults to `"nwj"`):
            One of `UNPAIRED_ESTIMATORS`.
        beta (`float`, *optional*, defaults to `0.1`):
            As in [`infopo_loss`].
        positive_fraction (`float`, *optional*, defaults to `0.5`):
            $\rho$ in (0, 1): the share of good rows in the **data set**. The micro-batch's own share would be biased,
            and can be 0. With the data set's the mean loss over micro-batches is the whole's, and its expectation half
            the mean loss of pairs.
        lengths (`torch.Tensor` of shape `(batch,)`, *optional*):
            Completion tokens: the log-ratios are divided by them. 0 counts as 1.
        max_exponent (`float`, *optional*, defaults to `10.0`):
            As in [`infopo_loss`].

    Returns:
        [`InfoPOOutput`]: `losses` and `clipped` of shape `(batch,)`; `chosen_critic` holds the critics of the positive
        rows and `rejected_critic` those of the negative rows, in their order. Either may be empty.

    Raises:
        ValueError: if the estimator is unknown or `infonce` (which needs pairs), `beta`, `max_exponent` or
            `positive_fraction` is out of range, or shapes differ.

    Relations: pairs split into two rows, with $\rho = 1/2$: the row mean is half of [`infopo_loss`]'s mean. The data
    set's bound in nats therefore follows from twice the mean loss by the last column of the module's table.

    Reference: Xiao et al. 2025 (arXiv 2505.08507), in the NWJ reading; unpaired rows are an extension of it.
    """
    check_estimator(estimator, paired=False)
    if labels.shape != logratios.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and logratios {tuple(logratios.shape)} must have one shape.")
    if not 0 < positive_fraction < 1:
        raise ValueError(
            f"positive_fraction must lie between 0 and 1, got {positive_fraction!r}: with one class only the bound "
            "has no maximum. Add rows of the other class, or train on the good ones with SFTTrainer."
        )
    good = labels.bool()
    critic = _critic(logratios, beta, lengths)
    # where on both sides, not a product: the exponential of the wrong side may be infinite, and 0 * inf is NaN.
    zero = torch.zeros_like(critic)
    positive = _positive_term(torch.where(good, critic, zero), estimator, max_exponent) / (2 * positive_fraction)
    negative = _negative_term(torch.where(good, zero, critic), estimator, max_exponent) / (2 * (1 - positive_fraction))
    losses = torch.where(good, positive, negative)
    clipped = _clipped(torch.where(good, critic, zero), torch.where(good, zero, critic), estimator, max_exponent)
    critic = critic.detach()
    return InfoPOOutput(losses, critic[good], critic[~good], clipped)


@torch.no_grad()
def mi_estimate(
    chosen_critic: Tensor, rejected_critic: Tensor, *, estimator: str = "nwj", max_exponent: float | None = None
) -> Tensor:
    r"""
    The bound that an estimator has reached, from the critics of chosen and rejected responses.

    Args:
        chosen_critic (`torch.Tensor` of shape `(batch,)`):
            $f_w$.
        rejected_critic (`torch.Tensor` of shape `(batch,)`, or another length where unpaired):
            $f_l$.
        estimator (`str`, *optional*, defaults to `"nwj"`):
            One of `ESTIMATORS`; need not be the one trained with. `jsd` stays readable where exp explodes.
        max_exponent (`float`, *optional*):
            The training's cap: the value is then finite and affine in the training loss, but no bound any more where
            pairs are clipped. Without it the exponentials are exact, and the value -inf where they overflow.

    Returns:
        `torch.Tensor`: scalar in nats (`lsif`: the unitless chi-square bound), 0 where all critics are 0, never above
        `MI_CEILING[estimator]`. A sample mean: noisy for `nwj` where $f_l > 0$, and then often negative. NaN where a
        side is empty.

    Raises:
        ValueError: if the estimator is unknown, or it is `infonce` and the sides have different lengths.
    """
    check_estimator(estimator)
    chosen = at_least_float32(chosen_critic)
    rejected = at_least_float32(rejected_critic)
    if estimator == "infonce":
        if chosen.shape != rejected.shape:
            raise ValueError("estimator='infonce' compares the responses of a pair: give both of each.")
        return bound_of_loss(-F.logsigmoid(chosen - rejected).mean(), estimator)
    positive = _positive_term(chosen, estimator, max_exponent).mean()
    return bound_of_loss(positive + _negative_term(rejected, estimator, max_exponent).mean(), estimator)


def bound_of_loss(loss: Tensor, estimator: str = "nwj") -> Tensor:
    """
    The bound that a loss of pairs stands for: the last column of the module's table, with equality.

    Args:
        loss (`torch.Tensor` of any shape):
            A mean of [`infopo_loss`]'s losses, twice that of [`infopo_unpaired_loss`]'s, or the losses themselves.
        estimator (`str`, *optional*, defaults to `"nwj"`):
            The estimator the loss is of.

    Returns:
        `torch.Tensor`: nats (`lsif`: unitless), of the loss's shape. The mean of the pairs' values is the bound.
    """
    check_estimator(estimator)
    if estimator == "infonce":
        return math.log(2) - loss
    if estimator == "jsd":
        return math.log(2) - loss / 2
    return -2 * loss - 1 if estimator == "lsif" else 1 - loss


@torch.no_grad()
def pull_and_push(
    chosen_critic: Tensor, rejected_critic: Tensor, *, estimator: str = "nwj", max_exponent: float = 10.0
) -> tuple[Tensor, Tensor]:
    r"""
    How hard the loss pulls the chosen response up and pushes the rejected one down, per unit of critic.

    Args:
        chosen_critic, rejected_critic (`torch.Tensor` of shape `(batch,)`):
            $f_w$ and $f_l$; of one length for `infonce`.
        estimator (`str`, *optional*, defaults to `"nwj"`):
            One of `ESTIMATORS`.
        max_exponent (`float`, *optional*, defaults to `10.0`):
            As in [`infopo_loss`]: the slope stays at its exponential above it.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: $-\partial l/\partial f_w$ and $\partial l/\partial f_l$, each of shape
        `(batch,)`, unitless. Their ratio is 1 at the reference and falls to 0 as the `nwj` push retires.
    """
    check_estimator(estimator)
    _check_max_exponent(max_exponent)
    chosen = at_least_float32(chosen_critic)
    rejected = at_least_float32(rejected_critic)
    if estimator == "infonce":
        force = torch.sigmoid(rejected - chosen)
        return force, force
    if estimator == "jsd":
        return torch.sigmoid(-chosen), torch.sigmoid(rejected)
    if estimator == "lsif":
        return chosen.clamp(max=max_exponent).exp(), (2 * rejected).clamp(max=max_exponent).exp()
    push = rejected.clamp(max=max_exponent).exp()
    if estimator == "nwj":
        return torch.ones_like(chosen), push
    return 1 - chosen.clamp(max=max_exponent).exp() / 2, push / 2


# --- the two sides of a pair -----------------------------------------------------------------------------------------


def _positive_term(critic: Tensor, estimator: str, max_exponent: float | None) -> Tensor:
    if estimator == "nwj":
        return -critic
    if estimator == "jsd":
        return -F.logsigmoid(critic)  # F.softplus drops exp(-x) above its threshold of 20
    if estimator == "lsif":
        return -_exp(critic, max_exponent)
    return _exp(critic, max_exponent) / 2 - critic


def _negative_term(critic: Tensor, estimator: str, max_exponent: float | None) -> Tensor:
    if estimator == "nwj":
        return _exp(critic, max_exponent)
    if estimator == "jsd":
        return -F.logsigmoid(-critic)
    if estimator == "lsif":
        return _exp(2 * critic, max_exponent) / 2
    return _exp(critic, max_exponent) / 2


def _clipped(chosen: Tensor, rejected: Tensor, estimator: str, max_exponent: float) -> Tensor:
    if estimator in ("infonce", "jsd"):
        return torch.zeros_like(chosen, dtype=torch.bool)
    if estimator == "nwj":
        return rejected > max_exponent
    return (chosen > max_exponent) | ((2 * rejected if estimator == "lsif" else rejected) > max_exponent)


def _exp(exponent: Tensor, max_exponent: float | None) -> Tensor:
    return torch.exp(exponent) if max_exponent is None else bounded_exp(exponent, max_exponent)


def _critic(logratios: Tensor, beta: float, lengths: Tensor | None) -> Tensor:
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive, finite number, got {beta!r}.")
    critic = beta * at_least_float32(logratios)
    if lengths is None:
        return critic
    if lengths.shape != logratios.shape:
        raise ValueError(f"lengths {tuple(lengths.shape)} and logratios {tuple(logratios.shape)} must have one shape.")
    return critic / lengths.clamp(min=1)


def _check_max_exponent(max_exponent: float) -> None:
    if not 0 < max_exponent <= LARGEST_EXPONENT:
        raise ValueError(f"max_exponent must lie in (0, {LARGEST_EXPONENT:g}], got {max_exponent!r}.")
