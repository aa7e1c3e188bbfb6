"""What every engine works on, and the plain numpy decision that all of them share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import numpy as np

from hf_ext.data.pruning._rows import Selection
from hf_ext.data.pruning._types import FloatArray, IntArray

TINY = 2.0**-53  # half a unit in the last place of float64
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
    replace: bool = False
    taken: np.ndarray = field(init=False)  # (n,) bool
    numbers: IntArray = field(init=False)  # (n,) row numbers in the whole array

    def __post_init__(self) -> None:
        self.taken = np.zeros(len(self.selection), dtype=np.bool_)
        self.numbers = self.selection.numbers()

    def centred(self, places: slice | IntArray) -> FloatArray:
        """Float64 rows less the target."""
        block = self.selection.rows.take(self.numbers[places])
        block -= self.target
        return block

    def exact(self, places: IntArray) -> FloatArray:
        """Deciding scores: summed from the first dimension to the last, so that every engine has the same number."""
        return np.cumsum(self.centred(places) * self.theta, axis=1)[:, -1]

    def where(self) -> tuple[np.ndarray, FloatArray, IntArray, FloatArray, FloatArray, np.ndarray, bool]:
        """The state as the compiled loops take it."""
        rows = self.selection.rows
        return rows.values, rows.inverse_norms, self.numbers, self.target, self.theta, self.taken, self.replace

    def take(self, place: int) -> float:
        """Take a row; return the length of theta after it."""
        if not self.replace:
            self.taken[place] = True
        self.theta -= self.centred(slice(place, place + 1))[0]
        return float(np.sqrt(np.cumsum(self.theta * self.theta)[-1]))


@dataclass
class Picks:
    """Some picks, in order."""

    places: IntArray  # in the selection
    lengths: FloatArray  # ||theta|| after each
    scores: FloatArray  # greatest <theta, row - target> before each; nan where only a part of the rows was seen
    evaluations: int  # float64 scores taken

    @classmethod
    def empty(cls, count: int) -> Picks:
        """Room for `count` picks."""
        return cls(np.zeros(count, np.int64), np.zeros(count), np.zeros(count), 0)


Bounds = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


def numpy_picks(state: State, count: int, bounds: Bounds, after: Callable[[int], None] | None = None) -> Picks:
    """
    Picks without compiled loops.

    Args:
        bounds (`Callable`):
            theta -> approximate scores and what bounds their error, shape `(n,)` both.
        after (`Callable`, *optional*):
            Told the place of each pick before theta moves.
    """
    picks = Picks.empty(count)
    for p in range(count):
        if not state.theta.any():
            best, score = int(np.argmin(state.taken)), 0.0
        else:
            approximate, error = bounds(state.theta)
            low = np.where(state.taken, -np.inf, approximate - error)
            first = np.argmax(low, keepdims=True)
            reach = np.flatnonzero((approximate + error >= state.exact(first)[0]) & ~state.taken)
            exact = state.exact(reach)
            at = int(np.argmax(exact))  # the first of equals
            best, score = int(reach[at]), float(exact[at])
            picks.evaluations += len(reach)
        if after is not None:
            after(best)
        picks.places[p], picks.scores[p], picks.lengths[p] = best, score, state.take(best)
    return picks
