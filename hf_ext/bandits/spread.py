"""Running variances of observations whose means drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Spread"]

WIDENING = 1.2  # of variances, which are estimated and used as if they were known
_LEAST_SPREAD = 1e-6  # variance of a reward, as a share of its mean square: rewards may be exact


class Spread:
    r"""
    Running variances of what is observed of each arm, around means that drift: from successive differences $d_j$.

    $v_j = (\sum d_j^2 / 2 + \bar v) / (n_j + 1)$ with $\bar v$ that of all arms together, and what is old fades.

    Args:
        num_arms (`int`):
            Arms.
        window (`float`):
            Differences after which one has faded to 1/e.
    """

    def __init__(self, num_arms: int, window: float) -> None:
        self.fading = 1 - 1 / window
        self.latest = np.full(num_arms, np.nan)
        self.squares = np.zeros(num_arms)
        self.differences = np.zeros(num_arms)
        self.mean_square = 0.0
        self.looks = np.zeros(num_arms)

    def add(self, arm: int, value: float) -> None:
        """One more observation of an arm."""
        if self.looks[arm] > 0:
            self.squares[arm] = self.fading * self.squares[arm] + (value - self.latest[arm]) ** 2 / 2
            self.differences[arm] = self.fading * self.differences[arm] + 1
        self.latest[arm] = value
        self.looks[arm] += 1
        self.mean_square += (value**2 - self.mean_square) / self.looks.sum()

    def variance(self, arm: int) -> float:
        """Of one observation of an arm, widened; above 0."""
        pooled = self.squares.sum() / max(self.differences.sum(), 1.0)
        variance = (self.squares[arm] + pooled) / (self.differences[arm] + 1)
        return WIDENING * max(float(variance), _LEAST_SPREAD * self.mean_square, 1e-60)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what was never observed is 0."""
        arrays = {name: getattr(self, name).tolist() for name in ("squares", "differences", "looks")}
        return {**arrays, "latest": np.nan_to_num(self.latest).tolist(), "mean_square": self.mean_square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name in ("squares", "differences", "looks", "latest"):
            values = np.array(state[name], dtype=np.float64)
            if values.shape != self.looks.shape or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite and of shape {self.looks.shape}")
            if name != "latest" and (values < 0).any():
                raise ValueError(f"{name} must not be negative")
            setattr(self, name, values)
        self.mean_square = float(state["mean_square"])
        if not 0 <= self.mean_square < np.inf:
            raise ValueError("mean_square must be finite and not negative")
