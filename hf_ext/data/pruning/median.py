"""The geometric median with a proof of how good it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_ext.data.vectors.rows import FloatArray, Selection, check_rows, row_lengths

_CHUNK_ROWS = 65536  # rows a thread takes at a time; sums are taken in the order of the chunks
_START_ROWS = 2048  # rows on which the two starting points are compared
_NEAR = 0.1  # a row this close, as a share of the mean distance, may be the optimum itself
TOL = 1e-11  # of a matching's centre: theta adds the target up, so its error grows with the picks
MAX_ITER = 200


@dataclass(frozen=True)
class GeometricMedian:
    """
    A point and the proof of how near its objective is to the least possible.

    Attributes:
        center (`np.ndarray` of shape `(d,)`):
            The point, float64, in the rows' units.
        objective (`float`):
            Sum of the rows' distances to `center`.
        dual (`float`):
            Lower bound of that sum at any point.
        rel_gap (`float`):
            `objective / dual - 1`: no point is better by more than this share.
        grad_norm (`float`):
            Length of the objective's least subgradient over the number of rows; unitless, 0 at the optimum.
        n_iter (`int`):
            Steps taken.
        converged (`bool`):
            Whether `rel_gap <= tol`.
        at_row (`int` or `None`):
            A row that coincides with `center`.
    """

    center: FloatArray
    objective: float
    dual: float
    rel_gap: float
    grad_norm: float
    n_iter: int
    converged: bool
    at_row: int | None


def geometric_median(
    X: ArrayLike, *, tol: float = 1e-6, max_iter: int = MAX_ITER, strict: bool = False, num_threads: int = 1
) -> GeometricMedian:
    r"""
    Point with the least sum of distances to the rows: Weiszfeld's iteration, with the step of Vardi and Zhang at rows.

    $$\mu = \arg\min_z f(z), \qquad f(z) = \sum_i \lVert x_i - z \rVert$$

    Fewer than half of the rows can be moved anywhere, and $\mu$ stays bounded. The certificate is the dual bound
    $f(z) \ge \sum_i \langle u_i, x_i \rangle$ for any $u_i$ with $\lVert u_i \rVert \le 1$ that sum to zero: here
    $u_i = (v_i - g) / (1 + \lVert g \rVert)$, with $v_i$ the unit vectors from the point to the rows and $g$ their
    mean.

    Args:
        X (array of shape `(n, d)`):
            Rows, float32 (a memory map is read in blocks) or float64/float16 (cast once to float32).
        tol (`float`, *optional*, defaults to 1e-6):
            Stop once the proven `rel_gap` is at most this.
        max_iter (`int`, *optional*, defaults to 200):
            Steps, one pass over the rows each.
        strict (`bool`, *optional*, defaults to `False`):
            Raise instead of warn when `max_iter` is reached with `rel_gap > tol`.
        num_threads (`int`, *optional*, defaults to 1):
            Threads; they do not change the result.

    Returns:
        [`GeometricMedian`]

    Raises:
        ValueError: if a row cannot be used; the message names it.
        RuntimeError: if the proof falls short of `tol`, with `strict=True`.

    Reference: Weiszfeld 1937; Vardi and Zhang 2000, *The multivariate L1-median and associated data depth*; Acharya et
    al. 2025, *Geometric Median Matching for Robust k-Subset Selection from Noisy Data* (arXiv 2504.00564), eq. 5.
    """
    median = solve(Selection(check_rows(X)), tol=tol, max_iter=max_iter, num_threads=num_threads)
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


@dataclass(frozen=True)
class _Pass:
    """What one look at every row from a point z gives."""

    objective: float  # f(z)
    pull: FloatArray  # (d,) sum of the unit vectors v_i to the rows, rows at the point left out
    stiffness: float  # sum of 1 / distance, the same rows
    rows_at_point: float
    nearest: int  # place of the nearest row in the selection
    nearest_distance: float


class _Objective:
    def __init__(self, selection: Selection, threads: int) -> None:
        self.selection = selection
        n = len(selection)
        self.n = float(n)
        self.chunks = [(start, min(n, start + _CHUNK_ROWS)) for start in range(0, n, _CHUNK_ROWS)]
        self.threads = min(threads, len(self.chunks))
        self.sum = np.zeros(selection.rows.values.shape[1])
        for _, block in selection.blocks():
            self.sum += np.einsum("i,ij->j", np.ones(len(block)), block)

    def _chunk(self, chunk: tuple[int, int], z: FloatArray) -> _Pass:
        objective = stiffness = rows_at_point = 0.0
        nearest = -1
        nearest_distance = math.inf
        pull = np.zeros_like(z)
        for place, block in self.selection.blocks(*chunk):
            block -= z
            distance = row_lengths(block)
            away = distance > 0
            rate = np.divide(1.0, distance, out=np.zeros_like(distance), where=away)
            objective += float(np.einsum("i,i->", np.ones(len(distance)), distance))
            stiffness += float(rate.sum())
            rows_at_point += float((~away).sum())
            pull += np.einsum("i,ij->j", rate, block)
            first = int(np.argmin(distance))
            if distance[first] < nearest_distance:
                nearest = place.start + first
                nearest_distance = float(distance[first])
        return _Pass(objective, pull, stiffness, rows_at_point, nearest, nearest_distance)

    def at(self, z: FloatArray) -> _Pass:
        """One pass; partial sums are added in the order of the chunks, whatever thread made them."""
        if self.threads == 1:
            return _added(self._chunk(chunk, z) for chunk in self.chunks)
        with ThreadPoolExecutor(self.threads) as pool:
            return _added(pool.map(lambda chunk: self._chunk(chunk, z), self.chunks))

    def gradient(self, look: _Pass) -> tuple[FloatArray, float]:
        """Mean vector `g` of the certificate and the least subgradient's length over the number of rows."""
        length = float(np.linalg.norm(look.pull))
        if not look.rows_at_point:
            return look.pull / self.n, length / self.n
        # Each row at the point has any vector of length up to 1 as its subgradient: together they hold that much pull.
        remaining = max(0.0, 1 - look.rows_at_point / length) if length else 0.0
        return look.pull * (remaining / self.n), remaining * length / self.n

    def dual(self, z: FloatArray, look: _Pass, g: FloatArray) -> float:
        """Dual bound at `z`; `1 + ||g||` bounds the longest `v_i - g`."""
        offset = float(np.dot(g, self.sum - self.n * z))
        return (look.objective - offset) / (1.0 + float(np.linalg.norm(g)))


def _added(passes: Iterable[_Pass]) -> _Pass:
    total: _Pass | None = None
    for part in passes:
        if total is None:
            total = part
            continue
        closer = part if part.nearest_distance < total.nearest_distance else total
        total = _Pass(
            total.objective + part.objective,
            total.pull + part.pull,
            total.stiffness + part.stiffness,
            total.rows_at_point + part.rows_at_point,
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
    selection: Selection, *, tol: float = TOL, max_iter: int = MAX_ITER, num_threads: int = 1
) -> GeometricMedian:
    """Geometric median of checked rows; see [`geometric_median`]. Never warns."""
    f = _Objective(selection, num_threads)
    z = _start(selection, f.sum / f.n)
    look = f.at(z)
    tried_row = -1
    n_iter = 0
    while True:
        g, grad_norm = f.gradient(look)
        dual = f.dual(z, look, g)
        gap = 0.0 if grad_norm == 0 else (max(0.0, look.objective / dual - 1) if dual > 0 else math.inf)
        if gap <= tol or n_iter >= max_iter:
            break
        n_iter += 1
        if look.nearest != tried_row and 0 < look.nearest_distance < _NEAR * look.objective / f.n:
            tried_row = look.nearest  # convergence to a row is slow: ask whether it is the optimum
            row = selection.at(tried_row, tried_row + 1)[0]
            look_from_row = f.at(row)
            if f.gradient(look_from_row)[1] == 0:
                z = row
                look = look_from_row
                continue
        step = look.pull / look.stiffness  # Weiszfeld's step
        if look.rows_at_point:  # shortened as Vardi and Zhang do: the rows at the point hold it back
            step *= max(0.0, 1 - look.rows_at_point / float(np.linalg.norm(look.pull)))
        if np.array_equal(z + step, z):
            break  # float64 cannot tell the next point from this one
        z = z + step
        look = f.at(z)
    at_row = int(selection.numbers()[look.nearest]) if look.rows_at_point else None
    return GeometricMedian(z, look.objective, min(dual, look.objective), gap, grad_norm, n_iter, gap <= tol, at_row)
