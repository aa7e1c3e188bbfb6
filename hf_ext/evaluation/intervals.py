"""Means over rows of unequal length, with an interval that says how far another draw of rows would move them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Estimate", "ratio_estimate", "student_quantile"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean in nats per token; the interval over rows is `mean - half_width` to `mean + half_width`.

    Args:
        mean (`float`):
            Nats per token.
        half_width (`float` or `None`):
            Nats per token; `None` where there is a single row.
        num_rows (`int`):
            Rows measured.
        num_tokens (`int`):
            Supervised tokens in them.
    """

    mean: float
    half_width: float | None
    num_rows: int
    num_tokens: int

    def __str__(self) -> str:
        """The mean and its half-width, as a table shows them."""
        return f"{self.mean:.4f}" if self.half_width is None else f"{self.mean:.4f} ± {self.half_width:.4f}"


def ratio_estimate(numerators: ArrayLike, denominators: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    r"""
    Token-weighted mean over rows $\hat r = \sum_i x_i / \sum_i n_i$, with an interval over rows.

    The variance is the delta method's for a ratio of two sums of independent rows,
    $\frac{m}{m-1} \sum_i (x_i - \hat r n_i)^2 / (\sum_i n_i)^2$ over $m$ rows: it allows for rows of unequal length
    and for losses that depend on length. The quantile is Student's with $m - 1$ degrees of freedom.

    Args:
        numerators (array of shape `(rows,)`):
            A sum over each row's tokens, e.g. its negative log-likelihood in nats, or the difference of two such sums.
        denominators (array of shape `(rows,)`):
            Supervised tokens of each row, all positive.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage wanted.

    Returns:
        [`Estimate`]: `half_width` is `None` for a single row.

    Requirements: independent rows; tokens of one row need not be. With fewer than about 15 rows, or one row far longer
    than the rest, the interval is too short.

    Reference: Cochran 1977, *Sampling Techniques*, chapter 6 (ratio estimators).
    """
    x, n = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    rows, total = len(n), float(n.sum())
    mean = float(x.sum()) / total
    half_width = None
    if rows > 1:
        # x - r n is a row's residual: its mean over rows is 0, and its spread is that of the ratio (delta method).
        variance = rows / (rows - 1) * float(((x - mean * n) ** 2).sum()) / total**2
        half_width = student_quantile(0.5 + confidence / 2, rows - 1) * variance**0.5
    return Estimate(mean, half_width, num_rows=rows, num_tokens=int(total))


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, expanded in 1 / degrees (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
