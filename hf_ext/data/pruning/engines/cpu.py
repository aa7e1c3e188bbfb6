"""
The engines on processors: `int8` and `f32` (exact), `pool` (approximate).

An exact engine screens all rows with cheap scores whose error it can bound, and takes float64 scores of the few rows
that the bounds do not rule out. A sum of d products is off by at most about d u ||row|| ||theta||, in any order of
summation, with u = 2^-24 in float32 and 2^-53 in float64 (Higham 2002, *Accuracy and Stability of Numerical
Algorithms*, section 3.1); the factors 1.05 and the like cover second-order terms.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np

from hf_ext.data.vectors.rows import BLOCK_ROWS, FloatArray, IntArray, Selection, row_lengths

logger = logging.getLogger(__name__)


@cache
def kernels() -> ModuleType | None:
    """The compiled loops, or `None` where numba (extra `fast`) is missing."""
    try:
        from hf_ext.data.pruning.engines import _numba
    except ImportError as error:
        logger.info("numba cannot be used (%s): plain numpy. Install hf-ext[fast] for several times the speed.", error)
        return None
    return _numba


@dataclass
class State:
    """A matching under way: everything that a pick reads or changes."""

    selection: Selection
    target: FloatArray  # (d,)
    theta: FloatArray  # (d,) theta_0 + t * target - sum of picks
    is_taken: np.ndarray = field(init=False)  # (n,) bool
    numbers: IntArray = field(init=False)  # (n,) row numbers in the whole array

    def __post_init__(self) -> None:
        self.is_taken = np.zeros(len(self.selection), dtype=np.bool_)
        self.numbers = self.selection.numbers()

    def centred(self, places: slice | IntArray) -> FloatArray:
        """Float64 rows less the target."""
        block = self.selection.rows.take(self.numbers[places])
        block -= self.target
        return block

    def exact(self, places: IntArray) -> FloatArray:
        """Deciding scores: summed from the first dimension to the last, so that every engine has the same number."""
        return np.cumsum(self.centred(places) * self.theta, axis=1)[:, -1]

    def where(self) -> tuple[np.ndarray, FloatArray, IntArray, FloatArray, FloatArray, np.ndarray]:
        """The state as the compiled loops take it."""
        rows = self.selection.rows
        return rows.values, rows.inverse_norms, self.numbers, self.target, self.theta, self.is_taken

    def take(self, place: int) -> float:
        """Take a row; return the length of theta after it."""
        self.is_taken[place] = True
        self.theta -= self.centred(slice(place, place + 1))[0]
        return float(np.sqrt(np.cumsum(self.theta * self.theta)[-1]))


@dataclass
class Picks:
    """Some picks, in order."""

    places: IntArray  # in the selection
    lengths: FloatArray  # ||theta|| after each
    scores: FloatArray  # greatest <theta, row - target> before each; nan where only a part of the rows was scored
    evaluations: int  # float64 scores taken

    @classmethod
    def empty(cls, count: int) -> Picks:
        """Room for `count` picks."""
        return cls(np.zeros(count, np.int64), np.zeros(count), np.zeros(count), 0)


class Engine(Protocol):
    """Makes picks; `round` picks belong together (a pass over all rows serves them all)."""

    round: int

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        ...


def _numpy_picks(state: State, count: int, bounds: Callable[[FloatArray], tuple[FloatArray, FloatArray]]) -> Picks:
    """Picks without compiled loops; `bounds` gives approximate scores of theta and what bounds their error, `(n,)`."""
    picks = Picks.empty(count)
    for p in range(count):
        best = int(np.argmin(state.is_taken))  # from zero every row ties: the first one left
        score = 0.0
        if state.theta.any():
            approximate, error = bounds(state.theta)
            leader = np.argmax(np.where(state.is_taken, -np.inf, approximate - error), keepdims=True)
            reach = np.flatnonzero((approximate + error >= state.exact(leader)[0]) & ~state.is_taken)
            exact = state.exact(reach)
            place = int(np.argmax(exact))  # the first of equals
            best = int(reach[place])
            score = float(exact[place])
            picks.evaluations += len(reach)
        picks.places[p] = best
        picks.scores[p] = score
        picks.lengths[p] = state.take(best)
    return picks


class Float32:
    """Exact: centred float32 rows, scored in one fused pass a pick; rows within rounding are decided in float64."""

    round = 1

    def __init__(self, state: State, threads: int = 1) -> None:
        self.state = state
        self.threads = threads
        n = len(state.numbers)
        d = len(state.target)
        self.z = np.empty((n, d), np.float32)
        self.norm = np.empty(n)
        for start in range(0, n, BLOCK_ROWS):
            block = state.centred(slice(start, start + BLOCK_ROWS))
            self.z[start : start + BLOCK_ROWS] = block
            self.norm[start : start + BLOCK_ROWS] = row_lengths(block)
        self.norm = self.norm * (1 + 1e-9) + 1e-30
        self.unit_error = 1.05 * (d + 8) * 2.0**-24  # casts of row and theta, and d roundings in any order

    def _bounds(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        length = float(np.linalg.norm(theta))
        score = self.z @ (theta / length).astype(np.float32)
        return length * score.astype(np.float64), self.norm * (self.unit_error * length)

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        compiled = kernels()
        if compiled is None:
            return _numpy_picks(self.state, count, self._bounds)
        picks = Picks.empty(count)
        out = (picks.places, picks.lengths, picks.scores)
        picks.evaluations = compiled.call(
            compiled.f32_picks, self.threads, self.z, self.norm, *self.state.where(), *out
        )
        return picks


class Int8:
    """Exact: rows screened as 8-bit codes with a bound on what the codes lose; about three float64 scores a pick."""

    round = 1

    def __init__(self, state: State, threads: int = 1) -> None:
        self.state = state
        self.threads = threads
        n = len(state.numbers)
        self.q = np.empty((n, len(state.target)), np.int8)
        self.scale, self.error, self.norm = (np.empty(n, np.float32) for _ in range(3))
        compiled = kernels()
        if compiled is None:
            self._quantise()
        else:
            compiled.call(compiled.quantise, threads, *state.where()[:4], self.coded)

    @property
    def coded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Codes (n, d), and a row each: step, bound of ||row - step * code||, bound of the norms of both."""
        return self.q, self.scale, self.error, self.norm

    def _quantise(self) -> None:
        # Steps and bounds are rounded up by 1e-6, more than their cast to float32 can lose.
        for start in range(0, len(self.q), BLOCK_ROWS):
            place = slice(start, start + BLOCK_ROWS)
            z = self.state.centred(place)
            largest = np.abs(z).max(1)
            step = np.where(largest > 1e-30, largest / 127 * 1.000001, 1.0).astype(np.float32)
            code = np.rint(z / step[:, None])
            residual = np.sqrt(((z - step[:, None] * code) ** 2).sum(1))
            self.q[place] = code
            self.scale[place] = step
            self.error[place] = residual * 1.000001
            self.norm[place] = (np.sqrt((z * z).sum(1)) + residual) * 1.000001 + 1e-30

    def _bounds(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        # |<theta, row> - <theta, step * code>| <= ||theta|| ||row - step * code|| by Cauchy-Schwarz, and roundings.
        length = float(np.linalg.norm(theta))
        t = (theta / length).astype(np.float32)
        score = np.empty(len(self.q))
        for start in range(0, len(self.q), BLOCK_ROWS):  # blocks in float32 stay in the cache
            score[start : start + BLOCK_ROWS] = self.q[start : start + BLOCK_ROWS].astype(np.float32) @ t
        rounding = 1.05 * (len(theta) + 8) * 2.0**-24
        score *= self.scale
        return length * score, length * (self.error * (1 + 1e-6) + self.norm * (rounding * (1 + 1e-6)))

    def upper(self) -> FloatArray:
        """Upper bound of every row's score; -inf for taken rows."""
        compiled = kernels()
        theta = self.state.theta
        if compiled is None:
            score, bound = self._bounds(theta)
            return np.where(self.state.is_taken, -np.inf, score + bound)
        n = len(self.q)
        width = compiled.WIDTH_SHARED if self.threads > 1 else compiled.WIDTH_ALONE
        upper = np.empty(n)
        highest = np.empty(-(-n // width))
        leaders = np.empty(len(highest), np.int64)
        out = (upper, highest, leaders)
        compiled.call(compiled.int8_screen, self.threads, self.coded, theta, self.state.is_taken, *out)
        return upper

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        compiled = kernels()
        if compiled is None:
            return _numpy_picks(self.state, count, self._bounds)
        picks = Picks.empty(count)
        out = (picks.places, picks.lengths, picks.scores)
        picks.evaluations = compiled.call(compiled.int8_picks, self.threads, self.coded, *self.state.where(), *out)
        return picks


class Pool:
    """Approximate: one screen of all rows, then `round` exact picks among the `size` rows that it ranks highest."""

    def __init__(self, state: State, threads: int = 1, *, picks: int = 32, size: int = 2048) -> None:
        self.state = state
        self.round = picks
        self.size = max(size, picks)
        self.screen = Int8(state, threads)

    def _best_rows(self) -> np.ndarray:
        remaining = np.flatnonzero(~self.state.is_taken)
        if len(remaining) <= self.size or not self.state.theta.any():
            return remaining[: self.size]
        return np.sort(np.argpartition(self.screen.upper(), -self.size)[-self.size :])

    def picks(self, count: int) -> Picks:
        """The next `count` picks, in rounds; moves the state."""
        picks = Picks.empty(count)
        for start in range(0, count, self.round):
            pool = PoolRound(self.state, self._best_rows(), self.screen)
            add_round(picks, start, pool.picks(min(self.round, count - start)))
        return picks


class PoolRound(Int8):
    """Exact picks among some rows of a matching, whose theta and taken rows they move."""

    def __init__(self, state: State, places: np.ndarray, screen: Int8 | None = None) -> None:
        self.whole_state = state
        self.places = places
        part = copy(state)  # the same theta
        part.numbers = state.numbers[places]
        part.is_taken = np.zeros(len(places), dtype=np.bool_)
        if screen is None:
            super().__init__(part)
            return
        self.state = part
        self.threads = 1  # too few rows to share out
        self.q, self.scale, self.error, self.norm = (column[places] for column in screen.coded)

    def picks(self, count: int) -> Picks:
        """The next `count` picks, their places in the whole; moves the whole's state."""
        picks = super().picks(count)
        picks.places = self.places[picks.places]
        self.whole_state.is_taken[picks.places] = True
        return picks


def add_round(picks: Picks, start: int, part: Picks) -> None:
    """Write a round's picks to their place; only its first score speaks of all rows."""
    place = slice(start, start + len(part.places))
    picks.places[place] = part.places
    picks.lengths[place] = part.lengths
    picks.scores[start] = part.scores[0]
    picks.scores[start + 1 : place.stop] = np.nan
    picks.evaluations += part.evaluations
