"""The forgetting report: a table, a plot, JSON, and entries for a model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_ext.evaluation.intervals import Estimate
from hf_ext.guards.markdown import one_line, well_formed
from hf_ext.guards.renamed import renamed_attribute, renamed_parameter
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    from hf_ext.evaluation.core.aggregate import Difference, Score

__all__ = ["MEASURES", "UNIT", "ForgettingReport", "RunResult", "label_points"]

UNIT = "nats/token"
LONGEST_LABEL = 40  # characters of a name in a plot; the tables have all of it
CORE_WORDS = (
    "CORE is a mean of accuracies, 0 a guess and 1 perfect, by DCLM's first baselines (v1) and those of 2025 (v2); ± "
    "is its standard error, and half of a 95 % interval for a change. With fewer than 22 tasks it is not CORE itself."
)

# Field of RunResult, its name in tables and cards.
MEASURES = {
    "target_loss": "target loss",
    "target_change": "change of target loss",
    "kl_original_to_new": "KL(original‖new)",
    "general_loss": "general loss",
    "general_change": "change of general loss",
}


@dataclass(frozen=True)
class RunResult:
    """What was measured on one model, in nats per token; `None` where the rows for it were not given.

    Args:
        name (`str`):
            The run's name in tables and plots.
        target_loss, general_loss (`Estimate`, *optional*):
            Mean negative log-likelihood of target rows and of general text.
        target_change, general_change (`Estimate`, *optional*):
            The same minus the original model's, on the same rows; `None` for the original itself.
        kl_original_to_new (`Estimate`, *optional*):
            KL(original || new) of the next token, mean over the prefixes of fresh context-free rows.
        group_loss (`dict[str, Estimate]`):
            Target loss of each group of rows, keyed `column=value`.
        kl_by_start (`dict[str, Estimate]`):
            The KL on the rows of each seed, where the context-free rows mix several.
        core (`dict[str, Score]`), core_change (`dict[str, Difference]`):
            CORE by its name, such as `core16_v2`, and what it is above the original model's on the same rows, by
            version; no nats, but centred accuracy.
    """

    name: str
    target_loss: Estimate | None = None
    target_change: Estimate | None = None
    kl_original_to_new: Estimate | None = None
    general_loss: Estimate | None = None
    general_change: Estimate | None = None
    group_loss: dict[str, Estimate] = field(default_factory=dict)
    kl_by_start: dict[str, Estimate] = field(default_factory=dict)
    core: dict[str, Score] = field(default_factory=dict)
    core_change: dict[str, Difference] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunResult:
        """Read back what `dataclasses.asdict` wrote."""
        from hf_ext.evaluation.core.aggregate import Difference, Score  # heavy: with torch

        estimates = {key: values[key] and Estimate(**values[key]) for key in MEASURES}
        groups = {group: Estimate(**estimate) for group, estimate in values["group_loss"].items()}
        by_start = {name: Estimate(**estimate) for name, estimate in values.get("kl_by_start", {}).items()}
        # reports from before CORE was one of the measures lack it
        core = {name: Score(**score) for name, score in values.get("core", {}).items()}
        core_change = {name: Difference(**change) for name, change in values.get("core_change", {}).items()}
        return cls(
            name=values["name"],
            group_loss=groups,
            kl_by_start=by_start,
            core=core,
            core_change=core_change,
            **estimates,
        )


@dataclass(frozen=True)
class ForgettingReport(SavedReport):
    """
    Results of `forgetting_report`.

    Args:
        original (`RunResult`):
            The model before tuning: losses only.
        runs (`list[RunResult]`):
            One for each tuned model.
        settings (`dict`):
            How it was measured.
    """

    original: RunResult
    runs: list[RunResult]
    settings: dict[str, Any] = field(default_factory=dict)

    file_name = "forgetting"
    plot_size = (7.2, 4.8)
    arms = renamed_attribute("ForgettingReport.arms", "runs")
    arm = renamed_attribute("ForgettingReport.arm", "run")

    def run(self, name: str | None = None) -> RunResult:
        """
        The run of that name, or the only one.

        Raises:
            ValueError: if the report has no such run, or if it has several and `name` is not given.
        """
        names = [run.name for run in self.runs]
        if name is None and len(names) == 1:
            return self.runs[0]
        if name not in names:
            raise ValueError(f"run={name!r}: the report has {names}; name one of them.")
        return self.runs[names.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ForgettingReport:
        """The report that `to_dict` gave."""
        results = values["arms"] if "arms" in values else values["runs"]  # an older report's word
        runs = [RunResult.from_dict(result) for result in results]
        return cls(RunResult.from_dict(values["original"]), runs, values["settings"])

    def to_markdown(self) -> str:
        """The report as a Markdown table, one row a run, the original model first; units in the header."""
        models = [self.original, *self.runs]
        columns = {f"{MEASURES[key]} ({UNIT})": [getattr(m, key) for m in models] for key in MEASURES}
        columns |= {
            f"target loss, {group} ({UNIT})": [m.group_loss.get(group) for m in models]
            for group in self.original.group_loss
        }
        columns |= {
            f"KL, rows from {start} ({UNIT})": [m.kl_by_start.get(start) for m in models]
            for start in sorted({start for run in self.runs for start in run.kl_by_start})
        }
        columns |= {f"{name} (centred accuracy)": [m.core.get(name) for m in models] for name in self.original.core}
        columns |= {
            f"change of CORE, {version} (centred accuracy)": [m.core_change.get(version) for m in models]
            for version in sorted({version for run in self.runs for version in run.core_change}, reverse=True)
        }
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        rows = [
            [model.name, *("" if column[i] is None else str(column[i]) for column in columns.values())]
            for i, model in enumerate(models)
        ]
        table = markdown_table(["run", *columns], rows, numbers=range(1, len(columns) + 1))
        return f"{table}\n\n{self._caption()}\n"

    def _caption(self) -> str:
        sizes = {"target rows": "target_loss", "pieces of general text": "general_loss"}
        counts = [
            f"{estimate.num_rows:,} {title} ({estimate.num_tokens:,} tokens)"
            for title, key in sizes.items()
            if (estimate := getattr(self.original, key)) is not None
        ]
        if self.runs and (kl := self.runs[0].kl_original_to_new) is not None:
            counts.append(
                f"{kl.num_rows:,} fresh context-free samples of the original model ({kl.num_tokens:,} tokens)"
            )
        core = next(iter(self.original.core.values()), None)
        if core is not None:
            counts.append(f"{core.num_tasks} of CORE's 22 tasks")
        text = (
            f"Measured on {', '.join(counts)}. ± is half of a 95 % interval over rows; that of a change is paired. "
            "KL is exact over the vocabulary; 0 means that nothing was forgotten on the original model's own text."
        )
        return text if core is None else f"{text} {CORE_WORDS}"

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return "target and one of context_free and general_text" if self._forgetting_measure() is None else None

    def _forgetting_measure(self) -> str | None:
        """The field drawn on the x axis, if the report has what a plot needs."""
        if self.original.target_loss is None:
            return None
        if all(run.kl_original_to_new for run in self.runs):
            return "kl_original_to_new"
        return "general_loss" if self.original.general_loss else None

    def draw(self, figure: Figure) -> None:
        """Draw every run's target loss against what it forgot, with intervals; the original model is the diamond."""
        measure = self._forgetting_measure()
        assert measure is not None  # `plot` has asked `missing_for_plot`
        axes = figure.add_subplot()
        nothing = Estimate(0.0, None, 0, 0)  # KL of the original model to itself
        start = getattr(self.original, measure) or nothing
        points: list[tuple[str, Estimate, Any]] = [(self.original.name, start, self.original.target_loss)]
        points += [(run.name, getattr(run, measure), run.target_loss) for run in self.runs]
        colors = []
        for i, (_, x, y) in enumerate(points):
            style: dict[str, Any] = {"fmt": "D", "color": "0.35"}
            if i > 0:  # shapes differ too: runs often lie on one another
                style = {"fmt": "os^vPX"[(i - 1) % 6], "color": f"C{(i - 1) % 10}", "alpha": 0.8}
            axes.errorbar(
                x.mean, y.mean, xerr=x.half_width, yerr=y.half_width, ms=8, lw=1.3, capsize=3, mec="white", **style
            )
            colors.append(style["color"])
        # The original's target loss: what lies below it was gained.
        axes.axhline(points[0][2].mean, color="0.75", lw=0.9, ls="--", zorder=0)
        axes.set_xlabel(f"forgetting: {MEASURES[measure]}, {UNIT}  (less is better)")
        axes.set_ylabel(f"target loss, {UNIT}  (less is better)")
        axes.set_title("What tuning gained, and what it forgot", loc="left")
        axes.margins(0.12)
        label_points(figure, axes, [(name, x.mean, y.mean) for name, x, y in points], colors)

    @renamed_parameter(arm="run")
    def eval_results(
        self, run: str | None = None, *, dataset_name: str = "held-out target rows", dataset_id: str = "target"
    ) -> list[EvalResult]:
        """The run's numbers as `huggingface_hub.EvalResult`, for the `model-index` of a card.

        Args:
            run (`str`, *optional*):
                Name of the run the card is about; needed if there are several.
            dataset_name, dataset_id (`str`, *optional*):
                Pretty name and Hub id of the target data.
        """
        from huggingface_hub import EvalResult

        result = self.run(run)
        datasets = {
            "target": (dataset_id, dataset_name),
            "kl": ("context-free", "fresh context-free samples of the original model"),
            "general": ("general-text", "general text"),
        }
        entries = []
        for key, title in MEASURES.items():
            estimate = getattr(result, key)
            if estimate is None:
                continue
            dataset_type, name = datasets[key.split("_")[0]]
            entries.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=dataset_type,
                    dataset_name=name,
                    metric_type=key,
                    metric_name=f"{title}, {UNIT}",
                    metric_value=round(estimate.mean, 6),
                )
            )
        core = {name: score.value for name, score in result.core.items()}
        core |= {f"core_change_{version}": change.mean for version, change in result.core_change.items()}
        return entries + [
            EvalResult(
                task_type="text-generation",
                dataset_type="dclm-core",
                dataset_name="DCLM CORE",
                metric_type=metric_type,
                metric_name=f"{metric_type.replace('_', ' ')}, centred accuracy",
                metric_value=round(value, 6),
            )
            for metric_type, value in core.items()
        ]


def label_points(figure: Figure, axes: Axes, points: list[tuple[str, float, float]], colors: list[str]) -> None:
    """Write each name beside its point, at the first of several places that covers no point and no other name."""
    figure.draw_without_rendering()  # the axes' limits and the texts' sizes are known only after this
    centres = [axes.transData.transform((x, y)) for _, x, y in points]
    text_boxes: list[Bbox] = []
    for (name, x, y), color in zip(points, colors, strict=True):
        for dx, dy in [(9, 7), (9, -7), (-9, 7), (-9, -7), (9, 21), (9, -21), (-9, 21), (-9, -21), (9, 35), (9, -35)]:
            text = axes.annotate(
                _label(name),
                (x, y),
                parse_math=False,  # a dollar is none of mathematics, and half a formula would stop the plot
                xytext=(dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="bottom" if dy > 0 else "top",
                color=color,
                fontsize=10,
            )
            box = text.get_window_extent().padded(2)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if (
                inside
                and not any(box.overlaps(other) for other in text_boxes)
                and not any(box.contains(*c) for c in centres)
            ):
                break
            if (dx, dy) != (9, -35):
                text.remove()
        text_boxes.append(box)


def _label(name: str) -> str:
    """A name on one line, and no longer than the plot has room for."""
    name = one_line(well_formed(name))
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
