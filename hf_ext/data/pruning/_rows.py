"""Checked rows: float32 in memory or mapped from disk, read in float64 blocks, with their norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ext.data.pruning._types import FloatArray, IntArray

BLOCK_ROWS = 1024  # float64 blocks of this many rows stay in a core's cache
_TOO_LARGE = 1e30  # squares of longer rows leave float32


@dataclass(frozen=True)
class Rows:
    """Rows as `gm_matching` sees them: `values * inverse_norms`, never held whole in float64."""

    values: np.ndarray  # (n, d) float32, C order, read-only; may be a view of a file
    inverse_norms: FloatArray  # (n,) 1 / ||x|| for metric="unit", ones for "raw"
    norms: FloatArray  # (n,) ||x|| of the values as given
    notes: tuple[str, ...] = ()

    def take(self, index: slice | IntArray) -> FloatArray:
        """Float64 rows of a slice or of row numbers, shape `(rows, d)`."""
        block = self.values[index].astype(np.float64)
        block *= self.inverse_norms[index, None]
        return block


@dataclass(frozen=True)
class Selection:
    """Some of the rows, ascending: what one group or one partition works on."""

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


def check_rows(X: Any, metric: str = "raw") -> Rows:
    """
    Check an array of rows and measure their norms.

    Args:
        X (array of shape `(n, d)`):
            float32, or float64/float16 (cast once, with a note). A float32 memory map is read in blocks, never copied.
        metric (`"unit"` or `"raw"`):
            Whether rows are divided by their length.

    Raises:
        ValueError: not two-dimensional, not floating point, a row that is not finite, or a zero row with
            `metric="unit"`; the message names the row.
    """
    if metric not in ("unit", "raw"):
        raise ValueError(f"metric must be 'unit' or 'raw', got {metric!r}.")
    values, notes = _as_float32(X)
    norms = np.empty(len(values))
    for start in range(0, len(values), BLOCK_ROWS):
        block = values[start : start + BLOCK_ROWS].astype(np.float64)
        squares = np.einsum("ij,ij->i", block, block)
        bad = np.flatnonzero(~(squares < _TOO_LARGE**2))
        if len(bad):
            _refuse(values, start + int(bad[0]))
        norms[start : start + BLOCK_ROWS] = np.sqrt(squares)
    if metric == "raw":
        return Rows(values, np.ones(len(values)), norms, notes)
    zero = np.flatnonzero(norms == 0)
    if len(zero):
        more = f" ({len(zero) - 1:,} more like it)" if len(zero) > 1 else ""
        raise ValueError(
            f"Row {zero[0]:,} is zero{more}: it has no direction. Drop such rows, or pass metric='raw', which "
            "does not divide rows by their length."
        )
    return Rows(values, 1.0 / norms, norms, notes)


def _as_float32(X: Any) -> tuple[np.ndarray, tuple[str, ...]]:
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
        with np.errstate(over="ignore"):  # what overflows is reported with its row
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array).view(np.ndarray)
    array = array[:]  # a view of our own: the caller's array stays writeable
    array.flags.writeable = False
    return array, notes


def _refuse_ragged(X: list[Any] | tuple[Any, ...]) -> None:
    lengths = [len(row) if hasattr(row, "__len__") else -1 for row in X]
    for row, length in enumerate(lengths):
        if length < 0 or length != lengths[0]:
            what = "is no vector" if length < 0 else f"has {length} numbers, row 0 has {lengths[0]}"
            raise ValueError(f"Row {row:,} {what}: {str(X[row])[:80]}. Every row must be a vector of the same length.")


def _refuse(values: np.ndarray, row: int) -> None:
    where = np.flatnonzero(~np.isfinite(values[row]))
    excerpt = np.array2string(values[row], threshold=8, edgeitems=3, precision=4)
    if not len(where):
        raise ValueError(f"Row {row:,} is longer than {_TOO_LARGE:g}: {excerpt}. Rescale the rows.")
    raise ValueError(
        f"Row {row:,}, dimension {where[0]:,} is {values[row, where[0]]}: {excerpt}. Drop the row or compute it "
        "again; rows of 16-bit models overflow easily."
    )
