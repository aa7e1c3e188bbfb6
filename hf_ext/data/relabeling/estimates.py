"""Figures with an interval, and the few quantiles they need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """
    A figure read off noisy labels.

    Args:
        value (`float`):
            The estimate, unclipped: an accuracy below 0 or above 1 says that an assumption does not hold.
        se (`float`):
            Its standard error.
        low (`float`), high (`float`):
            95 % interval.
        n (`int`):
            Labels it rests on.
        notes (`tuple[str, ...]`):
            What a reader must know before believing it.
    """

    value: float
    se: float
    low: float
    high: float
    n: int = 0
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """The value and its interval, as a table shows them; notes follow."""
        text = f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return text + "".join(f" ({note})" for note in self.notes)


def wilson(share: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """
    Wilson's interval of a share of `n` trials: it holds its coverage where the share is near 0 or 1.

    Reference: Wilson 1927, *Probable Inference, the Law of Succession, and Statistical Inference*.
    """
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return middle - half, middle + half
