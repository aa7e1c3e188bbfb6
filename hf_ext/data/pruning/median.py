"""The geometric median with a proof of how good it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ext.data.pruning._rows import Rows, Selection, check_rows
from hf_ext.data.pruning._types import FloatArray

_START_ROWS = 2048  # rows on which the two starting points are compared
_NEAR = 0.1  # a row this close, as a share of the mean distance, may be the optimum itself


@dataclass(frozen=True)
class GeometricMedian:
    """
    A point and the proof of how near its objective is to the least possible.

    Attributes:
        center (`np.ndarray` of shape `(d,)`):
            The point, float64, in the rows' units.
        objective (`float`):
            Weighted sum of the rows' distances to `center`.
        dual (`float`):
            Lower bound of that sum at any point.
        rel_gap (`float`):
            `objective / dual - 1`: no point is better by more than this share.
        grad_norm (`float`):
            Length of the objective's least subgradient over the total weight; unitless, 0 at the optimum.
        n_iter (`int`):
            Steps taken.
        converged (`bool`):
            Whether `rel_gap <= tol`.
        at_row (`int` or `None`):
            A row that coincides with `center`.
        n_used (`int`):
            Rows that entered (fewer than given with `sample`, or where weights are zero).
    """

    center: FloatArray
    objective: float
    dual: float
    rel_gap: float
    grad_norm: float
    n_iter: int
    converged: bool
    at_row: int | None
    n_used: int


def geometric_median(
    X: Any,
    *,
    weights: Any = None,
    tol: float = 1e-6,
    max_iter: int = 200,
    sample: int | float | None = None,
    seed: int = 0,
    chunk_rows: int = 65536,
    strict: bool = False,
    num_threads: int | None = None,
) -> GeometricMedian:
    r"""
    Point with the least sum of distances to the rows: Weiszfeld's iteration, with the step of Vardi and Zhang at rows.

    $$\mu = \arg\min_z f(z), \qquad f(z) = \sum_i \omega_i \lVert x_i - z \rVert$$

    Any rows with less than half of the weight can be moved anywhere, and $\mu$ stays bounded. The certificate is the
    dual bound $f(z) \ge \sum_i \langle u_i, x_i \rangle$ for any $u_i$ with $\lVert u_i \rVert \le \omega_i$ that sum
    to zero: here $u_i = \omega_i (v_i - g) / (1 + \lVert g \rVert)$, with $v_i$ the unit vectors from the point to the
    rows and $g$ their mean.

    Args:
        X (array of shape `(n, d)`):
            Rows, float32 (a memory map is read in blocks) or float64/float16 (cast once to float32).
        weights (array of shape `(n,)`, *optional*):
            Finite, non-negative, unitless; one each by default.
        tol (`float`, *optional*, defaults to 1e-6):
            Stop once the proven `rel_gap` is at most this.
        max_iter (`int`, *optional*, defaults to 200):
            Steps, one pass over the rows each.
        sample (`int` or `float`, *optional*):
            Rows drawn without replacement (a number, or a share in (0, 1)); the certificate then speaks of them.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.
        chunk_rows (`int`, *optional*, defaults to 65536):
            Rows a thread takes at a time. Sums are taken in the order of the chunks: threads do not change the result.
        strict (`bool`, *optional*, defaults to `False`):
            Raise instead of warn when `max_iter` is reached with `rel_gap > tol`.
        num_threads (`int`, *optional*):
            Threads; one by default.

    Returns:
        [`GeometricMedian`]

    Raises:
        ValueError: rows or weights that cannot be used; the message names the row.
        RuntimeError: not converged, with `strict=True`.

    Reference: Weiszfeld 1937; Vardi and Zhang 2000, *The multivariate L1-median and associated data depth*; Acharya et
    al. 2025, *Geometric Median Matching for Robust k-Subset Selection from Noisy Data* (arXiv 2504.00564), eq. 5.
    """
    rows = check_rows(X)
    selection, omega = _chosen(rows, weights, sample, seed)
    median = solve(selection, omega, tol=tol, max_iter=max_iter, chunk_rows=chunk_rows, num_threads=num_threads or 1)
    if not median.converged:
        text = not_converged(median, tol)
        if strict:
            raise RuntimeError(text)
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return median


def not_converged(median: GeometricMedian, tol: float) -> str:
    """Sentence about a median whose proof falls short of `tol`."""
    return (
        f"The geometric median stopped after {median.n_iter} steps with a proven relative gap of "
        f"{median.rel_gap:.2g}, above tol={tol:g}. Raise max_iter, or accept the gap with a larger tol."
    )


def _chosen(rows: Rows, weights: Any, sample: int | float | None, seed: int) -> tuple[Selection, FloatArray | None]:
    n, index, omega = len(rows.values), None, None
    if sample is not None:
        count = math.ceil(sample * n) if isinstance(sample, float) and 0 < sample < 1 else int(sample)
        if count < 1:
            raise ValueError(f"sample must be a number of rows >= 1 or a share in (0, 1), got {sample!r}.")
        if count < n:
            index = np.sort(np.random.default_rng(seed).choice(n, count, replace=False)).astype(np.int64)
    if weights is not None:
        omega = np.asarray(weights, dtype=np.float64)
        if omega.shape != (n,):
            raise ValueError(f"weights must have shape ({n},), one a row, got {omega.shape}.")
        bad = np.flatnonzero(~(np.isfinite(omega) & (omega >= 0)))
        if len(bad):
            raise ValueError(f"Weight of row {bad[0]:,} is {omega[bad[0]]}: weights must be finite and >= 0.")
        index = np.arange(n) if index is None else index
        index = index[omega[index] > 0]
        if not len(index):
            raise ValueError("Every weight is zero: give at least one row a positive weight.")
        omega = omega[index]
    return Selection(rows, index), omega


@dataclass(frozen=True)
class _Pass:
    """What one look at every row from a point gives."""

    objective: float
    pull: FloatArray  # (d,) sum of weight * unit vector to the row, rows at the point left out
    stiffness: float  # sum of weight / distance, the same rows
    at_weight: float  # weight of the rows at the point
    nearest: int  # place of the nearest row in the selection
    nearest_distance: float


class _Objective:
    def __init__(self, selection: Selection, omega: FloatArray | None, chunk_rows: int, threads: int) -> None:
        self.selection, self.omega = selection, omega
        self.total = float(len(selection)) if omega is None else float(omega.sum())
        chunk = max(1, chunk_rows)
        self.chunks = [(a, min(len(selection), a + chunk)) for a in range(0, len(selection), chunk)]
        self.threads = min(threads, len(self.chunks))
        self.sum = self._weighted_sum()

    def _weights(self, place: slice) -> FloatArray:
        return np.ones(place.stop - place.start) if self.omega is None else self.omega[place]

    def _weighted_sum(self) -> FloatArray:
        total = np.zeros(self.selection.rows.values.shape[1])
        for place, block in self.selection.blocks():
            total += np.einsum("i,ij->j", self._weights(place), block)
        return total

    def _chunk(self, chunk: tuple[int, int], z: FloatArray) -> _Pass:
        objective = stiffness = at_weight = 0.0
        nearest, nearest_distance, pull = -1, math.inf, np.zeros_like(z)
        for place, block in self.selection.blocks(*chunk):
            block -= z
            distance = np.sqrt(np.einsum("ij,ij->i", block, block))
            omega = self._weights(place)
            away = distance > 0
            rate = np.divide(omega, distance, out=np.zeros_like(distance), where=away)
            objective += float(np.einsum("i,i->", omega, distance))
            stiffness += float(rate.sum())
            at_weight += float(omega[~away].sum())
            pull += np.einsum("i,ij->j", rate, block)
            first = int(np.argmin(distance))
            if distance[first] < nearest_distance:
                nearest, nearest_distance = place.start + first, float(distance[first])
        return _Pass(objective, pull, stiffness, at_weight, nearest, nearest_distance)

    def at(self, z: FloatArray) -> _Pass:
        """One pass; partial sums are added in the order of the chunks, whatever thread made them."""
        if self.threads == 1:
            return _added(self._chunk(chunk, z) for chunk in self.chunks)
        with ThreadPoolExecutor(self.threads) as pool:
            return _added(pool.map(lambda chunk: self._chunk(chunk, z), self.chunks))

    def gradient(self, seen: _Pass) -> tuple[FloatArray, float]:
        """Mean vector `g` of the certificate and the least subgradient's length over the total weight."""
        length = float(np.linalg.norm(seen.pull))
        if not seen.at_weight:
            return seen.pull / self.total, length / self.total
        rest = max(0.0, 1 - seen.at_weight / length) if length else 0.0  # what rows at the point cannot hold
        return seen.pull * (rest / self.total), rest * length / self.total

    def dual(self, z: FloatArray, seen: _Pass, g: FloatArray) -> float:
        """Dual bound at `z`; `1 + ||g||` bounds the longest `v_i - g`."""
        offset = float(np.dot(g, self.sum - self.total * z))
        return (seen.objective - offset) / (1.0 + float(np.linalg.norm(g)))


def _added(passes: Iterable[_Pass]) -> _Pass:
    total: _Pass | None = None
    for one in passes:
        if total is None:
            total = one
            continue
        closer = one if one.nearest_distance < total.nearest_distance else total
        total = _Pass(
            total.objective + one.objective,
            total.pull + one.pull,
            total.stiffness + one.stiffness,
            total.at_weight + one.at_weight,
            closer.nearest,
            closer.nearest_distance,
        )
    assert total is not None
    return total


def _start(selection: Selection, mean: FloatArray) -> FloatArray:
    # The mean, as Weiszfeld has it, unless far rows have carried it off: each step halves such a distance at best.
    places = np.unique(np.linspace(0, len(selection) - 1, min(len(selection), _START_ROWS)).astype(np.int64))
    block = selection.rows.take(places if selection.index is None else selection.index[places])
    middle = np.median(block, axis=0)
    at_mean, at_middle = (np.sqrt(((block - z) ** 2).sum(1)).sum() for z in (mean, middle))
    return mean if at_mean <= 1.01 * at_middle else middle


def solve(
    selection: Selection,
    omega: FloatArray | None = None,
    *,
    tol: float,
    max_iter: int,
    chunk_rows: int = 65536,
    num_threads: int = 1,
) -> GeometricMedian:
    """Geometric median of checked rows; see [`geometric_median`]. Never warns."""
    f = _Objective(selection, omega, chunk_rows, num_threads)
    z = _start(selection, f.sum / f.total)
    seen, tried, n_iter = f.at(z), -1, 0
    while True:
        g, grad_norm = f.gradient(seen)
        dual = f.dual(z, seen, g)
        gap = 0.0 if grad_norm == 0 else (max(0.0, seen.objective / dual - 1) if dual > 0 else math.inf)
        if gap <= tol or n_iter >= max_iter:
            break
        n_iter += 1
        if seen.nearest != tried and 0 < seen.nearest_distance < _NEAR * seen.objective / f.total:
            tried = seen.nearest  # convergence to a row is slow: ask whether it is the optimum
            at_row = selection.at(tried, tried + 1)[0]
            there = f.at(at_row)
            if f.gradient(there)[1] == 0:
                z, seen = at_row, there
                continue
        step = seen.pull / seen.stiffness
        if seen.at_weight:
            step *= max(0.0, 1 - seen.at_weight / float(np.linalg.norm(seen.pull)))
        if np.array_equal(z + step, z):
            break  # nothing left in float64
        z = z + step
        seen = f.at(z)
    nearest = int(selection.numbers()[seen.nearest]) if seen.at_weight else None
    return GeometricMedian(
        z, seen.objective, min(dual, seen.objective), gap, grad_norm, n_iter, gap <= tol, nearest, len(selection)
    )
