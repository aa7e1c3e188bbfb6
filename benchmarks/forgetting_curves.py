"""
What a run forgot beside what others forgot at an equal loss on the rows that count.

A row of a table is one run from one seed: `run`, `seed`, `easy_loss`, `kl` and more losses, and each loss before
training with `_before` behind its name.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np


def kl_at(loss: float, points: list[tuple[float, float]]) -> float:
    """The least KL at which points `(loss, KL)` reach a loss, on their front; beyond it that of the lowest loss."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[1], point[0])):  # from the least KL on, each must go lower
        if not front or point[0] < front[-1][0]:
            front.append(point)
    losses, values = zip(*reversed(front), strict=True)
    return float(np.interp(loss, losses, values))


def ratios(rows: list[dict], run: str, rivals: tuple[str, ...]) -> list[float]:
    """A run's KL over that of rivals (by how their names begin) at its own easy loss, a number a seed."""
    numbers = []
    for row in (row for row in rows if row["run"] == run):
        points = [
            (rival["easy_loss"], rival["kl"])
            for rival in rows
            if rival["seed"] == row["seed"] and rival["run"].startswith(rivals)
        ]
        start = (row["easy_loss_before"], 0.0)
        numbers.append(row["kl"] / max(kl_at(row["easy_loss"], [start, *points]), 1e-9))
    return numbers


def mean_of(rows: list[dict], run: str, value: str) -> float:
    """A mean over seeds; a `_rise` or `_fall` is from before training."""
    name, _, kind = value.rpartition("_")
    if kind not in ("rise", "fall"):
        return fmean(row[value] for row in rows if row["run"] == run)
    sign = 1 if kind == "rise" else -1
    return fmean(sign * (row[f"{name}_loss"] - row[f"{name}_loss_before"]) for row in rows if row["run"] == run)


def lowest_ratio(
    rows: list[dict], names: list[str], rivals: tuple[str, ...], least_gain: float
) -> tuple[str | None, float | None]:
    """Of the named runs whose easy loss falls by so much or more, the one with the lowest mean ratio to the rivals."""
    numbers = {
        name: fmean(ratios(rows, name, rivals)) for name in names if mean_of(rows, name, "easy_fall") >= least_gain
    }
    if not numbers:
        return None, None
    best = min(numbers, key=numbers.__getitem__)
    return best, numbers[best]
