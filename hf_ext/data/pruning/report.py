"""The report of a pruning: what was kept, how well it stands for the rows, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ext.data.pruning import _measure
from hf_ext.data.pruning.groups import ALL_ROWS, Label, split_groups
from hf_ext.data.pruning.matching import Matching
from hf_ext.data.vectors.rows import IntArray, check_rows
from hf_ext.guards.markdown import code, escape
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GroupResult", "PruneReport", "RowNote"]

_SHOWN_GROUPS = 20
_SHOWN_ROWS = 5


@dataclass(frozen=True)
class GroupResult:
    """
    One label's rows; lengths in the units of the vectors as they were matched.

    Attributes:
        label (`str`):
            The label; `"all rows"` where there are none.
        rows, kept (`int`):
            Rows before and after.
        rel_gap (`float`, *optional*):
            Proven relative gap of the geometric median. This and all below are `None` without vectors.
        verdict (`str`, *optional*):
            `"matched"`, `"target unreachable"`, or `"no target"` for a method that aims at none.
        hull_gap (`float`, *optional*):
            Proven least distance of the target from the hull of the rows left.
        moment_error, random_error (`float`, *optional*):
            Distance of the mean of the picks from the median; its root-mean-square for as many random rows.
        mean_shift (`float`, *optional*):
            `||mean - median||` over the rows' median distance: large where the mean has been carried off.
        outliers_before, outliers_after (`float`, *optional*):
            Share of rows and of picks beyond median + 3 MAD of the distances. On clean, normal rows about 0.02.
    """

    label: str
    rows: int
    kept: int
    rel_gap: float | None = None
    verdict: str | None = None
    hull_gap: float | None = None
    moment_error: float | None = None
    random_error: float | None = None
    mean_shift: float | None = None
    outliers_before: float | None = None
    outliers_after: float | None = None


@dataclass(frozen=True)
class RowNote:
    """A row worth looking at: its number, distance over its label's median distance, whether it was kept, excerpt."""

    row: int
    distance: float
    kept: bool
    label: str
    excerpt: str


@dataclass(frozen=True)
class PruneReport(SavedReport):
    """
    Results of `prune(..., return_report=True)`.

    Attributes:
        method, metric, engine (`str`):
            What picked, and in which units.
        by (`str`, *optional*):
            Column of the labels.
        rows, kept (`int`):
            Rows before and after.
        groups (`list[GroupResult]`):
            One a label.
        curve (`list[dict]`):
            `picks`, `moment_error` and `random_error` at some 25 numbers of picks: means over labels, by their rows.
        slope (`float`, *optional*):
            Power of the picks with which the moment error goes in the curve's second half; -1 where matched.
        mmd2, mmd2_random (`float`, *optional*):
            Unbiased squared MMD (RBF kernel, median width, up to 2,000 rows) from all rows: of the picks, and of as
            many random rows.
        easy_overlap (`float`, *optional*):
            Share of the picks that picking the rows nearest to the median would also take.
        histogram (`dict`):
            Distances over their label's median distance: `edges`, counts of `rows` and `kept`, `limit`.
        typical, outlying (`list[RowNote]`):
            The rows nearest to and farthest from their label's median.
        notes (`list[str]`):
            What was done that was not asked for.
        settings (`dict`):
            How it was called.
    """

    method: str
    metric: str
    engine: str
    by: str | None
    rows: int
    kept: int
    groups: list[GroupResult]
    curve: list[dict[str, float]] = field(default_factory=list)
    slope: float | None = None
    mmd2: float | None = None
    mmd2_random: float | None = None
    easy_overlap: float | None = None
    histogram: dict[str, list[float]] = field(default_factory=dict)
    typical: list[RowNote] = field(default_factory=list)
    outlying: list[RowNote] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    file_name = "pruning"
    plot_size = (10.5, 4.4)

    @property
    def follows_paper(self) -> bool:
        """Whether the rows were picked as the method's paper says."""
        return self.method in ("gm", "gm_official")

    @property
    def verdict(self) -> str:
        """`"matched"`, `"target unreachable"` (for how many labels), or `"no target"`."""
        verdicts = [group.verdict for group in self.groups if group.kept]
        unreachable = verdicts.count("target unreachable")
        if unreachable:
            return "target unreachable" + (f" for {unreachable} of {len(verdicts)} labels" if self.by else "")
        return verdicts[0] or "no vectors"

    def mean_of(self, name: str) -> float | None:
        """A field of the groups, averaged over them by their rows; outliers after by their picks."""
        key = "kept" if name == "outliers_after" else "rows"
        weighted = [(getattr(g, name), getattr(g, key)) for g in self.groups if getattr(g, name) is not None]
        total = sum(weight for _, weight in weighted)
        return sum(value * weight for value, weight in weighted) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruneReport:
        """The report that `to_dict` gave."""
        parts: dict[str, Any] = {"groups": [GroupResult(**group) for group in values["groups"]]}
        parts |= {name: [RowNote(**row) for row in values[name]] for name in ("typical", "outlying")}
        return cls(**{**values, **parts})

    def without_dropped_rows(self) -> PruneReport:
        """The report to publish: of the rows worth looking at only those that were kept."""
        typical, outlying = ([row for row in rows if row.kept] for rows in (self.typical, self.outlying))
        return replace(self, typical=typical, outlying=outlying)

    def summary(self) -> list[tuple[str, str]]:
        """The numbers of the whole set, name to text, each with its unit."""
        lines = [
            ("method", self.method),
            ("rows kept", f"{self.kept:,} of {self.rows:,} ({self.kept / self.rows:.1%})"),
        ]
        if not self.curve:
            return lines
        error, random = self.mean_of("moment_error"), self.mean_of("random_error")
        lines += [
            ("verdict", self.verdict),
            ("distance of the picks' mean from the geometric median", f"{error:.3g}"),
            ("the same for random rows (root mean square)", f"{random:.3g}"),
        ]
        if self.slope is not None:
            lines.append(("that distance falls like picks to the power of", f"{self.slope:.2f}"))
        gap = max(group.rel_gap or 0.0 for group in self.groups)
        lines += [
            ("proven relative gap of the median, the largest", f"{gap:.1g}"),
            ("mean's distance from the median, over the rows' median distance", f"{self.mean_of('mean_shift'):.3g}"),
            (
                "outlying rows before (beyond median + 3 MAD; breakdown at 50 %)",
                f"{self.mean_of('outliers_before'):.1%}",
            ),
            ("outlying rows among those kept", f"{self.mean_of('outliers_after'):.1%}"),
            ("picks that 'easy' would take too", f"{self.easy_overlap:.1%}"),
        ]
        if self.mmd2 is not None:
            lines.append(("MMD² from all rows, unbiased (random rows)", f"{self.mmd2:.2g} ({self.mmd2_random:.2g})"))
        return lines

    def to_markdown(self) -> str:
        """The report as Markdown: numbers of the whole set, the labels, rows worth looking at, notes."""
        parts = [markdown_table(["what", "value"], self.summary())]
        if self.by is not None:
            parts.append(self._groups_table())
        for title, rows in (("Most typical rows", self.typical), ("Most outlying rows", self.outlying)):
            if rows:
                cells = [
                    [f"{r.row:,}", r.label, f"{r.distance:.2f}", "yes" if r.kept else "no", r.excerpt] for r in rows
                ]
                parts.append(
                    f"### {title}\n\n" + markdown_table(["row", "label", "distance", "kept", "excerpt"], cells)
                )
        if self.typical:
            parts.append("Distances are from the label's geometric median, over the median distance of its rows.")
        if self.notes:
            parts.append("### Notes\n\n" + "\n".join(f"- {escape(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def _groups_table(self) -> str:
        largest = sorted(self.groups, key=lambda group: -group.rows)[:_SHOWN_GROUPS]
        names = ["label", "rows", "kept", "share", "moment error", "random", "outlying before", "after", "verdict"]
        cells = [
            [g.label, f"{g.rows:,}", f"{g.kept:,}", f"{g.kept / g.rows:.1%}", _number(g.moment_error),
             _number(g.random_error), _percent(g.outliers_before), _percent(g.outliers_after), g.verdict or ""]
            for g in largest
        ]  # fmt: skip
        others = len(self.groups) - len(largest)
        more = f"\n\nand {others:,} smaller labels; `pruning.json` has them." if others else ""
        return f"### Labels ({code(self.by)})\n\n" + markdown_table(names, cells) + more

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return None if self.curve else "vectors: prune with column= or encoder="

    def draw(self, figure: Figure) -> None:
        """Draw the moment error against the number of picks, beside the distances of all rows and of those kept."""
        curve_axes, distance_axes = figure.subplots(1, 2)
        self._draw_curve(curve_axes)
        self._draw_distances(distance_axes)
        for axes in (curve_axes, distance_axes):
            axes.legend(frameon=False)

    def _draw_curve(self, axes: Axes) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        picks, error, random = ([p[n] for p in self.curve] for n in ("picks", "moment_error", "random_error"))
        axes.loglog(picks, random, "--", color="0.45", label="random rows")
        axes.loglog(picks, error, "o-", color="C0", ms=3.5, label=f"{self.method} ({self.verdict})")
        axes.loglog(picks, [error[0] * picks[0] / p for p in picks], ":", color="0.7", label="1 / picks")
        for axis in (axes.xaxis, axes.yaxis):  # the default labels of short logarithmic axes run into each other
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("rows picked")
        axes.set_ylabel("distance of their mean from the median")
        axes.set_title("How well the picks stand for the rows", loc="left")

    def _draw_distances(self, axes: Axes) -> None:
        edges = np.array(self.histogram["edges"])
        for name, color, label in (("rows", "0.6", "all rows"), ("kept", "C0", "kept")):
            counts = np.array(self.histogram[name], dtype=float)
            axes.stairs(counts / counts.sum(), edges, fill=name == "rows", color=color, alpha=0.8, lw=1.6, label=label)
        axes.axvline(self.histogram["limit"][0], color="C3", lw=1, ls="--", label="median + 3 MAD")
        axes.set_xlabel("distance from the median, over the rows' median distance")
        axes.set_ylabel("share of rows")
        axes.set_title("How far out they lie", loc="left")


def make_report(
    matching: Matching,
    X: np.ndarray | None,
    groups: list[Label] | None,
    n: int,
    *,
    metric: str,
    by: str | None,
    excerpt: Callable[[int], str],
    seed: int,
    notes: tuple[str, ...],
    settings: dict[str, Any],
) -> PruneReport:
    """Measure a matching; `excerpt(row_number)` is a row's text of at most 80 characters."""
    places: dict[Label, IntArray] = {
        label: np.arange(n) if index is None else index for label, index in split_groups(groups, n).items()
    }
    base: dict[str, Any] = {
        "method": matching.method, "metric": metric, "engine": matching.engine, "by": by, "rows": n,
        "kept": len(matching.indices), "notes": list(dict.fromkeys((*notes, *matching.notes))), "settings": settings,
    }  # fmt: skip
    if X is None:
        counts = {label: len(part.indices) for label, part in matching.groups.items()}
        results = [GroupResult(str(label), len(index), counts.get(label, 0)) for label, index in places.items()]
        return PruneReport(**base, groups=results)
    rows = check_rows(X, metric)
    measured = {
        label: _measure.measure_group(rows, label, places[label], part.indices, part.median)
        for label, part in matching.groups.items()
    }
    measures = list(measured.values())
    likeness = _measure.mmd2(rows, matching.indices, seed)
    picks = set(matching.indices.tolist())
    typical, outlying = (
        [
            RowNote(row, distance, row in picks, ALL_ROWS if groups is None else str(groups[row]), excerpt(row))
            for row, distance in extremes
        ]
        for extremes in _measure.extremes(measures, _SHOWN_ROWS)
    )
    curve = _measure.curve(measures)
    return PruneReport(
        **base,
        groups=[_result(matching, label, len(index), measured.get(label)) for label, index in places.items()],
        curve=curve,
        slope=_measure.slope(curve),
        mmd2=None if likeness is None else likeness[0],
        mmd2_random=None if likeness is None else likeness[1],
        easy_overlap=sum(group.easy_overlap() * len(group.picks) for group in measures) / len(matching.indices),
        histogram=_measure.histogram(measures),
        typical=typical,
        outlying=outlying,
    )


def _result(matching: Matching, label: Label, n: int, measured: _measure.Measured | None) -> GroupResult:
    if measured is None:
        return GroupResult(str(label), n, 0)
    k = len(measured.picks)
    return GroupResult(
        label=str(label),
        rows=n,
        kept=k,
        rel_gap=measured.median.rel_gap,
        verdict=matching.groups[label].verdict,
        hull_gap=matching.groups[label].hull_gap,
        moment_error=float(measured.prefix_error[-1]),
        random_error=measured.random_error(k),
        mean_shift=measured.shift / (measured.typical or 1.0),
        outliers_before=float((measured.distances > measured.limit).mean()),
        outliers_after=float((measured.picked > measured.limit).mean()),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
