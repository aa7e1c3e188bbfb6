"""FLOW's arithmetic on losses under the original model: temperatures, weights, their scale. No model, no dataset."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_ext.data.sft_rows import is_per_token
from hf_ext.guards.weights import LEAST_WEIGHT

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

NEGLIGIBLE = 1e-3
"""A weight below this share of the mean teaches next to nothing; such rows are counted."""

WEIGHT_SCALES = ("mean", "none")
MOST_SOURCES = 1000  # beyond it a column of identifiers was named


# --- temperatures ----------------------------------------------------------------------------------------------------


def effective_sample_size_ratio(weights: NDArray[np.float64]) -> float:
    r"""$(\sum w)^2 / (n \sum w^2)$, in (0, 1]: 1 when all weights are equal (then FLOW does nothing)."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def temperature_of(losses: NDArray[np.float64], rule: str = "median") -> float:
    """[`flow_temperature`] on an array of mean losses, shape `(documents,)`, nats per token."""
    if len(losses) == 0:
        raise ValueError("There is no document to take a temperature from: the dataset is empty.")
    if rule == "median":
        tau = float(np.median(losses))
        if tau <= 0:
            raise ValueError(
                "The median loss under the original model is 0: more than half of the documents are duplicated or "
                "memorised, and the median rule has no temperature. Deduplicate, or pass tau as a number or 'ess:0.8'."
            )
        return tau
    kind, _, share = rule.partition(":")
    try:
        target = float(share)
    except ValueError:
        target = math.nan
    if kind != "ess" or not 0 < target < 1:
        raise ValueError(
            f"rule must be 'median' or 'ess:SHARE' with SHARE in (0, 1), such as 'ess:0.8'; got {rule!r}."
        )
    return _temperature_for_ess(losses, target)


def _temperature_for_ess(losses: NDArray[np.float64], target: float) -> float:
    excess = losses - losses.min()  # a common factor of the weights cancels in ESS, and large losses do not underflow
    lowest_share = float((excess == 0).mean())
    if lowest_share >= target:
        raise ValueError(
            f"ESS/n cannot fall to {target}: {lowest_share:.0%} of the documents share the lowest loss. "
            "Deduplicate, choose a larger share, or use rule='median'."
        )

    def ratio(log_tau: float) -> float:
        return effective_sample_size_ratio(np.exp(-excess / math.exp(log_tau)))

    low = math.log(excess.max()) - 50.0
    high = math.log(excess.max()) + 50.0
    for _ in range(200):  # ESS/n grows with tau: bisection
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < target else (low, middle)
    return math.exp((low + high) / 2)


# --- weights ---------------------------------------------------------------------------------------------------------


def means_of(sums: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """
    Mean losses of documents, shape `(documents,)`, nats per token, from their sums and numbers of tokens.

    Raises:
        ValueError: if a sum is not finite or a document has no supervised token; it names the document.
    """
    total = np.asarray(sums, dtype=np.float64)
    tokens = np.asarray(counts, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(total) | ~(tokens > 0))
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"document {i:,}: original_nll_sum={total[i]}, original_num_tokens={tokens[i]:g}: a document needs a "
            "finite loss and at least one supervised token. Drop it, or score the rows again in a wider precision."
        )
    return total / tokens


@dataclass(frozen=True)
class FlowWeights:
    r"""
    Weight rows by how easy the original model finds them: `exp(-(nll - shift) / tau)`, `nll` a mean over tokens.

    | column in | type | column out | type |
    |---|---|---|---|
    | `original_nll_sum` | float, nats (a list where packed) | `weight` | float; 0 past 745 tau beyond `shift` |
    | `original_num_tokens` | int (a list where packed) | | (a list, one per token, where packed) |
    | `seq_lengths` (packed only) | list of int | | |

    Args:
        tau (`float`):
            Temperature in nats per token; without a shift the median document gets `exp(-1)` under the median rule.
        shift (`float`, *optional*, defaults to `0.0`):
            Loss of weight 1, nats per token: a common factor of all weights. [`add_flow_weights`] chooses it so that
            the weights' mean over the tokens is 1; 0 is the paper's letter.
        floor (`float`, *optional*, defaults to `0.0`):
            Least weight, on the scale that `shift` gives.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Proposition 4.3: the weights that never prefer a harder row,
    regularised by entropy.
    """

    tau: float
    shift: float = 0.0
    floor: float = 0.0
    revision: str = "2"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(
                f"tau must be a positive, finite number of nats per token, got {self.tau!r}. "
                "Use flow_temperature(dataset) to compute the median."
            )
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"floor must be a finite weight of at least 0, got {self.floor!r}.")

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Weights of one batch."""
        sums = batch["original_nll_sum"]
        counts = batch["original_num_tokens"]
        if not len(sums) or not is_per_token(sums[0]):  # one number a document of a packed row
            return {"weight": self.of_losses(means_of(sums, counts)).tolist()}
        spread = []
        for s, n, lengths in zip(sums, counts, batch["seq_lengths"], strict=True):
            # A fragment of a split document may hold prompt only: no token of it counts, whatever its weight.
            supervised = np.asarray(n) > 0
            weight = np.zeros(len(n))
            weight[supervised] = self.of_losses(means_of(np.asarray(s)[supervised], np.asarray(n)[supervised]))
            spread.append(np.repeat(weight, lengths).tolist())
        return {"weight": spread}

    def of_losses(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of documents (or tokens) with these mean losses, of any shape, nats per token."""
        return np.maximum(np.exp(-(losses - self.shift) / self.tau), self.floor)


def flow_weights_at(
    losses: NDArray[np.float64],
    tau: float,
    counts: NDArray[np.float64] | None = None,
    *,
    weight_scale: str = "mean",
    floor: float = 0.0,
) -> FlowWeights:
    r"""
    FLOW's weights at a temperature, on one of two scales.

    $$w_i = \max\Big(\frac{e^{-\ell_i / \tau}}{c},\ f\Big), \quad c \text{ such that } \sum_i n_i w_i = \sum_i n_i$$

    under `"mean"`; `"none"` multiplies them by $c$ again, so that they are $e^{-\ell_i / \tau}$ where no floor is. All
    is computed from logarithms in float64: no $e^{-\ell_i / \tau}$ has to exist.

    Args:
        losses (`numpy.ndarray` of shape `(documents,)`):
            Mean losses under the original model, nats per token.
        tau (`float`):
            Temperature, nats per token.
        counts (`numpy.ndarray` of shape `(documents,)`, *optional*):
            $n_i > 0$: what each document counts in the loss, its supervised tokens. Defaults to 1 each.
        weight_scale (`str`, *optional*, defaults to `"mean"`):
            `"mean"`: their mean is 1, and the least is a normal number of float32; `"none"`: the paper's letter.
        floor (`float`, *optional*, defaults to `0.0`):
            $f$: least weight relative to the mean, at least 0 and below 1.

    Raises:
        ValueError: if next to the easiest document's weight every other one vanishes in float32, or under `"none"`
            those that count do.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Algorithm 1, which leaves out the constant $c$.
    """
    counts = np.ones(len(losses)) if counts is None else np.asarray(counts, dtype=np.float64)
    if floor == 0:
        _refuse_one_left(losses, tau)
    shift = _shift_of_mean_one(losses, counts, tau, floor)
    if weight_scale == "mean":
        return FlowWeights(tau, shift, max(floor, LEAST_WEIGHT))
    mean = math.exp(-shift / tau)
    if mean * NEGLIGIBLE < LEAST_WEIGHT:
        raise ValueError(
            f"tau={tau:.3g} nats per token is too small for weight_scale='none': the mean of exp(-loss / tau) is "
            f"{mean:.2g}, and float32, in which losses are computed, ends at {LEAST_WEIGHT:.2g}. "
            "Take weight_scale='mean', or raise tau."
        )
    return FlowWeights(tau, 0.0, floor * mean)


def _refuse_one_left(losses: NDArray[np.float64], tau: float) -> None:
    reach = -math.log(LEAST_WEIGHT) * tau  # nats per token beyond the easiest at which a weight vanishes
    excess = losses - losses.min()
    vanish = excess > reach
    if vanish.any() and (vanish | (excess == 0)).all():
        raise ValueError(
            f"tau={tau:.3g} nats per token is too small: next to the easiest document, whose mean loss under the "
            f"original model is {losses.min():.3g}, every other one's weight vanishes in float32 (the next is "
            f"{excess[excess > 0].min():.3g} nats per token harder, and {reach:.3g} is the limit), so that nothing "
            "would be learned from them. Raise tau, or take 'median'."
        )


def _shift_of_mean_one(losses: NDArray[np.float64], counts: NDArray[np.float64], tau: float, floor: float) -> float:
    """The shift under which the weights' mean, each counting `counts`, is 1: exact, by filling up from the easiest."""
    order = np.argsort(losses, kind="stable")
    scaled = -losses[order] / tau
    log_sums = np.logaddexp.accumulate(scaled + np.log(counts[order]))  # of the k + 1 easiest
    total = counts.sum()
    if floor == 0:
        return tau * float(np.log(total) - log_sums[-1])
    rest = total - np.cumsum(counts[order])  # what counts beyond them, all at the floor
    log_factors = np.log(total - floor * rest) - log_sums
    above = np.flatnonzero(log_factors + scaled >= math.log(floor))  # the easiest is always among them
    return tau * float(log_factors[above[-1]])


# --- one temperature a source ----------------------------------------------------------------------------------------


class FlowResult(NamedTuple):
    """Weights `(documents,)`, the rule of each source (`None`: of all), and how many weigh less than `NEGLIGIBLE`."""

    weights: NDArray[np.float64]
    rules: dict[Hashable, FlowWeights]
    num_negligible: int


def weigh(
    losses: NDArray[np.float64],
    counts: NDArray[np.float64],
    tau: float | str,
    *,
    sources: Sequence[Hashable] | None = None,
    weight_scale: str = "mean",
    floor: float = 0.0,
    unit: str = "documents",
) -> FlowResult:
    """
    Weigh documents (or tokens), each source by itself: its own temperature and, under `"mean"`, its own mean of 1.

    Args:
        losses (`numpy.ndarray` of shape `(documents,)`), counts (`numpy.ndarray` of shape `(documents,)`):
            As in [`flow_weights_at`].
        tau (`float` or `str`):
            A number of nats per token, or a rule of [`flow_temperature`].
        sources (`Sequence`, *optional*):
            The source of each document; all are one by default.
        weight_scale (`str`), floor (`float`):
            As in [`flow_weights_at`].
        unit (`str`, *optional*, defaults to `"documents"`):
            For the message about those of negligible weight.

    Raises:
        ValueError: as [`flow_weights_at`] and [`flow_temperature`], naming the source; or if there are more than
            `MOST_SOURCES`, or `weight_scale` is none.
    """
    if weight_scale not in WEIGHT_SCALES:
        raise ValueError(f"weight_scale must be one of {WEIGHT_SCALES}, got {weight_scale!r}.")
    if not 0 <= floor < 1:
        raise ValueError(f"flow_floor must be a number, at least 0 and below 1, got {floor!r}.")
    numbers = {name: i for i, name in enumerate(dict.fromkeys([None] if sources is None else sources))}
    if len(numbers) > MOST_SOURCES:
        raise ValueError(
            f"source_column has {len(numbers):,} different values, such as {next(iter(numbers))!r}: more than "
            f"{MOST_SOURCES:,} sources are refused, since each needs rows to take a temperature from. Name a column "
            "of few values."
        )
    of_document = np.zeros(len(losses), np.int64) if sources is None else np.array([numbers[s] for s in sources])
    weights = np.zeros(len(losses))
    rules: dict[Hashable, FlowWeights] = {}
    num_negligible = 0
    for name, number in numbers.items():
        chosen = of_document == number
        try:
            level = tau if isinstance(tau, float | int) else temperature_of(losses[chosen], tau)
            rules[name] = flow_weights_at(
                losses[chosen], level, counts[chosen], weight_scale=weight_scale, floor=floor
            )
        except ValueError as error:
            raise error if name is None else ValueError(f"source {name!r}: {error}") from error.__cause__
        weights[chosen] = rules[name].of_losses(losses[chosen])
        mean = np.average(weights[chosen], weights=counts[chosen])
        num_negligible += int((weights[chosen] < NEGLIGIBLE * mean).sum())
    if num_negligible:
        logger.warning(
            "%s of %s %s weigh less than %g of the mean and teach next to nothing. Raise tau, or set flow_floor.",
            f"{num_negligible:,}", f"{len(losses):,}", unit, NEGLIGIBLE,
        )  # fmt: skip
    return FlowResult(weights, rules, num_negligible)
