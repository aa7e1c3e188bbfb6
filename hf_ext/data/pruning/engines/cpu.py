"""The engines on processors: `int8`, `f32`, `gram` (exact) and `pool` (approximate)."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np

from hf_ext.data.pruning._rows import BLOCK_ROWS
from hf_ext.data.pruning._types import FloatArray
from hf_ext.data.pruning.engines.state import TINY, Picks, State, kernels, numpy_picks


class Engine(Protocol):
    """Makes picks; `round` picks belong together (a pass over all rows serves them all)."""

    round: int

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        ...


class Float32:
    """Exact: centred float32 rows, scored in one fused pass a pick; rows within rounding are decided in float64."""

    round = 1

    def __init__(self, state: State, threads: int = 1) -> None:
        self.state, self.threads = state, threads
        n, d = len(state.numbers), len(state.target)
        self.z = np.empty((n, d), np.float32)
        self.norm = np.empty(n)
        for start in range(0, n, BLOCK_ROWS):
            block = state.centred(slice(start, start + BLOCK_ROWS))
            self.z[start : start + BLOCK_ROWS] = block
            self.norm[start : start + BLOCK_ROWS] = np.sqrt(np.einsum("ij,ij->i", block, block))
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
            return numpy_picks(self.state, count, self._bounds)
        picks, where = Picks.empty(count), self.state.where()
        out = (picks.places, picks.lengths, picks.scores)
        picks.evaluations = compiled.call(compiled.f32_picks, self.threads, self.z, self.norm, *where, *out)
        return picks


class Int8:
    """Exact: rows screened as 8-bit codes with a bound on what the codes lose; about three float64 scores a pick."""

    round = 1

    def __init__(self, state: State, threads: int = 1) -> None:
        self.state, self.threads = state, threads
        n, d = len(state.numbers), len(state.target)
        self.q = np.empty((n, d), np.int8)
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
        for start in range(0, len(self.q), BLOCK_ROWS):
            place = slice(start, start + BLOCK_ROWS)
            z = self.state.centred(place)
            largest = np.abs(z).max(1)
            step = np.where(largest > 1e-30, largest / 127 * 1.000001, 1.0).astype(np.float32)
            code = np.rint(z / step[:, None])
            rest = np.sqrt(((z - step[:, None] * code) ** 2).sum(1))
            self.q[place], self.scale[place] = code, step
            self.error[place] = rest * 1.000001
            self.norm[place] = (np.sqrt((z * z).sum(1)) + rest) * 1.000001 + 1e-30

    def _bounds(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        length, d = float(np.linalg.norm(theta)), len(theta)
        t = (theta / length).astype(np.float32)
        score = np.empty(len(self.q))
        for start in range(0, len(self.q), BLOCK_ROWS):  # blocks in float32 stay in the cache
            score[start : start + BLOCK_ROWS] = self.q[start : start + BLOCK_ROWS].astype(np.float32) @ t
        rounding = 1.05 * (d + 8) * 2.0**-24
        score *= self.scale
        return length * score, length * (self.error * (1 + 1e-6) + self.norm * (rounding * (1 + 1e-6)))

    def upper(self) -> FloatArray:
        """Upper bound of every row's score; -inf for taken rows."""
        compiled, theta = kernels(), self.state.theta
        if compiled is None:
            score, bound = self._bounds(theta)
            return np.where(self.state.taken, -np.inf, score + bound)
        n, width = len(self.q), (compiled.WIDTH_SHARED if self.threads > 1 else compiled.WIDTH_ALONE)
        upper, highest = np.empty(n), np.empty(-(-n // width))
        leaders = np.empty(len(highest), np.int64)
        out = (upper, highest, leaders)
        compiled.call(compiled.int8_screen, self.threads, self.coded, theta, self.state.taken, *out)
        return upper

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        compiled = kernels()
        if compiled is None:
            return numpy_picks(self.state, count, self._bounds)
        picks, where = Picks.empty(count), self.state.where()
        out = (picks.places, picks.lengths, picks.scores)
        picks.evaluations = compiled.call(compiled.int8_picks, self.threads, self.coded, *where, *out)
        return picks


class Gram:
    """Exact: the Gram matrix once, then the scores are kept up to date; for small groups of which much is kept."""

    round = 1

    def __init__(self, state: State, threads: int = 1) -> None:
        self.state = state
        z = state.centred(slice(None))
        self.norm = np.sqrt(np.einsum("ij,ij->i", z, z)) * (1 + 1e-9) + 1e-300
        self.gram = z @ z.T
        self.approximate = z @ state.theta
        # Float64 roundings grow with the picks, to 1e-9 of a row's norm after 20,000: no refresh is needed.
        self.slack = np.array([2 * (len(state.target) + 4) * TINY * np.linalg.norm(state.theta)])

    def _bounds(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        own = 4 * (len(theta) + 4) * TINY * float(np.linalg.norm(theta))
        return self.approximate, self.norm * (self.slack[0] + own)

    def _after(self, place: int) -> None:
        own = float(np.linalg.norm(self.state.theta))
        self.slack[0] += (2 * (len(self.state.target) + 4) * self.norm[place] + own) * TINY
        self.approximate -= self.gram[place]

    def picks(self, count: int) -> Picks:
        """The next `count` picks; moves the state."""
        compiled = kernels()
        if compiled is None:
            return numpy_picks(self.state, count, self._bounds, self._after)
        picks, where = Picks.empty(count), self.state.where()
        kept = (self.gram, self.approximate, self.norm, self.slack)
        picks.evaluations = compiled.gram_picks(*kept, *where, picks.places, picks.lengths, picks.scores)
        return picks


class Pool:
    """Approximate: one screen of all rows, then `round` exact picks among the `size` rows that it ranks highest."""

    def __init__(self, state: State, threads: int = 1, *, picks: int = 32, size: int = 2048) -> None:
        self.state, self.round, self.size = state, picks, max(size, picks)
        self.all = Int8(state, threads)

    def _best_rows(self) -> np.ndarray:
        left = np.flatnonzero(~self.state.taken)
        if len(left) <= self.size or not self.state.theta.any():
            return left[: self.size]
        return np.sort(np.argpartition(self.all.upper(), -self.size)[-self.size :])

    def picks(self, count: int) -> Picks:
        """The next `count` picks, in rounds; moves the state."""
        picks = Picks.empty(count)
        for start in range(0, count, self.round):
            rows = self._best_rows()
            add_round(picks, start, PoolRound(self.state, rows, self.all).picks(min(self.round, count - start)))
        return picks


class PoolRound(Int8):
    """Exact picks among some rows of a matching, whose theta and taken rows they move."""

    def __init__(self, state: State, places: np.ndarray, whole: Int8 | None = None) -> None:
        self.whole_state, self.places = state, places
        part = copy(state)  # the same theta
        part.numbers = state.numbers[places]
        part.taken = np.zeros(len(places), dtype=np.bool_)
        if whole is None:
            super().__init__(part)
            return
        self.state, self.threads = part, 1  # too few rows to share out
        self.q, self.scale, self.error, self.norm = (column[places] for column in whole.coded)

    def picks(self, count: int) -> Picks:
        """The next `count` picks, their places in the whole; moves the whole's state."""
        picks = super().picks(count)
        picks.places = self.places[picks.places]
        if not self.whole_state.replace:
            self.whole_state.taken[picks.places] = True
        return picks


def add_round(picks: Picks, start: int, some: Picks) -> None:
    """Write a round's picks to their place; only its first score speaks of all rows."""
    place = slice(start, start + len(some.places))
    picks.places[place], picks.lengths[place] = some.places, some.lengths
    picks.scores[start], picks.scores[start + 1 : place.stop] = some.scores[0], np.nan
    picks.evaluations += some.evaluations
