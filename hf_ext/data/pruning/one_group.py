"""One group's matching, from its centre to its last pick, in pieces, so that a killed one can go on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hf_ext.data.pruning import engines
from hf_ext.data.pruning._resume import Saved
from hf_ext.data.pruning.engines import State
from hf_ext.data.pruning.median import GeometricMedian, not_converged, solve
from hf_ext.data.vectors.rows import FloatArray, IntArray, Selection

_PIECE_SECONDS = 0.25  # of picks between two looks at the clock
_WARN_TOL = 1e-6


@dataclass(frozen=True)
class Settings:
    """Arguments of `gm_matching` that are the same for every group."""

    trim: float = 0.0
    target_scale: float | str = 1.0
    engine: str = "auto"
    pool_picks: int = 32
    pool_rows: int = 2048
    num_threads: int | None = None
    backend: str = "numpy"
    device: str | None = None
    resume_path: str | Path | None = None
    save_every: float = 30.0
    show_progress: bool = True

    def check(self, d: int) -> None:
        """Raise `ValueError` on a value that cannot be used."""
        engines.choose(self.engine, 1, d)
        if self.backend not in ("numpy", "torch"):
            raise ValueError(f"backend must be 'numpy' or 'torch', got {self.backend!r}.")
        if self.device is not None and self.backend == "numpy":
            raise ValueError(f"device={self.device!r} needs backend='torch'.")
        if not 0 <= self.trim < 1:
            raise ValueError(f"trim must be a share of the rows in [0, 1), got {self.trim!r}.")
        if min(self.pool_picks, self.pool_rows) < 1:
            raise ValueError("pool_picks and pool_rows must be at least 1.")
        scale = self.target_scale
        if scale != "unit" and not (isinstance(scale, (int, float)) and np.isfinite(scale)):
            raise ValueError(f"target_scale must be a finite number or 'unit', got {scale!r}.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {self.num_threads}.")

    def identity(self) -> dict[str, object]:
        """What the picks depend on: any exact engine on any backend makes the same."""
        pool = [self.pool_picks, self.pool_rows] if self.engine == "pool" else None
        return {"trim": self.trim, "target_scale": self.target_scale, "pool": pool}


@dataclass(frozen=True)
class Aim:
    """What a group is matched to, and where its theta starts."""

    center: str | FloatArray  # "gm", "mean" or a vector (d,)
    theta0: str | FloatArray  # "target", "zero" or a vector (d,)

    def center_of(self, selection: Selection, threads: int = 1) -> tuple[FloatArray, GeometricMedian | None]:
        """The centre of some rows, and its certificate where it is a geometric median."""
        if not isinstance(self.center, str):
            d = selection.rows.values.shape[1]
            center = np.asarray(self.center, dtype=np.float64)
            if center.shape != (d,) or not np.isfinite(center).all():
                excerpt = f"{str(self.center)[:80]} of shape {center.shape}"
                raise ValueError(f"center must be a finite vector of {d} numbers, got {excerpt}.")
            return center, None
        if self.center == "mean":
            return selection.mean(), None
        if self.center != "gm":
            raise ValueError(f"center must be 'gm', 'mean' or a vector, got {self.center!r}.")
        median = solve(selection, num_threads=threads)
        if median.rel_gap > _WARN_TOL:
            warnings.warn(not_converged(median, _WARN_TOL), RuntimeWarning, stacklevel=2)
        return median.center, median

    def start(self, target: FloatArray) -> FloatArray:
        """Theta before the first pick."""
        if isinstance(self.theta0, str):
            return target.copy() if self.theta0 == "target" else np.zeros(len(target))
        return np.array(self.theta0, dtype=np.float64)


@dataclass(frozen=True)
class GroupMatching:
    """
    Picks of one group.

    Attributes:
        indices (`np.ndarray` of shape `(k,)`):
            Row numbers, int64, in pick order: every prefix is what a smaller number would have picked.
        theta_norm (`np.ndarray` of shape `(k,)`):
            Length of theta after each pick, in the rows' units; bounded where the target is matched.
        top_score (`np.ndarray` of shape `(k,)`):
            Greatest score `<theta, row - target>` before each pick; NaN where only a pool was scored. Below zero it
            proves that the target is outside the convex hull of the rows left.
        center (`np.ndarray` of shape `(d,)`, *optional*), median ([`GeometricMedian`], *optional*):
            The centre, float64, and its certificate where it is a geometric median.
        moment_error (`float`):
            Distance of the picks' mean from the target (`target_scale` times the centre), in the rows' units.
        hull_gap (`float`):
            Proven least distance from the target to the hull of the rows left, in the rows' units; 0 where nothing is
            proven.
        verdict (`str`):
            `"matched"`; `"target unreachable"` where that proof holds for most of the later picks: then the moment
            error does not fall like 1/k and the picks crowd around the hull's nearest point; `"no target"` for a
            method that aims at none, which leaves all but `indices` empty or NaN.
        engine (`str`), evaluations (`int`):
            Engine that made the picks, and how many scores it took in float64; bounds ruled out the rest.
    """

    indices: IntArray
    theta_norm: FloatArray
    top_score: FloatArray
    center: FloatArray | None = None
    median: GeometricMedian | None = None
    moment_error: float = float("nan")
    hull_gap: float = 0.0
    verdict: str = "no target"
    engine: str = "none"
    evaluations: int = 0


def _squared_distances(selection: Selection, point: FloatArray) -> FloatArray:
    # Each summed from the first dimension to the last, as the engines sum their scores: a tie here is a tie there.
    return np.concatenate([np.cumsum((block - point) ** 2, axis=1)[:, -1] for _, block in selection.blocks()])


def _trimmed(selection: Selection, center: FloatArray, share: float) -> Selection:
    remaining = len(selection) - int(share * len(selection))
    nearest = np.argsort(_squared_distances(selection, center), kind="stable")[:remaining]
    return Selection(selection.rows, selection.numbers()[np.sort(nearest)])


class _Group:
    """The state of a group's run, as the file of picks keeps it."""

    def __init__(
        self, selection: Selection, aim: Aim, settings: Settings, threads: int, name: str, resume_file: Saved
    ) -> None:
        self.selection = selection
        self.settings = settings
        self.name = name
        self.resume_file = resume_file
        fields = resume_file.groups.get(name)
        if fields is None:
            self.center, self.median = aim.center_of(selection, threads)
            if settings.trim:  # farthest from the centre of all rows; the others' own centre is the target
                self.selection = _trimmed(selection, self.center, settings.trim)
                self.center, self.median = aim.center_of(self.selection, threads)
        else:
            self.center = fields["center"]
            self.median = _unpacked_median(fields)
            if settings.trim:
                self.selection = Selection(selection.rows, fields["trimmed"])
        self.target = self._scaled(self.center)
        self.start = aim.start(self.target)
        self.theta = self.start.copy() if fields is None else fields["theta"]
        empty = {"numbers": np.zeros(0, np.int64), "lengths": np.zeros(0), "scores": np.zeros(0)}
        self.picks = {field: [(fields or empty)[field]] for field in empty}
        self.evaluations = 0 if fields is None else int(fields["evaluations"])
        self.count = len(self.picks["numbers"][0])

    def _scaled(self, center: FloatArray) -> FloatArray:
        scale = self.settings.target_scale
        if scale != "unit":
            return center * float(scale)
        length = float(np.linalg.norm(center))
        if length == 0:
            raise ValueError("The centre is zero and cannot be scaled to length 1. Pass target_scale=1.0.")
        return center / length

    def save(self, write_now: bool = False) -> None:
        """Hand the state to the file."""
        if self.resume_file.path is None:
            return
        fields = {"center": self.center, "theta": self.theta.copy(), "evaluations": np.array(self.evaluations)}
        for field in self.picks:
            fields[field] = self.all(field)
            self.picks[field] = [fields[field]]
        if self.settings.trim:
            fields["trimmed"] = self.selection.numbers()
        if self.median is not None:
            fields |= {
                f"median_{field}": np.array(-1 if value is None else value)  # None would need pickle
                for field, value in asdict(self.median).items()
            }
        self.resume_file(self.name, fields, write_now)

    def add(self, numbers: IntArray, lengths: FloatArray, scores: FloatArray, evaluations: int) -> None:
        """Add picks."""
        for field, values in (("numbers", numbers), ("lengths", lengths), ("scores", scores)):
            self.picks[field].append(values)
        self.evaluations += evaluations
        self.count += len(numbers)

    def all(self, field: str) -> np.ndarray:
        """One field of all picks."""
        return np.concatenate(self.picks[field])


def _unpacked_median(fields: Mapping[str, np.ndarray]) -> GeometricMedian | None:
    if "median_center" not in fields:
        return None
    packed = {name.removeprefix("median_"): value for name, value in fields.items() if name.startswith("median_")}
    plain = {name: value if name == "center" else value.item() for name, value in packed.items()}
    return GeometricMedian(**plain | {"at_row": None if plain["at_row"] < 0 else plain["at_row"]})


def run_group(
    selection: Selection,
    k: int,
    aim: Aim,
    settings: Settings,
    threads: int,
    resume_file: Saved,
    name: str,
    progress: Callable[[int], object],
) -> GroupMatching:
    """Match one group: `k` picks of `selection`, continued where the file has some."""
    group = _Group(selection, aim, settings, threads, name, resume_file)
    progress(group.count)
    group.save()
    n = len(group.selection)
    d = len(group.target)
    engine_name = engines.choose(settings.engine, n, d)
    if group.count < k:
        state = State(group.selection, group.target, group.theta)
        state.is_taken[np.searchsorted(state.numbers, group.all("numbers"))] = True  # picks of the run that was killed
        if group.count == 0 and not group.theta.any():
            place = int(np.argmin(_squared_distances(group.selection, group.target)))  # from zero every row ties
            length = state.take(place)
            group.add(state.numbers[[place]], np.array([length]), np.zeros(1), 0)
            progress(1)
        engine = engines.make(
            engine_name,
            state,
            engines.threads_for(n, d, threads),
            settings.pool_picks,
            settings.pool_rows,
            settings.backend,
            settings.device,
        )
        _pick(group, engine, state, k, progress)
    return _result(group, engine_name)


def _pick(group: _Group, engine: engines.Engine, state: State, k: int, progress: Callable[[int], object]) -> None:
    group.theta = state.theta  # the engine moves it in place
    size = engine.round
    while group.count < k:
        started = time.perf_counter()
        picks = engine.picks(min(size, k - group.count))
        group.add(state.numbers[picks.places], picks.lengths, picks.scores, picks.evaluations)
        progress(len(picks.places))
        group.save()
        picks_per_second = len(picks.places) / max(1e-9, time.perf_counter() - started)
        next_size = min(4 * size, max(1, int(picks_per_second * _PIECE_SECONDS)))
        size = -(-next_size // engine.round) * engine.round  # rounds are never cut: picks do not depend on the clock
    group.save(write_now=True)


def _result(group: _Group, engine_name: str) -> GroupMatching:
    numbers, lengths, scores = (group.all(field) for field in ("numbers", "lengths", "scores"))
    mean = Selection(group.selection.rows, numbers).mean()
    # Where even the greatest <theta, row - target> is below zero, all rows left lie beyond a plane normal to theta, at
    # least -score / ||theta|| from the target. A pool scored only some rows: its NaN proves nothing.
    lengths_before = np.concatenate([[np.linalg.norm(group.start)], lengths[:-1]])
    scored = np.isfinite(scores) & (lengths_before > 0)
    gaps = np.zeros(len(scores))
    gaps[scored] = -scores[scored] / lengths_before[scored]
    scale = float(np.linalg.norm(group.target)) + float(np.median(lengths))
    outside = gaps > 1e-9 * scale
    later = np.flatnonzero(scored & (np.arange(len(scores)) >= len(scores) // 2))
    return GroupMatching(
        indices=numbers,
        theta_norm=lengths,
        top_score=scores,
        center=group.center,
        median=group.median,
        moment_error=float(np.linalg.norm(mean - group.target)),
        hull_gap=float(gaps[outside].max(initial=0.0)),
        verdict="target unreachable" if len(later) and outside[later].mean() > 0.5 else "matched",
        engine=engine_name,
        evaluations=group.evaluations,
    )
