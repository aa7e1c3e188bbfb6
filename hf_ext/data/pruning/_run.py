"""One group's matching, from its centre to its last pick, in pieces that can be saved."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hf_ext.data.pruning import engines
from hf_ext.data.pruning._resume import Saved
from hf_ext.data.pruning._rows import Selection
from hf_ext.data.pruning._types import FloatArray, IntArray
from hf_ext.data.pruning.engines import State
from hf_ext.data.pruning.groups import Label
from hf_ext.data.pruning.median import GeometricMedian, not_converged, solve

_PIECE_SECONDS = 0.25  # of picks between two looks at the clock
_TOL, _WARN_TOL = 1e-11, 1e-6  # theta adds the target up: its error grows with the picks


@dataclass(frozen=True)
class Settings:
    """Arguments of `gm_matching` that concern one group."""

    center: Any
    theta0: Any
    engine: str
    pool: tuple[int, int]
    partitions: int
    carry_theta: bool
    replace: bool
    trim: float
    target_scale: float | str
    backend: str
    device: str | None

    def check(self, d: int) -> None:
        """Raise `ValueError` on a value that cannot be used; centres are checked where they are used."""
        engines.choose(self.engine, 1, d, 1)
        if self.backend not in ("numpy", "torch"):
            raise ValueError(f"backend must be 'numpy' or 'torch', got {self.backend!r}.")
        if self.device is not None and self.backend == "numpy":
            raise ValueError(f"device={self.device!r} needs backend='torch'.")
        if not 0 <= self.trim < 1:
            raise ValueError(f"trim must be a share of the rows in [0, 1), got {self.trim!r}.")
        if self.partitions < 1 or min(self.pool) < 1:
            raise ValueError("partitions, pool_picks and pool_rows must be at least 1.")
        scale = self.target_scale
        if scale != "unit" and not (isinstance(scale, (int, float)) and np.isfinite(scale)):
            raise ValueError(f"target_scale must be a finite number or 'unit', got {scale!r}.")

    def of_group(self, label: Label, grouped: bool) -> Settings:
        """The settings with this group's own centre and start, where dictionaries give them."""
        own: dict[str, Any] = {}
        for name in ("center", "theta0"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                if not grouped or label not in value:
                    raise ValueError(f"{name} is a dictionary without an entry for group {label!r}.")
                own[name] = value[label]
        return replace(self, **own)

    def identity(self) -> dict[str, Any]:
        """What the picks depend on: any exact engine on any backend makes the same."""
        own = asdict(self)
        own.pop("backend"), own.pop("device")
        engine = own.pop("engine")
        if engine != "pool":
            own.pop("pool")
        for name in ("center", "theta0"):
            if isinstance(own[name], Mapping):
                own[name] = [[str(label), value] for label, value in own[name].items()]
        return {"exact": engine != "pool", **own}


@dataclass(frozen=True)
class Result:
    """One group's picks and what is known about them."""

    numbers: IntArray
    lengths: FloatArray
    scores: FloatArray
    evaluations: int
    moment_error: float
    engine: str
    center: FloatArray
    median: GeometricMedian | None
    hull_gap: float
    verdict: str


def _vector(value: Any, d: int, name: str) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (d,) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a finite vector of {d} numbers, got {str(value)[:80]} of shape {array.shape}."
        )
    return array


def _center(selection: Selection, given: Any, threads: int) -> tuple[FloatArray, GeometricMedian | None]:
    if isinstance(given, GeometricMedian):
        return _vector(given.center, selection.rows.values.shape[1], "center"), given
    if not isinstance(given, str):
        return _vector(given, selection.rows.values.shape[1], "center"), None
    if given == "mean":
        return selection.mean(), None
    if given != "gm":
        raise ValueError(f"center must be 'gm', 'mean', a vector or a GeometricMedian, got {given!r}.")
    median = solve(selection, tol=_TOL, max_iter=200, num_threads=threads)
    if median.rel_gap > _WARN_TOL:
        warnings.warn(not_converged(median, _WARN_TOL), RuntimeWarning, stacklevel=2)
    return median.center, median


def _distances(selection: Selection, point: FloatArray) -> FloatArray:
    """Squared distances, each summed from the first dimension to the last."""
    return np.concatenate([np.cumsum((block - point) ** 2, axis=1)[:, -1] for _, block in selection.blocks()])


def _trimmed(selection: Selection, center: FloatArray, share: float) -> Selection:
    keep = len(selection) - int(share * len(selection))
    nearest = np.argsort(_distances(selection, center), kind="stable")[:keep]
    return Selection(selection.rows, selection.numbers()[np.sort(nearest)])


class _Group:
    """The state of a group's run, as it is saved."""

    def __init__(
        self, selection: Selection, k: int, settings: Settings, threads: int, name: str, saved: Saved
    ) -> None:
        self.k, self.settings, self.threads, self.name, self.saved = k, settings, threads, name, saved
        d = selection.rows.values.shape[1]
        old = saved.groups.get(name)
        if old is not None:
            self.center, self.median = old["center"], _unpacked(old)
        else:
            self.center, self.median = _center(selection, settings.center, threads)
        self.selection = selection
        if settings.trim:
            if old is None:
                self.selection = _trimmed(selection, self.center, settings.trim)
                self.center, self.median = _center(self.selection, settings.center, threads)
            else:
                self.selection = Selection(selection.rows, old["trimmed"])
        self.target = self._target()
        start = settings.theta0
        if not isinstance(start, str):
            self.start = _vector(start, d, "theta0")
        elif start in ("center", "zero"):
            self.start = self.target.copy() if start == "center" else np.zeros(d)
        else:
            raise ValueError(f"theta0 must be 'auto', 'center', 'zero' or a vector, got {start!r}.")
        self.theta = self.start.copy() if old is None else old["theta"]
        empty = {"numbers": np.zeros(0, np.int64), "lengths": np.zeros(0), "scores": np.zeros(0)}
        self.done = {field: [value if old is None else old[field]] for field, value in empty.items()}
        self.evaluations = 0 if old is None else int(old["evaluations"])
        self.count = len(self.done["numbers"][0])

    def _target(self) -> FloatArray:
        scale = self.settings.target_scale
        if scale != "unit":
            return self.center * float(scale)
        length = float(np.linalg.norm(self.center))
        if length == 0:
            raise ValueError("The centre is zero and cannot be scaled to length 1. Pass target_scale=1.0.")
        return self.center / length

    def keep(self, now: bool = False) -> None:
        """Hand the state to the file."""
        if self.saved.path is None:
            return
        fields = {"center": self.center, "theta": self.theta.copy(), "evaluations": np.array(self.evaluations)}
        for field, parts in self.done.items():
            self.done[field] = [np.concatenate(parts)]
            fields[field] = self.done[field][0]
        if self.settings.trim:
            fields["trimmed"] = self.selection.numbers()
        if self.median is not None:
            fields |= {
                f"median_{field}": np.array(-1 if value is None else value)
                for field, value in asdict(self.median).items()
            }
        self.saved(self.name, fields, now)

    def add(self, numbers: IntArray, lengths: FloatArray, scores: FloatArray, evaluations: int) -> None:
        """Add picks."""
        for field, value in (("numbers", numbers), ("lengths", lengths), ("scores", scores)):
            self.done[field].append(value)
        self.evaluations += evaluations
        self.count += len(numbers)

    def all(self, field: str) -> Any:
        """One field of all picks."""
        return np.concatenate(self.done[field])


def _unpacked(old: dict[str, Any]) -> GeometricMedian | None:
    if "median_center" not in old:
        return None
    fields = {name.removeprefix("median_"): value for name, value in old.items() if name.startswith("median_")}
    plain = {name: value if name == "center" else value.item() for name, value in fields.items()}
    return GeometricMedian(**plain | {"at_row": None if plain["at_row"] < 0 else plain["at_row"]})


def run_group(
    selection: Selection,
    k: int,
    settings: Settings,
    threads: int,
    saved: Saved,
    name: str,
    progress: Callable[[int], object],
) -> Result:
    """Match one group: `k` picks of `selection`, continued where the file has some."""
    group = _Group(selection, k, settings, threads, name, saved)
    progress(group.count)
    group.keep()
    n, parts = len(group.selection), min(settings.partitions, k)
    used, first = [], 0
    for part in range(parts):
        numbers = group.selection.numbers()[part::parts]
        last = first + k // parts + (part < k % parts)
        if group.count < last:
            if group.count == first and first and not settings.carry_theta:
                group.theta = group.start.copy()
            whole = parts == 1 and group.selection.index is None
            piece = group.selection if whole else Selection(group.selection.rows, numbers)
            used.append(_run_part(group, piece, first, last, progress))
        first = last
    engine = ",".join(dict.fromkeys(used)) or engines.choose(settings.engine, n, len(group.target), k)
    return _result(group, engine)


def _run_part(group: _Group, piece: Selection, first: int, last: int, progress: Callable[[int], object]) -> str:
    settings, d = group.settings, len(group.target)
    name = engines.choose(settings.engine, len(piece), d, last - first)
    state = State(piece, group.target, group.theta, settings.replace)
    if group.count > first and not settings.replace:
        state.taken[np.searchsorted(state.numbers, group.all("numbers")[first:])] = True
    if group.count == first == 0 and not group.theta.any():
        place = int(np.argmin(_distances(piece, group.target)))  # every row ties: the nearest one
        length = state.take(place)
        group.add(state.numbers[[place]], np.array([length]), np.zeros(1), 0)
        progress(1)
    inside = engines.threads_for(len(piece), d, group.threads)
    engine = engines.make(name, state, inside, *settings.pool, settings.backend, settings.device)
    group.theta = state.theta
    size = engine.round
    while group.count < last:
        begun = time.perf_counter()
        picks = engine.picks(min(size, last - group.count))
        group.add(state.numbers[picks.places], picks.lengths, picks.scores, picks.evaluations)
        progress(len(picks.places))
        group.keep()
        pace = len(picks.places) / max(1e-9, time.perf_counter() - begun)
        wanted = min(4 * size, max(1, int(pace * _PIECE_SECONDS)))
        size = -(-wanted // engine.round) * engine.round  # rounds are never cut: picks do not depend on the clock
    group.theta = state.theta
    group.keep(now=True)
    return name


def _result(group: _Group, engine: str) -> Result:
    numbers, lengths, scores = (group.all(field) for field in ("numbers", "lengths", "scores"))
    picked = Selection(group.selection.rows, numbers).mean()
    before = np.concatenate([[np.linalg.norm(group.start)], lengths[:-1]])
    seen = np.isfinite(scores) & (before > 0)
    proofs = np.zeros(len(scores))
    proofs[seen] = -scores[seen] / before[seen]
    scale = float(np.linalg.norm(group.target)) + float(np.median(lengths))
    late = np.flatnonzero(seen & (np.arange(len(scores)) >= len(scores) // 2))
    outside = proofs > 1e-9 * scale
    return Result(
        numbers=numbers,
        lengths=lengths,
        scores=scores,
        evaluations=group.evaluations,
        moment_error=float(np.linalg.norm(picked - group.target)),
        engine=engine,
        center=group.center,
        median=group.median,
        hull_gap=float(proofs[outside].max(initial=0.0)),
        verdict="target unreachable" if len(late) and outside[late].mean() > 0.5 else "matched",
    )
