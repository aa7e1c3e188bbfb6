r"""
Channels of randomised response: what a label becomes, what that costs, and what can be read off the noisy labels.

A label $y$ of $K$ classes becomes $s$ with $P(s \mid y) = T_{y,s}$: $p = e^\varepsilon / (e^\varepsilon + K - 1)$ for
$s = y$ and $q = 1 / (e^\varepsilon + K - 1)$ for every other class. No label then says more than a likelihood ratio of
$e^\varepsilon$ about the true one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.data.relabeling.estimates import Estimate, wilson

FloatArray = NDArray[np.float64]


def check_epsilon(epsilon: object) -> None:
    """
    Refuse an epsilon that is no privacy budget.

    Raises:
        ValueError: if it is no finite number above 0.
    """
    numeric = epsilon if isinstance(epsilon, int | float | np.floating | np.integer) else math.nan
    if isinstance(epsilon, bool) or not 0 < numeric < math.inf:
        raise ValueError(
            f"epsilon must be a finite number of nats above 0, got {epsilon!r}. 1 is strong, 8 is weak: at 8 a label "
            "keeps its class almost always. For no noise leave the labels as they are."
        )


def check_classes(num_classes: object) -> None:
    """
    Refuse a number of classes below 2.

    Raises:
        ValueError: if it is no integer of at least 2.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise ValueError(f"num_classes must be an integer of at least 2, got {num_classes!r}.")
    if num_classes > 2**31:
        raise ValueError(f"num_classes={num_classes:,} is more than 2**31 classes.")


@dataclass(frozen=True)
class RRChannel:
    """
    Randomised response over `num_classes` classes at `epsilon` nats a label.

    Args:
        epsilon (`float`):
            Nats per label, above 0.
        num_classes (`int`):
            K, at least 2.

    Raises:
        ValueError: if `epsilon` is not above 0, or `num_classes` below 2.

    Reference: Warner 1965, *Randomized Response*; Ghazi et al. 2021, *Deep Learning with Label Differential Privacy*
    (arXiv 2102.06062).
    """

    epsilon: float
    num_classes: int

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_classes(self.num_classes)

    @property
    def p(self) -> float:
        """Probability that a label stays as it is."""
        return 1 / (1 + (self.num_classes - 1) * math.exp(-min(self.epsilon, 700.0)))

    @property
    def q(self) -> float:
        """Probability of each other class."""
        return math.exp(-min(self.epsilon, 700.0)) * self.p

    @property
    def contrast(self) -> float:
        """`p - q`, without cancellation: how much of the difference between two classes is left."""
        return -math.expm1(-min(self.epsilon, 700.0)) * self.p

    def matrix(self) -> FloatArray:
        """T, shape `(num_classes, num_classes)`: row y holds P(s | y), and sums to one."""
        matrix = np.full((self.num_classes, self.num_classes), self.q)
        np.fill_diagonal(matrix, self.p)
        return matrix

    def then(self, other: RRChannel) -> RRChannel:
        """
        A draw from the label that this channel has made noisy: post-processing, T1 T2, again randomised response.

        Returns:
            [`RRChannel`]: its epsilon is at most the smaller of the two.

        Raises:
            ValueError: if the channels have different numbers of classes.
        """
        if self.num_classes != other.num_classes:
            raise ValueError(f"Channels of {self.num_classes} and of {other.num_classes} classes do not go together.")
        # p' - q' = (p1 - q1)(p2 - q2) and p' + (K - 1) q' = 1
        contrast = self.contrast * other.contrast
        q = (1 - contrast) / self.num_classes
        epsilon = math.log1p(contrast / q) if q > 0 else math.inf
        return RRChannel(min(epsilon, self.epsilon, other.epsilon), self.num_classes)

    def accuracy(self, agree: float, n: int) -> Estimate:
        r"""
        Accuracy of predictions from the share of noisy labels they agree with: $(agree - q) / (p - q)$.

        Args:
            agree (`float`):
                Share in [0, 1] of rows whose prediction equals the given label.
            n (`int`):
                Rows.

        Returns:
            [`Estimate`]: unbiased where the predictions do not depend on these labels' noise (held out or out of
            fold); never clipped. Its interval is Wilson's of `agree`, stretched by 1 / (p - q).

        Raises:
            ValueError: if there are no rows, or the share lies outside [0, 1].
        """
        if n < 1 or not 0 <= agree <= 1:
            raise ValueError(f"agree={agree!r} of n={n!r} rows: give a share in [0, 1] and at least one row.")
        value, low, high = ((share - self.q) / self.contrast for share in (agree, *wilson(agree, n)))
        se = math.sqrt(agree * (1 - agree) / n) / self.contrast
        return Estimate(value, se, low, high, n, notes_on_accuracy(value))

    def consensus_precision(self, accuracy: float | Estimate) -> Any:
        """
        Share of right labels among the rows whose prediction equals the given label: `a p / (a p + (1 - a) q)`.

        Args:
            accuracy (`float` or [`Estimate`]):
                Of the predictions, independent of the noise.

        Returns:
            As given: a number, or an [`Estimate`] whose interval is that of the accuracy, carried over.
        """
        if not isinstance(accuracy, Estimate):
            return self._precision(float(accuracy))
        a, low, high = (min(max(share, 0.0), 1.0) for share in (accuracy.value, accuracy.low, accuracy.high))
        slope = self.p * self.q / (a * self.p + (1 - a) * self.q) ** 2
        value, low, high = map(self._precision, (a, low, high))
        return Estimate(value, accuracy.se * slope, low, high, accuracy.n, accuracy.notes)

    def _precision(self, a: float) -> float:
        return a * self.p / (a * self.p + (1 - a) * self.q)

    def class_prior(self, hist: ArrayLike) -> FloatArray:
        """
        Shares of the true classes from counts of the noisy labels: `(hist - q) / (p - q)`, onto the simplex.

        Args:
            hist (array of shape `(num_classes,)`):
                Counts or shares of the given labels.

        Returns:
            Array of shape `(num_classes,)` that sums to one: the nearest distribution to the unbiased estimate.

        Raises:
            ValueError: if the shape is another, or the counts are negative or all zero.
        """
        counts = np.asarray(hist, dtype=np.float64)
        if counts.shape != (self.num_classes,) or (counts < 0).any() or not counts.sum() > 0:
            raise ValueError(f"hist must hold {self.num_classes} counts, not all zero; got shape {counts.shape}.")
        return project_on_simplex((counts / counts.sum() - self.q) / self.contrast)


def notes_on_accuracy(value: float) -> tuple[str, ...]:
    """What a reader must know of an estimated accuracy outside [0, 1]."""
    if value < 0:
        return ("model worse than chance: its predictions agree with the labels less than other classes do",)
    return ("above 1: in-sample predictions?",) if value > 1 else ()


class RRWithPrior:
    r"""
    Randomised response over the likely classes only, under a public prior of the label.

    With classes sorted by $\pi$, the $m$ most likely are kept, $m^* = \arg\max_m w_m$ and
    $w_m = \sum_{i \le m} \pi_{(i)} / (1 + (m - 1) e^{-\varepsilon})$ the probability that the true label comes out. A
    label among them goes through randomised response over $m^*$ classes; any other becomes one of them, uniformly.

    Args:
        epsilon (`float`):
            Nats per label.
        prior (array of shape `(num_classes,)`):
            Non-negative; it is divided by its sum. It may depend on features and on *released* labels of other rows,
            never on this row's label.

    Attributes:
        k (`int`):
            $m^*$; the smallest where several are equal.
        top (array of shape `(k,)`):
            Classes that can come out, likeliest first; of equally likely ones the lower.

    Raises:
        ValueError: if `epsilon` is not above 0, or the prior is negative, not finite or all zero.

    Relations: a uniform prior gives $k = K$ and plain [`RRChannel`]. The published code of the authors
    (google-research/label-dp, train.py) takes the sum of the top $m + 1$ with the denominator of $m$: still private,
    but another k.

    Reference: Ghazi et al. 2021, *Deep Learning with Label Differential Privacy*, Algorithm 2 (arXiv 2102.06062).
    """

    def __init__(self, epsilon: float, prior: Sequence[float] | FloatArray) -> None:
        check_epsilon(epsilon)
        values = np.asarray(prior, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"a prior holds one number for each of at least 2 classes, got shape {values.shape}.")
        if not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ValueError(f"a prior must be finite, non-negative and not all zero, got {values[:8].tolist()}.")
        self.epsilon = float(epsilon)
        self.prior = values / values.sum()
        order, sizes = likely_classes(self.epsilon, self.prior[None])
        self.k = int(sizes[0])
        self.top = order[0, : self.k]

    @property
    def num_classes(self) -> int:
        """Classes of the label."""
        return len(self.prior)

    @property
    def kept_probability(self) -> float:
        """Probability, under the prior, that the true label comes out."""
        return float(self.prior[self.top].sum() / (1 + (self.k - 1) * math.exp(-min(self.epsilon, 700.0))))

    def matrix(self) -> FloatArray:
        """T, shape `(num_classes, num_classes)`; columns outside `top` are zero."""
        matrix = np.zeros((self.num_classes, self.num_classes))
        matrix[:, self.top] = 1 / self.k
        if self.k > 1:
            matrix[np.ix_(self.top, self.top)] = RRChannel(self.epsilon, self.k).matrix()
        return matrix


def likely_classes(epsilon: float, priors: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Classes by falling prior `(rows, num_classes)`, and how many of them to keep `(rows,)`.

    Of equally likely classes the lower comes first, and of equally good numbers the smaller is taken.
    """
    order = np.argsort(-priors, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(priors, order, axis=1), axis=1)
    m = np.arange(1, priors.shape[1] + 1)
    weights = sums / (1 + (m - 1) * math.exp(-min(epsilon, 700.0)))
    return order, weights.argmax(axis=1) + 1


def project_on_simplex(values: FloatArray) -> FloatArray:
    """
    The nearest distribution in Euclidean distance.

    Reference: Duchi et al. 2008, *Efficient Projections onto the l1-Ball for Learning in High Dimensions*, figure 1.
    """
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    threshold = excess[np.flatnonzero(falling > excess)[-1]]
    return np.maximum(values - threshold, 0.0)
