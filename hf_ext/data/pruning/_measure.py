"""What a pruning did, measured on the vectors: the mean's error, distances, outliers, likeness of distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_ext.data.pruning.groups import Label
from hf_ext.data.pruning.median import GeometricMedian, solve
from hf_ext.data.vectors.rows import FloatArray, IntArray, Rows, Selection, row_lengths

POINTS = 25  # of the curve
SAMPLE = 2000  # rows of each side of MMD
_BINS = 40


@dataclass(frozen=True)
class Measured:
    """One group: its geometric median, and its rows' and picks' places around it. Lengths in the rows' units."""

    label: Label
    index: IntArray  # (n,) row numbers
    picks: IntArray  # (k,) row numbers in pick order
    median: GeometricMedian
    shift: float  # ||mean - median||
    spread: float  # sigma: root of the summed variances, n - 1 in the denominator
    distances: FloatArray  # (n,) of all rows from the median
    prefix_error: FloatArray  # (k,) ||mean of the first m picks - median||

    @property
    def typical(self) -> float:
        """Median distance of the rows from the geometric median."""
        return float(np.median(self.distances))

    @property
    def limit(self) -> float:
        """Distance beyond which a row counts as outlying: median + 3 MAD."""
        return self.typical + 3 * float(np.median(np.abs(self.distances - self.typical)))

    @property
    def picked(self) -> FloatArray:
        """Distances of the picks."""
        return self.distances[np.searchsorted(self.index, self.picks)]

    def random_error(self, m: int) -> float:
        """Root-mean-square distance of the mean of `m` rows drawn without replacement from the median."""
        # The variance of such a mean is sigma^2 (1/m - 1/n), its bias ||mean - median||.
        n = len(self.index)
        return float(np.sqrt(self.spread**2 * max(0.0, 1 / m - 1 / n) + self.shift**2))

    def easy_overlap(self) -> float:
        """Share of the picks that are among the k rows nearest to the median."""
        nearest = self.index[np.argsort(self.distances, kind="stable")[: len(self.picks)]]
        return float(np.isin(self.picks, nearest).mean())


def measure_group(
    rows: Rows, label: Label, index: IntArray, picks: IntArray, median: GeometricMedian | None
) -> Measured:
    """Measure one group around the median that was matched (of trimmed rows, if so), or else that of its rows."""
    selection = Selection(rows, index)
    median = median or solve(selection, tol=1e-6)
    distances = np.empty(len(index))
    total = np.zeros(rows.values.shape[1])
    for place, block in selection.blocks():
        block -= median.center
        distances[place] = row_lengths(block)
        total += block.sum(0)
    offset = total / len(index)
    # Sum of squares around the mean = sum of squares around the median - n ||mean - median||^2: one pass for both.
    summed = float((distances**2).sum()) - len(index) * float(offset @ offset)
    return Measured(
        label=label,
        index=index,
        picks=picks,
        median=median,
        shift=float(np.linalg.norm(offset)),
        spread=float(np.sqrt(max(0.0, summed) / max(1, len(index) - 1))),
        distances=distances,
        prefix_error=_prefix_errors(rows, picks, median.center),
    )


def _prefix_errors(rows: Rows, picks: IntArray, center: FloatArray) -> FloatArray:
    total = np.zeros_like(center)
    errors = np.empty(len(picks))
    for place, block in Selection(rows, picks).blocks():
        sums = np.cumsum(block - center, axis=0) + total
        errors[place] = row_lengths(sums) / np.arange(place.start + 1, place.stop + 1)
        total = sums[-1]
    return errors


def curve(groups: list[Measured]) -> list[dict[str, float]]:
    """
    Moment error against the number of picks, of the picks and of random rows: means over the groups, by their rows.

    At each point every group has the same share of its picks.
    """
    most = max(len(group.picks) for group in groups)
    # By rows, not by picks: with equal budgets a small label would count as much as a large one.
    weights = np.array([len(group.index) for group in groups], dtype=np.float64)
    weights /= weights.sum()
    points = []
    for share in np.geomspace(1 / most, 1.0, min(POINTS, most)):
        counts = [max(1, round(share * len(group.picks))) for group in groups]
        errors = [group.prefix_error[m - 1] for group, m in zip(groups, counts, strict=True)]
        random = [group.random_error(m) for group, m in zip(groups, counts, strict=True)]
        points.append({"picks": sum(counts), "moment_error": float(weights @ errors),
                       "random_error": float(weights @ random)})  # fmt: skip
    return list({point["picks"]: point for point in points}.values())


def slope(points: list[dict[str, float]]) -> float | None:
    """Power of the picks with which the moment error goes, over the curve's second half; -1 is the matched rate."""
    later = [point for point in points[len(points) // 2 :] if point["moment_error"] > 0]
    if len(later) < 3:
        return None
    x, y = (np.log([point[name] for point in later]) for name in ("picks", "moment_error"))
    return float(np.polyfit(x, y, 1)[0])


def histogram(groups: list[Measured]) -> dict[str, list[float]]:
    """Distances over their group's median distance: all rows and picks; the last bin holds what lies beyond."""
    of_rows, of_picks = (
        np.concatenate([getattr(group, name) / (group.typical or 1.0) for group in groups])
        for name in ("distances", "picked")
    )
    end = 1.05 * float(np.quantile(of_rows, 0.995)) or 1.0  # a single far row would squeeze all others into one bin
    edges = np.linspace(0, end, _BINS + 1)
    counts = [np.histogram(np.minimum(values, end), edges)[0] for values in (of_rows, of_picks)]
    limit = float(np.mean([g.limit / (g.typical or 1.0) for g in groups]))
    return {"edges": edges.tolist(), "rows": counts[0].tolist(), "kept": counts[1].tolist(), "limit": [limit]}


def extremes(groups: list[Measured], count: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Row numbers and distances over their group's median distance: the nearest rows and the farthest ones."""
    index = np.concatenate([group.index for group in groups])
    relative = np.concatenate([group.distances / (group.typical or 1.0) for group in groups])
    order = np.lexsort((index, relative))
    near, far = ([(int(index[i]), float(relative[i])) for i in places[:count]] for places in (order, order[::-1]))
    return near, far


def mmd2(rows: Rows, picks: IntArray, seed: int) -> tuple[float, float] | None:
    """
    Squared maximum mean discrepancy between the picks and all rows, and between random rows and all rows.

    Unbiased estimates with an RBF kernel, its width the median distance, on up to 2,000 rows a side; `None` below four
    rows. Around 0 where the distributions are alike; it may fall below.
    """
    n = len(rows.values)
    rng = np.random.default_rng(seed)
    count = min(SAMPLE, len(picks), n)
    if count < 4:
        return None
    picks = np.sort(picks if len(picks) <= SAMPLE else rng.choice(picks, SAMPLE, replace=False))
    sample, random = (np.sort(rng.choice(n, size, replace=False)) for size in (min(SAMPLE, n), count))
    sample_rows = rows.take(sample)
    squares = _squares(sample_rows, sample_rows)
    width = float(np.median(squares[np.triu_indices(len(sample), 1)])) or 1.0
    within_sample = _mean_of_pairs(squares, sample, sample, width)

    def discrepancy(index: IntArray) -> float:
        side = rows.take(index)
        within = _mean_of_pairs(_squares(side, side), index, index, width)
        return within_sample + within - 2 * _mean_of_pairs(_squares(side, sample_rows), index, sample, width)

    return discrepancy(picks), discrepancy(random)


def _squares(a: FloatArray, b: FloatArray) -> FloatArray:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(squares, 0.0)


def _mean_of_pairs(squares: FloatArray, numbers: IntArray, other_numbers: IntArray, width: float) -> float:
    """Mean kernel over pairs of different rows: a row beside itself would make every subset look alike."""
    different = numbers[:, None] != other_numbers[None, :]
    return float(np.exp(-squares / (2 * width))[different].mean())
