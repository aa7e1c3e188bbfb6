"""Geometric Median Matching: the rows whose mean comes nearest to a robust centre, in order of importance."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from hf_ext.data.pruning import engines
from hf_ext.data.pruning._resume import Saved
from hf_ext.data.pruning.groups import ALL_ROWS, Budget, Label, counts_of, split_groups
from hf_ext.data.pruning.one_group import Aim, GroupMatching, Settings, run_group
from hf_ext.data.vectors.rows import FloatArray, IntArray, Rows, Selection, check_rows
from hf_ext.guards.runs import claimed_file

RANK = "prune_rank"  # the column that `prune` adds


@dataclass(frozen=True)
class Matching:
    """
    Picks of a selector.

    Attributes:
        groups (`dict[label, GroupMatching]`):
            Picks of each group that keeps any, in the order of the labels; one, `"all rows"`, where there are none.
        grouped (`bool`):
            Whether there are labels.
        method (`str`):
            Selector: `"gm"`, `"herding"` (`center="mean"`), `"gm_official"`, `"matching"` (a centre of your own), ...
        notes (`tuple` of `str`):
            What was done that was not asked for: casts, groups smaller than their share.

    Without labels `center`, `median`, `moment_error`, `hull_gap` and `verdict` are those of the one group.
    """

    groups: dict[Label, GroupMatching]
    grouped: bool
    method: str = "gm"
    notes: tuple[str, ...] = ()

    @cached_property
    def indices(self) -> IntArray:
        """Row numbers, int64, shape `(k,)`: group after group, each in pick order."""
        return np.concatenate([part.indices for part in self.groups.values()])

    @cached_property
    def group(self) -> np.ndarray | None:
        """Label of each pick's group, shape `(k,)`; `None` without labels."""
        if not self.grouped:
            return None
        # Filled, not made of the list: of tuples NumPy makes a matrix, of numbers beside texts it makes texts.
        labels = np.empty(len(self.indices), dtype=object)
        labels[:] = [label for label, part in self.groups.items() for _ in part.indices]
        return labels

    @property
    def theta_norm(self) -> FloatArray:
        """Length of theta after each pick, shape `(k,)`."""
        return np.concatenate([part.theta_norm for part in self.groups.values()])

    @property
    def top_score(self) -> FloatArray:
        """Greatest score before each pick, shape `(k,)`."""
        return np.concatenate([part.top_score for part in self.groups.values()])

    @property
    def evals_per_pick(self) -> float:
        """Scores taken in float64 for each pick."""
        return sum(part.evaluations for part in self.groups.values()) / len(self.indices)

    @property
    def engine(self) -> str:
        """Engine that made the picks; several, joined by commas, where groups differ."""
        return ",".join(dict.fromkeys(part.engine for part in self.groups.values()))

    @property
    def prune_rank(self) -> np.ndarray:
        """Int32 place of each pick in its group, from 0: rows with a rank below m are the group's first m picks."""
        return np.concatenate([np.arange(len(part.indices), dtype=np.int32) for part in self.groups.values()])

    def __getattr__(self, name: str) -> Any:
        if name not in ("center", "median", "moment_error", "hull_gap", "verdict"):
            raise AttributeError(f"Matching has no attribute {name!r}.")
        values = {label: getattr(part, name) for label, part in self.groups.items()}
        if not self.grouped:
            return values[ALL_ROWS]
        warnings.warn(f"Of several groups read matching.groups[label].{name}.", FutureWarning, stacklevel=2)
        return values


def gm_matching(
    X: ArrayLike,
    k: int | None,
    *,
    center: str | FloatArray = "gm",
    metric: str = "unit",
    groups: Sequence[Label] | np.ndarray | None = None,
    budget: Budget = "proportional",
    min_per_group: int = 0,
    trim: float = 0.0,
    target_scale: float | str = 1.0,
    engine: str = "auto",
    pool_picks: int = 32,
    pool_rows: int = 2048,
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
    Theta starts at the target for unit rows, as in the paper. Raw rows have no natural origin, so there it starts at
    zero: adding a constant to every row then changes no pick. From zero every row ties: the row nearest to the target
    is first. `int8` and `f32` find the same picks, whatever the backend and the number of threads: bounds rule rows
    out, and scores summed in float64 in one fixed order decide among the rest.

    Args:
        X (array of shape `(n, d)`):
            float32 rows; a memory map is read in blocks and then about three rows a pick, never copied whole
            (`engine="int8"`). float64 and float16 are cast once, with a note.
        k (`int`):
            Rows to keep, 1 to n. `None` where `budget` is a dictionary.
        center (`"gm"`, `"mean"` or array of shape `(d,)`):
            Target of the matching, of each group. `"mean"` is herding. An array is in the units of the rows as they
            are matched (unit rows with `metric="unit"`).
        metric (`"unit"` or `"raw"`):
            Divide rows by their length, or take them as they are. A raw row far from the others has a large product
            with any theta and is soon picked, though it does not move the target: `trim` such rows.
        groups (sequence of `n` labels, *optional*):
            Match every group on its own rows.
        budget (`"proportional"`, `"equal"` or `dict` label -> rows):
            Rows of each group; see [`~hf_ext.data.pruning.groups.quotas`].
        min_per_group (`int`, *optional*, defaults to 0):
            Rows every group keeps at least, where it has them.
        trim (`float`, *optional*, defaults to 0.0):
            Share of each group's rows, the farthest from its centre, that is dropped first; the centre of the others
            is then taken anew.
        target_scale (`float` or `"unit"`, *optional*, defaults to 1.0):
            Factor of the centre. `"unit"` scales it to length 1, as the released code does: outside the hull of unit
            rows, so picks turn to the easiest rows.
        engine (`"auto"`, `"int8"`, `"f32"`, `"pool"`):
            `"auto"` chooses an exact one by size. `"pool"` is approximate and many times faster: `pool_picks` picks
            among the `pool_rows` best rows of each full pass; read its `moment_error`.
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
        ValueError: if rows, numbers or names cannot be used; the message says which and what to do.

    Relations: `Dataset.select(sorted(matching.indices))` keeps the rows; `prune` does it, and writes `prune_rank`.
    [`geometric_median`] is the target; [`gm_official`] is the released selector, another algorithm.

    Reference: Acharya et al. 2025, *Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data*
    (arXiv 2504.00564), Algorithm 1; Chen, Welling, Smola 2010, *Super-samples from kernel herding*.
    """
    settings = Settings(
        trim=trim,
        target_scale=target_scale,
        engine=engine,
        pool_picks=pool_picks,
        pool_rows=pool_rows,
        num_threads=num_threads,
        backend=backend,
        device=device,
        resume_path=resume_path,
        save_every=save_every,
        show_progress=show_progress,
    )
    aim = Aim(center, "target" if metric == "unit" else "zero")
    rows = check_rows(X, metric)
    places = split_groups(groups, len(rows.values))
    method = {"gm": "gm", "mean": "herding"}.get(center, "matching") if isinstance(center, str) else "matching"
    return match(rows, k, places, lambda _: aim, settings, method, budget, min_per_group)


def match(
    rows: Rows,
    k: int | None,
    places: Mapping[Label, IntArray | None],
    aim_of: Callable[[Label], Aim],
    settings: Settings,
    method: str,
    budget: Budget = "proportional",
    min_per_group: int = 0,
) -> Matching:
    """
    Match checked rows, each group to its own aim; see [`gm_matching`].

    Args:
        places (`dict` label -> row numbers):
            As [`~hf_ext.data.pruning.groups.split_groups`] gives them.
        aim_of (`Callable`):
            Label -> centre and start.
    """
    n, d = rows.values.shape
    settings.check(d)
    counts, notes = counts_of(k, places, n, settings.trim, budget, min_per_group)
    aims = {label: aim_of(label) for label in places if counts[label] > 0}
    identity = {"counts": [*counts.values()], "aims": [asdict(aim) for aim in aims.values()], **settings.identity()}
    path = settings.resume_path
    # Two processes that write one file of picks would each continue the other's: the second is refused.
    with nullcontext() if path is None else claimed_file(path, remedy="give another resume_path"):
        resume_file = Saved(path, rows, identity, settings.save_every)
        results = _run(rows, places, counts, aims, settings, resume_file)
        resume_file.finish()
    grouped = any(index is not None for index in places.values())
    matching = Matching(results, grouped, method, (*rows.notes, *notes))
    unreachable = [label for label, part in results.items() if part.verdict != "matched"]
    if unreachable and settings.target_scale == 1.0:  # another scale asks for a target outside on purpose
        few = f"{len(unreachable)} of {len(results)} groups ({unreachable[0]!r}, ...)"
        warnings.warn(
            f"Target unreachable for {few if grouped else 'the target'}: it lies outside the convex hull of "
            "the rows left, so theta grows with every pick and the picks crowd around the hull's nearest point. Keep "
            "fewer rows, or check the centre.",
            RuntimeWarning,
            stacklevel=3,
        )
    return matching


def _default_threads() -> int:
    """`OMP_NUM_THREADS` where it is a number, else the processors this process may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        return int(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    rows: Rows,
    places: Mapping[Label, IntArray | None],
    counts: Mapping[Label, int],
    aims: Mapping[Label, Aim],
    settings: Settings,
    resume_file: Saved,
) -> dict[Label, GroupMatching]:
    threads = settings.num_threads or _default_threads()
    selections = {label: Selection(rows, places[label]) for label in aims}
    largest = max(len(selection) for selection in selections.values())
    # Threads either share out the groups, or the rows within a pick where a group is large: never both at a time.
    groups_at_once = min(threads, len(aims)) if engines.threads_for(largest, rows.values.shape[1], 2) == 1 else 1
    if settings.backend == "torch":  # groups would take turns on the one device anyway, and fill its memory together
        groups_at_once = 1
    inside = threads if groups_at_once == 1 else 1
    hidden = not settings.show_progress
    with tqdm(total=sum(counts.values()), desc="GM matching", unit="pick", delay=1, disable=hidden) as bar:

        def run(item: tuple[int, Label]) -> GroupMatching:
            number, label = item
            # The file of picks knows a group by its number: a label may hold the slash that parts it from a field.
            return run_group(
                selections[label], counts[label], aims[label], settings, inside, resume_file, str(number), bar.update
            )

        if groups_at_once == 1:
            return {label: run((number, label)) for number, label in enumerate(aims)}
        with ThreadPoolExecutor(groups_at_once) as pool:
            return dict(zip(aims, pool.map(run, enumerate(aims)), strict=True))


__all__ = ["GroupMatching", "Matching", "gm_matching"]
