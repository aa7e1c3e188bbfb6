"""Geometric Median Matching: the rows whose mean comes nearest to a robust centre, in order of importance."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_ext.data.pruning import engines
from hf_ext.data.pruning._resume import Saved, fingerprint
from hf_ext.data.pruning._rows import Rows, Selection, check_rows
from hf_ext.data.pruning._run import Result, Settings, run_group
from hf_ext.data.pruning._types import FloatArray, IntArray
from hf_ext.data.pruning.groups import Label, quotas, split_groups
from hf_ext.data.pruning.median import GeometricMedian
from hf_ext.guards.runs import claimed_file

logger = logging.getLogger(__name__)
_ALL = "all rows"  # label of the one group where none are given


@dataclass(frozen=True)
class Matching:
    """
    Picks of a selector. Where there are groups, the fields marked † are dictionaries, label -> value.

    Attributes:
        indices (`np.ndarray` of shape `(k,)`):
            Row numbers, int64, in pick order; group after group, in the order of the labels. Within a group every
            prefix is what a smaller number would have picked (not with `partitions`).
        group (`np.ndarray` of shape `(k,)` or `None`):
            Label of each pick's group.
        theta_norm (`np.ndarray` of shape `(k,)`):
            Length of theta after each pick, in the rows' units; bounded where the target is matched.
        moment_error (`float`) †:
            Distance of the picks' mean from the target (`target_scale` times the centre), in the rows' units.
        evals_per_pick (`float`):
            Scores taken in float64 for each pick; the rest were ruled out by bounds.
        engine (`str`):
            Engine that made the picks; several, joined by commas, where groups differ.
        center (`np.ndarray` of shape `(d,)`) †:
            The centre, float64.
        median ([`GeometricMedian`] or `None`) †:
            The centre's certificate where it is a geometric median.
        top_score (`np.ndarray` of shape `(k,)`):
            Greatest score `<theta, row - target>` before each pick; NaN where only a pool was scored. Below zero it
            proves that the target is outside the convex hull of the rows left.
        hull_gap (`float`) †:
            Proven least distance from the target to the hull of the rows left, in the rows' units; 0 where nothing is
            proven.
        verdict (`str`) †:
            `"matched"`, or `"target unreachable"` where that proof holds for most of the later picks: then the
            moment error does not fall like 1/k and the picks crowd around the hull's nearest point.
        method (`str`):
            Selector: `"gm"`, `"herding"` (`center="mean"`), `"gm_official"`, or `"matching"` (a given centre).
        notes (`tuple` of `str`):
            What was done that was not asked for: casts, groups smaller than their share.
    """

    indices: IntArray
    group: np.ndarray | None
    theta_norm: FloatArray
    moment_error: Any
    evals_per_pick: float
    engine: str
    center: Any
    median: Any
    top_score: FloatArray
    hull_gap: Any
    verdict: Any
    method: str = "gm"
    notes: tuple[str, ...] = ()

    @property
    def prune_rank(self) -> np.ndarray:
        """Int32 place of each pick in its group, from 0: rows with a rank below m are the group's first m picks."""
        if self.group is None:
            return np.arange(len(self.indices), dtype=np.int32)
        starts = np.flatnonzero(np.concatenate([[True], self.group[1:] != self.group[:-1]]))
        lengths = np.diff(np.append(starts, len(self.indices)))
        return (np.arange(len(self.indices)) - np.repeat(starts, lengths)).astype(np.int32)


def gm_matching(
    X: Any,
    k: int | None,
    *,
    center: str | Any = "gm",
    theta0: str | Any = "auto",
    metric: str = "unit",
    groups: Any = None,
    budget: str | Mapping[Label, int] = "proportional",
    min_per_group: int = 0,
    engine: str = "auto",
    pool_picks: int = 32,
    pool_rows: int = 2048,
    partitions: int = 1,
    carry_theta: bool = True,
    replace: bool = False,
    trim: float = 0.0,
    target_scale: float | str = 1.0,
    num_threads: int | None = None,
    backend: str = "numpy",
    device: str | None = None,
    resume_path: str | Path | None = None,
    save_every: float = 30.0,
    show_progress: bool = True,
) -> Matching:
    r"""
    Pick `k` rows whose mean matches a robust centre, greedily and in order.

    $$i_t = \arg\max_{i\ \text{left}} \langle \theta_t, x_i \rangle, \qquad
    \theta_{t+1} = \theta_t + \mu - x_{i_t}, \qquad
    \lVert \mu - \tfrac1k \textstyle\sum_t x_{i_t} \rVert = \lVert \theta_k - \theta_0 \rVert / k$$

    Ties go to the lowest row number. Rows are centred at the target before they are scored, which changes no argmax.
    `int8`, `f32` and `gram` find the same picks, whatever the backend and the number of threads: bounds rule rows out,
    and scores summed in float64 in one fixed order decide among the rest.

    Args:
        X (array of shape `(n, d)`):
            float32 rows; a memory map is read in blocks and then about three rows a pick, never copied whole
            (`engine="int8"`). float64 and float16 are cast once, with a note.
        k (`int`):
            Rows to keep, 1 to n. `None` where `budget` is a dictionary.
        center (`"gm"`, `"mean"`, array of shape `(d,)`, [`GeometricMedian`], or `dict` label -> those):
            Target of the matching, of each group. `"mean"` is herding. Arrays are in the units of the rows as they are
            matched (unit rows with `metric="unit"`).
        theta0 (`"auto"`, `"center"`, `"zero"`, array of shape `(d,)`, or `dict` label -> array):
            Start of theta. `"center"` is the paper's. Raw rows have no natural origin, so `"auto"` takes `"center"`
            for unit rows and `"zero"` for raw ones: adding a constant to every row then changes no pick.
            From zero every row ties: the row nearest to the target is first.
        metric (`"unit"` or `"raw"`):
            Divide rows by their length, or take them as they are. A raw row far from the others has a large product
            with any theta and is soon picked, though it does not move the target: `trim` such rows.
        groups (sequence of `n` labels, *optional*):
            Match every group on its own rows.
        budget (`"proportional"`, `"equal"` or `dict` label -> rows):
            Rows of each group; see [`~hf_ext.data.pruning.groups.quotas`].
        min_per_group (`int`, *optional*, defaults to 0):
            Rows every group keeps at least, where it has them.
        engine (`"auto"`, `"int8"`, `"f32"`, `"gram"`, `"pool"`):
            `"auto"` chooses an exact one by size. `"pool"` is approximate and many times faster: `pool_picks` picks
            among the `pool_rows` best rows of each full pass; read its `moment_error`.
        partitions (`int`, *optional*, defaults to 1):
            Match interleaved parts of the rows one after another, a share of `k` each; theta is carried from part to
            part unless `carry_theta=False`, which costs moment error.
        replace (`bool`, *optional*, defaults to `False`):
            A row may be picked again.
        trim (`float`, *optional*, defaults to 0.0):
            Share of each group's rows, the farthest from its centre, that is dropped first; the centre of the others
            is then taken anew.
        target_scale (`float` or `"unit"`, *optional*, defaults to 1.0):
            Factor of the centre. `"unit"` scales it to length 1, as the released code does: outside the hull of unit
            rows, so picks turn to the easiest rows.
        num_threads (`int`, *optional*):
            `OMP_NUM_THREADS`, else the processors this process may use. Groups are shared out, or rows within a pick.
        backend (`"numpy"` or `"torch"`), device (`str`, *optional*):
            Where rows are scored; `backend="torch", device="cuda"` for a GPU with room for the rows.
        resume_path (`str` or `Path`, *optional*):
            File of the picks so far, written every `save_every` seconds and removed at the end. A killed run started
            again with the same arguments continues to the same picks.
        show_progress (`bool`, *optional*, defaults to `True`):
            A bar in picks, where it takes longer than a second.

    Returns:
        [`Matching`]

    Raises:
        ValueError: rows, numbers or names that cannot be used; says which and what to do.

    Relations: `Dataset.select(sorted(matching.indices))` keeps the rows; `prune` does it, and writes `prune_rank`.
    [`geometric_median`] is the target; [`gm_official`] is the released selector, another algorithm.

    Reference: Acharya et al. 2025, *Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data*
    (arXiv 2504.00564), Algorithm 1; Chen, Welling, Smola 2010, *Super-samples from kernel herding*.
    """
    rows = check_rows(X, metric)
    n, d = rows.values.shape
    start = theta0
    if isinstance(theta0, str) and theta0 == "auto":
        start = "center" if metric == "unit" else "zero"
    settings = Settings(
        center=center,
        theta0=start,
        engine=engine,
        pool=(pool_picks, pool_rows),
        partitions=partitions,
        carry_theta=carry_theta,
        replace=replace,
        trim=trim,
        target_scale=target_scale,
        backend=backend,
        device=device,
    )
    settings.check(d)
    places: dict[Any, Any] = {_ALL: None} if groups is None else split_groups(groups, n)
    kept = {label: n if index is None else len(index) for label, index in places.items()}
    kept = {label: size - int(trim * size) for label, size in kept.items()}
    counts, notes = _counts(k, n, kept, budget, min_per_group, groups is not None, replace)
    identity = fingerprint(rows, {"counts": [*counts.values()], "metric": metric, **settings.identity()})
    with nullcontext() if resume_path is None else claimed_file(resume_path, then="or give another resume_path"):
        saved = Saved(resume_path, identity, save_every)
        results = _run(rows, places, counts, settings, num_threads, saved, show_progress)
        saved.finish()
    method = {"gm": "gm", "mean": "herding"}.get(center, "matching") if isinstance(center, str) else "matching"
    return _joined(results, groups is not None, method, (*rows.notes, *notes), settings)


def _counts(
    k: int | None,
    n: int,
    kept: dict[Label, int],
    budget: str | Mapping[Label, int],
    at_least: int,
    grouped: bool,
    replace: bool,
) -> tuple[dict[Label, int], list[str]]:
    if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1):
        raise ValueError(f"k must be a whole number of rows from 1 to {n:,}, got {k!r}.")
    if k is not None and k > sum(kept.values()) and not replace:
        after = f" after trimming {n - sum(kept.values()):,} of {n:,}" if sum(kept.values()) < n else ""
        raise ValueError(f"k={k:,} rows asked for, {sum(kept.values()):,} there{after}. Lower k.")
    if not grouped and (budget != "proportional" or at_least):
        name = "min_per_group" if budget == "proportional" else "budget"
        raise ValueError(f"{name} shares the rows out among groups, and there are none: give by (or groups).")
    if grouped:
        return quotas(k, kept, budget, at_least)
    if k is None:
        raise ValueError("k is missing: give the number of rows to keep.")
    return {_ALL: int(k)}, []


def default_threads() -> int:
    """`OMP_NUM_THREADS` where it is a number, else the processors this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    rows: Rows,
    places: Mapping[Label, IntArray | None],
    counts: dict[Label, int],
    settings: Settings,
    num_threads: int | None,
    saved: Saved,
    show_progress: bool,
) -> dict[Label, Result]:
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}.")
    threads = num_threads or default_threads()
    labels = [label for label in places if counts[label] > 0]
    d = rows.values.shape[1]
    largest = max(counts[label] and len(Selection(rows, places[label])) for label in labels)
    together = min(threads, len(labels)) if engines.threads_for(largest, d, 2) == 1 else 1
    with tqdm(total=sum(counts.values()), desc="GM matching", unit="pick", delay=1, disable=not show_progress) as bar:

        def one(item: tuple[int, Label]) -> Result:
            number, label = item
            inside = threads if together == 1 else 1
            chosen = settings.of_group(label, grouped=places[label] is not None)
            return run_group(
                Selection(rows, places[label]), counts[label], chosen, inside, saved, str(number), bar.update
            )

        if together == 1 or settings.backend == "torch":
            return {label: one((number, label)) for number, label in enumerate(labels)}
        with ThreadPoolExecutor(together) as pool:
            return dict(zip(labels, pool.map(one, enumerate(labels)), strict=True))


def _joined(
    results: dict[Label, Result], grouped: bool, method: str, notes: tuple[str, ...], settings: Settings
) -> Matching:
    parts = list(results.values())
    unreachable = [label for label, part in results.items() if part.verdict != "matched"]
    if unreachable and settings.target_scale == 1.0 and method != "gm_official":
        which = f"{len(unreachable)} of {len(results)} groups ({unreachable[0]!r}, ...)" if grouped else "the target"
        warnings.warn(
            f"Target unreachable for {which}: it lies outside the convex hull of the rows left, so theta grows with "
            "every pick and the picks crowd around the hull's nearest point. Keep fewer rows, or check the centre.",
            RuntimeWarning,
            stacklevel=3,
        )

    def shape(name: str) -> Any:
        values = {label: getattr(part, name) for label, part in results.items()}
        return values if grouped else values[_ALL]

    picks = sum(len(part.numbers) for part in parts)
    labels = None
    if grouped:
        labels = np.repeat(np.arange(len(parts)), [len(part.numbers) for part in parts])
        names = np.empty(len(parts), dtype=object)
        names[:] = list(results)
        labels = names[labels]
    return Matching(
        indices=np.concatenate([part.numbers for part in parts]),
        group=labels,
        theta_norm=np.concatenate([part.lengths for part in parts]),
        moment_error=shape("moment_error"),
        evals_per_pick=sum(part.evaluations for part in parts) / picks,
        engine=",".join(dict.fromkeys(part.engine for part in parts)),
        center=shape("center"),
        median=shape("median"),
        top_score=np.concatenate([part.scores for part in parts]),
        hull_gap=shape("hull_gap"),
        verdict=shape("verdict"),
        method=method,
        notes=notes,
    )


__all__ = ["GeometricMedian", "Matching", "default_threads", "gm_matching"]
