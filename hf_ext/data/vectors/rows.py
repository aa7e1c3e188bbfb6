"""Checked vectors: float32 in memory or mapped from disk, read in float64 blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

BLOCK_ROWS = 1024  # float64 blocks of this many rows stay in a core's cache
_LONGEST = 1e30  # squares of longer rows leave float32


class BadVector(ValueError):
    """
    A vector that no selector can use.

    Attributes:
        row (`int`):
            Its number, from 0.
        problem, remedy (`str`):
            What is wrong with it, with an excerpt, and what to do.
    """

    def __init__(self, row: int, problem: str, remedy: str) -> None:
        super().__init__(f"Row {row:,}: {problem}. {remedy}")
        self.row = row
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True)
class Rows:
    """Vectors as they are matched: `values * inverse_norms`, never held whole in float64."""

    values: np.ndarray  # (n, d) float32, C order, read-only; may be a view of a file
    inverse_norms: FloatArray  # (n,) 1 / ||x|| for metric="unit", ones for "raw"
    notes: tuple[str, ...] = ()

    def take(self, index: slice | IntArray) -> FloatArray:
        """Float64 rows of a slice or of row numbers, shape `(rows, d)`."""
        block = self.values[index].astype(np.float64)
        block *= self.inverse_norms[index, None]
        return block


@dataclass(frozen=True)
class Selection:
    """Some of the rows, ascending: what one group works on."""

    rows: Rows
    index: IntArray | None = None  # None: every row

    def __len__(self) -> int:
        return len(self.rows.values) if self.index is None else len(self.index)

    def at(self, start: int, stop: int) -> FloatArray:
        """Float64 rows `start` to `stop` of the selection."""
        return self.rows.take(slice(start, stop) if self.index is None else self.index[start:stop])

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, FloatArray]]:
        """Float64 blocks in order, each with its place in the selection."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, BLOCK_ROWS):
            last = min(stop, first + BLOCK_ROWS)
            yield slice(first, last), self.at(first, last)

    def numbers(self) -> IntArray:
        """Row numbers in the whole array."""
        return np.arange(len(self), dtype=np.int64) if self.index is None else self.index

    def mean(self) -> FloatArray:
        """Mean row in float64."""
        return sum((block.sum(0) for _, block in self.blocks()), np.zeros(self.rows.values.shape[1])) / len(self)

    def distances(self, point: FloatArray) -> FloatArray:
        """Euclidean distance of every row from a point, shape `(rows,)`."""
        return np.concatenate([row_lengths(block - point) for _, block in self.blocks()])


def row_lengths(block: FloatArray) -> FloatArray:
    """Euclidean length of each row of a float64 block."""
    return np.sqrt(np.einsum("ij,ij->i", block, block))


def check_rows(X: ArrayLike, metric: str = "raw") -> Rows:
    """
    Check an array of vectors and measure their lengths.

    Args:
        X (array of shape `(n, d)`):
            float32, or float64/float16 (cast once, with a note). A float32 memory map is read in blocks, never copied.
        metric (`"unit"` or `"raw"`):
            Whether vectors are divided by their length.

    Raises:
        ValueError: if `X` is not two-dimensional or not floating point.
        BadVector: if a row is not finite, is longer than 1e30, or is zero with `metric="unit"`.
    """
    if metric not in ("unit", "raw"):
        raise ValueError(f"metric must be 'unit' or 'raw', got {metric!r}.")
    values, notes = _as_float32(X)
    lengths = np.empty(len(values))
    for start in range(0, len(values), BLOCK_ROWS):
        block = values[start : start + BLOCK_ROWS].astype(np.float64)
        squares = np.einsum("ij,ij->i", block, block)
        # Written so that a NaN is bad too: every comparison with one is false.
        bad_places = np.flatnonzero(~(squares < _LONGEST**2))
        if len(bad_places):
            _refuse(values, start + int(bad_places[0]))
        lengths[start : start + BLOCK_ROWS] = np.sqrt(squares)
    if metric == "raw":
        return Rows(values, np.ones(len(values)), notes)
    zero_rows = np.flatnonzero(lengths == 0)
    if len(zero_rows):
        more = f" ({len(zero_rows) - 1:,} more like it)" if len(zero_rows) > 1 else ""
        remedy = "Drop the row, or pass metric='raw', which does not divide vectors by their length."
        raise BadVector(int(zero_rows[0]), f"the vector is zero{more}, it has no direction", remedy)
    return Rows(values, 1.0 / lengths, notes)


def _as_float32(X: ArrayLike) -> tuple[np.ndarray, tuple[str, ...]]:
    if isinstance(X, (list, tuple)):
        _refuse_ragged(X)
    array = np.asarray(X)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"Rows must be an array of shape (n, d) with n, d >= 1, got shape {array.shape}.")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"Rows must be floating point vectors, got {array.dtype}. Pass embeddings, or X.astype('float32') if "
            "these numbers are coordinates."
        )
    notes: tuple[str, ...] = ()
    if array.dtype != np.float32:
        notes = (f"rows cast from {array.dtype} to float32",)
        with np.errstate(over="ignore"):  # an overflow is reported with its row
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array).view(np.ndarray)
    array = array[:]  # a view of our own: the caller's array stays writeable
    array.flags.writeable = False
    return array, notes


def _refuse_ragged(X: list | tuple) -> None:
    lengths = [len(row) if hasattr(row, "__len__") else -1 for row in X]
    for row, length in enumerate(lengths):
        if length < 0 or length != lengths[0]:
            problem = "is no vector" if length < 0 else f"has {length} numbers, row 0 has {lengths[0]}"
            raise ValueError(f"Row {row:,} {problem}: {str(X[row])[:80]}. Every row must be a vector of one length.")


def _refuse(values: np.ndarray, row: int) -> NoReturn:
    excerpt = np.array2string(values[row], threshold=8, edgeitems=3, precision=4)[:80]
    dimensions = np.flatnonzero(~np.isfinite(values[row]))
    if not len(dimensions):
        raise BadVector(row, f"the vector is longer than {_LONGEST:g}: {excerpt}", "Rescale the vectors.")
    raise BadVector(
        row,
        f"dimension {dimensions[0]:,} of the vector is {values[row, dimensions[0]]}: {excerpt}",
        "Drop the row or compute it again; vectors of 16-bit models overflow easily.",
    )
