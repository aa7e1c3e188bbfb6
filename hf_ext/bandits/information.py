"""What playing an arm tells about the others: a matrix of precisions, checked once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.guards.numbers import SIZE

__all__ = ["SideInformation"]

FloatArray = NDArray[np.float64]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SideInformation:
    r"""
    How precisely each arm, when played, shows the mean of each other.

    Playing arm $i$ earns a reward of mean $\mu_i$ and shows, for each $j$ with $P_{ij} > 0$, an independent
    $X_{ij} \sim \mathcal{N}(\mu_j, 1 / P_{ij})$. What makes two arms *alike* is a bias and no precision: a look at a
    similar arm belongs into `bias_sd`, or its information grows without limit around a wrong mean.

    Args:
        precision (array of shape `(K, K)`):
            $P$, finite and non-negative, in 1 / reward². The row is the arm played, the column the arm learned about;
            0 where it tells nothing.
        bias_sd (array of shape `(K, K)`, *optional*):
            Standard deviation of $E[X_{ij}] - \mu_j$, in units of reward; 0 where observations are unbiased. What arm
            i tells of j then never exceeds an information of `1 / bias_sd²`, however often it is played.
        names (`Sequence[str]`, *optional*):
            Of the arms, all different; "arm 0", "arm 1", ... otherwise.

    Raises:
        ValueError: if the shapes do not go together, a number is negative or not finite, names are equal, or nobody
            observes an arm without bias: its mean can never be learned.

    Reference: Wu, György and Szepesvári 2015, *Online Learning with Gaussian Payoffs and Side Observations*
    (arXiv 1510.08108), section 2.
    """

    precision: FloatArray
    bias_sd: FloatArray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        precision = _square("precision", self.precision)
        size = len(precision)
        names = _names(self.names, size)
        unbiased = precision
        bias_sd = None
        if self.bias_sd is not None:
            bias_sd = _square("bias_sd", self.bias_sd)
            if bias_sd.shape != precision.shape:
                raise ValueError(f"bias_sd has shape {bias_sd.shape} and precision {precision.shape}.")
            unbiased = np.where(bias_sd > 0, 0.0, precision)
            if not (bias_sd > 0).any():
                bias_sd = None
        for arm in np.flatnonzero(~(unbiased > 0).any(axis=0)):
            raise ValueError(
                f"no arm observes {names[arm]!r} (column {arm}) without bias: its mean can never be learned. Give an "
                "arm a precision there, as a rule its own."
            )
        for arm in np.flatnonzero(~(precision > 0).any(axis=1)):
            logger.warning("%r (row %d) observes nothing: playing it earns and teaches nothing.", names[arm], arm)
        object.__setattr__(self, "precision", precision)
        object.__setattr__(self, "bias_sd", bias_sd)
        object.__setattr__(self, "names", names)

    @property
    def num_arms(self) -> int:
        """K."""
        return len(self.precision)

    @property
    def unbiased_precision(self) -> FloatArray:
        """The precision of the observations without bias, shape `(K, K)`: the others' information is bounded."""
        return self.precision if self.bias_sd is None else np.where(self.bias_sd > 0, 0.0, self.precision)

    @classmethod
    def bandit(cls, num_arms: int, sd: ArrayLike = 1.0, names: Sequence[str] = ()) -> SideInformation:
        """Every arm shows itself alone, with standard deviation `sd` (a number, or one an arm)."""
        return cls.graph(np.eye(_size(num_arms), dtype=bool), sd, names)

    @classmethod
    def full(cls, num_arms: int, sd: ArrayLike = 1.0, names: Sequence[str] = ()) -> SideInformation:
        """Every arm shows all, each with the standard deviation `sd` of the arm that is learned about."""
        return cls.graph(np.ones((_size(num_arms),) * 2, dtype=bool), sd, names)

    @classmethod
    def graph(cls, adjacency: ArrayLike, sd: ArrayLike = 1.0, names: Sequence[str] = ()) -> SideInformation:
        """Playing i shows j where `adjacency[i, j]`; an arm shows itself only where the diagonal says so."""
        edges = _square("adjacency", adjacency) > 0
        spread = _spread(sd, edges.shape)
        return cls.from_sd(np.where(edges, spread, np.inf), names)

    @classmethod
    def from_sd(cls, sd: ArrayLike, names: Sequence[str] = ()) -> SideInformation:
        """
        From standard deviations, in units of reward.

        Args:
            sd (array of shape `(K, K)`):
                Row = played, column = learned; infinite where nothing is learned.
            names (`Sequence[str]`, *optional*):
                Of the arms.

        Raises:
            ValueError: if an entry is NaN, negative or zero; the message names row, column and value.
        """
        values = float_array("sd", sd)
        with np.errstate(divide="ignore", over="ignore"):
            precision = np.square(1 / values)
        # 1 / 1e-200 squared overflows: as exact as a zero
        for row, column in np.argwhere(~(values > 0) | (precision == np.inf)) if values.ndim == 2 else ():
            value = values[row, column]
            remedy = (
                "An exact observation: use a small positive standard deviation."
                if value >= 0
                else "Give a number above 0, or infinity where nothing is learned."
            )
            raise ValueError(f"sd at row {row}, column {column} is {value:g}. {remedy}")
        return cls(precision, names=names)  # type: ignore[arg-type]

    @classmethod
    def from_counts(cls, counts: ArrayLike, sd: ArrayLike, names: Sequence[str] = ()) -> SideInformation:
        """
        From how many rows of each arm one play shows: $P_{ij} = n_{ij} / s_j^2$, which is exact.

        Args:
            counts (array of shape `(K, K)`):
                Rows of arm j in one play of arm i; not negative.
            sd (array of shape `(K,)`):
                Standard deviation of one row's value, in units of reward.
            names (`Sequence[str]`, *optional*):
                Of the arms.

        Raises:
            ValueError: if a count is negative or not finite, or a standard deviation is not a finite number above 0.
        """
        rows = _square("counts", counts)
        spread = _spread(sd, (len(rows),))
        for arm in np.flatnonzero(~((spread > 0) & (spread < np.inf))):
            raise ValueError(f"sd of arm {arm} is {spread[arm]:g}. Give a finite number above 0.")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return cls(rows / np.square(spread), names=names)  # type: ignore[arg-type]


def require_information(info: object) -> None:
    """
    Refuse what is no [`SideInformation`], such as the matrix alone.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(info, SideInformation):
        raise TypeError(f"info must be a SideInformation, got {type(info).__name__}. Pass SideInformation(precision).")


def _size(num_arms: Any) -> int:
    problem = SIZE.problem_of(num_arms)
    if problem is not None:
        raise ValueError(f"num_arms {problem}.")
    return int(num_arms)


def _names(names: object, size: int) -> tuple[str, ...]:
    """Names of all arms, as they were given or by number."""
    is_many = isinstance(names, Iterable) and not isinstance(names, str)  # of one text the letters would be names
    words = tuple(names) if is_many else names  # type: ignore[arg-type]
    if words is None or words == ():
        return tuple(f"arm {arm}" for arm in range(size))
    if not isinstance(words, tuple) or not all(isinstance(name, str) for name in words) or len({*words}) != size:
        raise ValueError(f"names must be {size} different texts, one an arm, got {words!r}."[:400])
    if len(words) != size:
        raise ValueError(f"names must be {size} different texts, one an arm, got {len(words)}.")
    return tuple(str(name) for name in words)


def float_array(name: str, values: ArrayLike) -> FloatArray:
    """
    A private copy as float64.

    Raises:
        ValueError: if they are no real numbers, such as texts, or rows of unlike lengths.
    """
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex ones would lose their imaginary parts")
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error


def _spread(sd: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """Standard deviations for every entry: one number, or one an arm that is learned about."""
    values = float_array("sd", sd)
    if values.shape not in ((), shape[-1:], shape):
        raise ValueError(f"sd must be a number, or {shape[-1]} of them, one an arm, got shape {values.shape}.")
    return np.broadcast_to(values, shape)


def _square(name: str, values: ArrayLike) -> FloatArray:
    """A private, read-only copy of a square matrix of finite, non-negative numbers."""
    matrix = float_array(name, values)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, one row and one column an arm, got shape {matrix.shape}.")
    for row, column in np.argwhere(~((matrix >= 0) & (matrix < np.inf))):
        raise ValueError(
            f"{name} at row {row}, column {column} is {matrix[row, column]:g}. Give a finite number, at least 0."
        )
    matrix.flags.writeable = False
    return matrix
