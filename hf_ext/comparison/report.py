"""What a comparison found: a table with means over seeds, the Pareto front, a plot, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import MEASURES, UNIT, RunResult, label_points
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ComparedRun", "ComparisonReport", "pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """
    Which points no other one beats: at most as large in both numbers and smaller in one.

    Args:
        points (`Sequence[tuple[float, float]]`):
            Pairs of which less is better.

    Returns:
        `list[bool]`: one a point.
    """
    return [
        not any(x <= a and y <= b and (x, y) != (a, b) for x, y in points)  # equal points stand or fall together
        for a, b in points
    ]


@dataclass(frozen=True)
class ComparedRun:
    """
    One run of a comparison, from each seed.

    Args:
        name (`str`):
            Its name in the grid.
        method (`list[str]`):
            What it is made of.
        settings (`dict`):
            By part.
        results (`dict[int, RunResult]`):
            What was measured, by seed.
        facts (`dict[int, dict]`):
            Of the training, by seed: steps, seconds and the like.
    """

    name: str
    method: list[str]
    settings: dict[str, Any]
    results: dict[int, RunResult]
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ComparedRun:
        """Read back what `dataclasses.asdict` wrote; JSON has made texts of the seeds."""
        results = {int(seed): RunResult.from_dict(result) for seed, result in values["results"].items()}
        facts = {int(seed): entry for seed, entry in values["facts"].items()}
        return cls(values["name"], values["method"], values["settings"], results, facts)

    def values(self, measure: Callable[[RunResult], Estimate | None]) -> list[Estimate]:
        """A measure from each seed; none where it was not measured."""
        return [value for result in self.results.values() if (value := measure(result)) is not None]


@dataclass(frozen=True)
class ComparisonReport(SavedReport):
    """
    Results of [`compare_forgetting`].

    Args:
        original (`RunResult`):
            The model before tuning.
        runs (`list[ComparedRun]`):
            In the order of the grid.
        settings (`dict`):
            How it was measured.
    """

    original: RunResult
    runs: list[ComparedRun]
    settings: dict[str, Any] = field(default_factory=dict)

    file_name = "comparison"
    plot_size = (8.4, 5.6)

    def run(self, name: str) -> ComparedRun:
        """
        The run of that name.

        Raises:
            ValueError: if there is none; the message lists the names.
        """
        names = [run.name for run in self.runs]
        if name not in names:
            raise ValueError(f"run={name!r}: the report has {names}; name one of them.")
        return self.runs[names.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ComparisonReport:
        """The report that `to_dict` gave."""
        runs = [ComparedRun.from_dict(run) for run in values["runs"]]
        return cls(RunResult.from_dict(values["original"]), runs, values["settings"])

    def front(self) -> list[str]:
        """
        Names of the runs on the Pareto front of target loss and forgetting; none where one of both was not measured.

        The original model counts: a run that is worse on the target is not on the front, for nothing was forgotten.
        """
        axis = self.forgetting_measure()
        if axis is None:
            return []
        start = 0.0 if axis == "kl_original_to_new" else getattr(self.original, axis).mean
        target = self.original.target_loss
        assert target is not None  # the axis says so
        points = [
            (start, target.mean),
            *((self._mean(run, axis), self._mean(run, "target_loss")) for run in self.runs),
        ]
        return [run.name for run, stands in zip(self.runs, pareto_front(points)[1:], strict=True) if stands]

    def forgetting_measure(self) -> str | None:
        """The field that says what was forgotten, where target rows were measured too: the KL, else general loss."""
        if self.original.target_loss is None:
            return None
        if all(run.values(_field("kl_original_to_new")) for run in self.runs):
            return "kl_original_to_new"
        return "general_loss" if self.original.general_loss else None

    def to_markdown(self) -> str:
        """The table, a line a run, the original model first; units in the header."""
        front = set(self.front())
        measures = {f"{MEASURES[name]} ({UNIT})": _field(name) for name in MEASURES}
        measures |= {f"target loss, {group} ({UNIT})": _group(group) for group in self.original.group_loss}
        columns = {
            title: ["" if (value := measure(self.original)) is None else f"{value.mean:.4f}"]
            + [_cell(run.values(measure)) for run in self.runs]
            for title, measure in measures.items()
        }
        cores = sorted({name for run in self.runs for result in run.results.values() for name in result.core})
        for name in cores:
            start = self.original.core.get(name)
            columns[f"{name} (centred accuracy)"] = ["" if start is None else f"{start.value:.4f}"] + [
                _numbers([result.core[name].value for result in run.results.values() if name in result.core])
                for run in self.runs
            ]
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        marks = ["", *("yes" if run.name in front else "" for run in self.runs)]
        lines = [
            [name, *(cells[i] for cells in columns.values()), *([marks[i]] if front else [])]
            for i, name in enumerate(["original", *(run.name for run in self.runs)])
        ]
        titles = ["run", *columns, *(["Pareto front"] if front else [])]
        return f"{markdown_table(titles, lines, numbers=range(1, len(columns) + 1))}\n\n{self._caption()}\n"

    def _caption(self) -> str:
        seeds = sorted({seed for run in self.runs for seed in run.results})
        spread = "± is half of a 95 % interval over rows."
        if len(seeds) > 1:
            spread = f"Means over seeds {', '.join(map(str, seeds))}; ± is the standard deviation over them."
        front = "" if not self.front() else " On the Pareto front: no other run is better at one of both and not worse"
        front += "" if not front else " at the other, target loss and forgetting."
        return f"{spread} KL is exact over the vocabulary, on fresh samples of the original model.{front}"

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return "target and one of context_free and general_text" if self.forgetting_measure() is None else None

    def draw(self, figure: Figure) -> None:
        """Draw every run's target loss against what it forgot, means over seeds, and the Pareto front as a line."""
        axis = self.forgetting_measure()
        assert axis is not None  # `plot` has asked `missing_for_plot`
        axes = figure.add_subplot()
        front = set(self.front())
        start = getattr(self.original, axis)
        target = self.original.target_loss
        assert target is not None
        points = [("original", 0.0 if start is None else start.mean, target.mean)]
        colors = ["0.35"]
        axes.plot(*points[0][1:], "D", color="0.35", ms=8, mec="white")
        for i, run in enumerate(self.runs):
            x, y = ([value.mean for value in run.values(_field(name))] for name in (axis, "target_loss"))
            mean = (fmean(x), fmean(y))
            # from the lowest seed to the highest
            errors = [
                [[centre - min(values)], [max(values) - centre]] for centre, values in zip(mean, (x, y), strict=True)
            ]
            style: dict[str, Any] = {"color": f"C{i % 10}", "fmt": "os^vPX"[i // 10 % 6], "alpha": 0.85}
            mark = "black" if run.name in front else "white"
            axes.errorbar(*mean, xerr=errors[0], yerr=errors[1], ms=8, lw=1.2, capsize=2, mec=mark, **style)
            points.append((run.name, *mean))
            colors.append(style["color"])
        line = sorted([points[0][1:], *((x, y) for name, x, y in points[1:] if name in front)])
        axes.plot([x for x, _ in line], [y for _, y in line], color="0.6", lw=1, ls="--", zorder=0)
        axes.set_xlabel(f"forgetting: {MEASURES[axis]}, {UNIT}  (less is better)")
        axes.set_ylabel(f"target loss, {UNIT}  (less is better)")
        axes.set_title("What each run gained, and what it forgot; the line is the Pareto front", loc="left")
        axes.margins(0.12)
        label_points(figure, axes, points, colors)

    def _mean(self, run: ComparedRun, name: str) -> float:
        return fmean(value.mean for value in run.values(_field(name)))


def _field(name: str) -> Callable[[RunResult], Estimate | None]:
    def measure(result: RunResult) -> Estimate | None:
        value: Estimate | None = getattr(result, name)
        return value

    return measure


def _group(name: str) -> Callable[[RunResult], Estimate | None]:
    return lambda result: result.group_loss.get(name)


def _cell(values: list[Estimate]) -> str:
    return str(values[0]) if len(values) == 1 else _numbers([value.mean for value in values])


def _numbers(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
