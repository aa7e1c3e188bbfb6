r"""
When a candidate is out of the race: it is behind another on the same items by more than chance explains.

Items are drawn from a pool of $N$ without replacement, in an order of the seed, and every candidate that is still in
the race is measured on the same ones. Of a pair, with differences $d_1, \dots, d_n$ (mean $\bar d$, variance $s^2$),

$$t = \frac{\bar d}{\sqrt{s^2 (1 - n/N) / n}}, \qquad
  t' = t + a\,\frac{2 t^2 + 1}{6} + a^2\,\frac{t^3}{27}, \qquad a = \frac{2 \min(\hat\gamma, 0)}{\sqrt n}$$

and the one behind is out where $\min(t, t')$ exceeds Student's quantile at $1 - \delta / ((K - 1) L)$ with $n - 1$
degrees of freedom.

- The quantile is Student's, for the variance is an estimate; the normal one would be passed too often.
- $(1 - n/N)$ is what drawing without replacement leaves of the variance of a mean.
- $L$ is the number of looks, fixed by $N$ beforehand: after 32 items, then each time a quarter more, the last one with
  32 items unseen. Wherever the race is stopped, no more error is spent.
- Of $K$ candidates the best one must not be dropped by any of $K - 1$ others: so $K - 1$.
- $t'$ is Hall's correction for skew, taken only where it makes a candidate stay: $\hat\gamma$ is the skewness of the
  differences in favour of the leader, which is negative where the one behind wins seldom and high. Most samples of a
  long tail show too little of it, so it counts twice.

So the best candidate of the pool is dropped with probability at most $\delta$: exactly for differences that are normal
and a pool that is large, approximately for others. Nothing allows for what no sample shows: items so rare that none
was drawn and so heavy that they decide the mean.

Reference: Hall 1992, *On the removal of skewness by transformation* (JRSS B 54); Bahadur and Savage 1956, for why no
test of a mean holds for every distribution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hf_ext.evaluation.intervals import student_quantile

__all__ = ["lead_statistics", "look_counts", "refuted"]

LARGEST = 1e100  # value whose cube, summed over items, float64 holds
FIRST_LOOK = 32  # items: with fewer, skewness is not seen
GROWTH = 4  # a look each time the items have grown by one in so many


def look_counts(num_items: int) -> list[int]:
    """
    How many items have been seen after each round; the last round ends the pool.

    Args:
        num_items (`int`):
            In the pool.
    """
    counts = []
    count = FIRST_LOOK
    while count + FIRST_LOOK <= num_items:  # what a few unseen items add to a mean is far from normal
        counts.append(count)
        count += max(FIRST_LOOK, count // GROWTH)
    return [*counts, num_items]


def lead_statistics(differences: NDArray[np.float64], num_items: int | None) -> NDArray[np.float64]:
    r"""
    $\min(t, t')$ of each pair: how far, in standard errors, a leader is ahead of each rival.

    Args:
        differences (array of shape `(rivals, seen items)`):
            The leader's value minus the rival's on each item, so that positive is better.
        num_items (`int`, *optional*):
            In the pool; `None` where the items are a sample of endlessly many.

    Returns:
        array of shape `(rivals,)`: 0 where nothing differs, infinite where every item differs by the same.
    """
    count = differences.shape[1]
    means = differences.mean(axis=1)
    centred = differences - means[:, None]
    variances = (centred**2).sum(axis=1) / (count - 1)
    remainder = 1.0 if num_items is None else 1 - count / num_items
    # differences of rounding alone are no spread: identical values would be divided by it
    is_constant = variances <= (1e-12 * np.abs(differences).max(axis=1)) ** 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = means / np.sqrt(variances * remainder / count)
        skewness = (centred**3).mean(axis=1) / variances**1.5
        shift = 2 * np.minimum(skewness, 0) / np.sqrt(count)
        corrected = ratios + shift * (2 * ratios**2 + 1) / 6 + shift**2 * ratios**3 / 27
    constant = np.where(means == 0, 0.0, np.copysign(np.inf, means))
    return np.where(is_constant, constant, np.minimum(ratios, corrected))


def refuted(
    values: NDArray[np.float64], num_items: int | None, error: float, num_candidates: int, num_looks: int = 1
) -> NDArray[np.bool_]:
    r"""
    Which candidates are behind one of the others by more than chance explains.

    Args:
        values (array of shape `(candidates, seen items)`):
            Of the candidates in the race on the same items, at least two; higher is better.
        num_items (`int`, *optional*):
            In the pool; `None` where the items are a sample of endlessly many.
        error (`float`):
            $\delta$: the probability, over the whole race, with which its best candidate may be dropped.
        num_candidates (`int`):
            $K$: those at the start.
        num_looks (`int`, *optional*, defaults to 1):
            $L$: how often a race of that pool looks at most.

    Returns:
        array of shape `(candidates,)`.
    """
    threshold = student_quantile(1 - error / ((num_candidates - 1) * num_looks), values.shape[1] - 1)
    is_behind = np.zeros(len(values), dtype=bool)
    for leader in values:
        is_behind |= lead_statistics(leader - values, num_items) > threshold
    return is_behind
