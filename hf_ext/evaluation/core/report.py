"""The CORE report: a table, a plot, JSON, a line a row, and entries for a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ext.evaluation.core.aggregate import Difference, Score, accuracy_of, core_score, extended_score
from hf_ext.evaluation.core.judges import least
from hf_ext.evaluation.core.records import RowRecord
from hf_ext.evaluation.core.tasks import CORE_TASKS, TASKS, Version
from hf_ext.guards.markdown import Markdown, escape
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from matplotlib.figure import Figure

__all__ = ["VERSIONS", "CoreReport", "TaskResult", "rows_of", "task_result"]

VERSIONS: tuple[Version, ...] = ("v2", "v1")

# Model, protocol, version: its published CORE. From DCLM's result files and nanochat's page on GPT-2.
PUBLISHED: dict[tuple[str, str, Version], float] = {
    ("DCLM-Baseline 7B, 2.6T tokens", "foundry", "v1"): 0.571,
    ("DCLM-Baseline 7B, 2.6T tokens", "foundry", "v2"): 0.560,
    ("Llama-3 8B", "foundry", "v1"): 0.576,
    ("Llama-3 8B", "foundry", "v2"): 0.565,
    ("GPT-2 XL", "nanochat", "v1"): 0.256525,
}


@dataclass(frozen=True)
class TaskResult:
    """
    What was measured on one task; shares are of 1.

    Args:
        label, type (`str`):
            Of the task.
        shots, shots_wanted (`int`):
            Solved examples before each question, and how many the task asks for: files with too few rows have fewer.
        rows, rows_of_task (`int`):
            Rows scored, and rows of the whole task.
        accuracy, standard_error (`float`):
            Share of rows that were right, and its binomial standard error; with categories the mean over them.
        truncated (`float`):
            Share of rows whose prompt was cut from the left.
        summed_accuracy, character_accuracy (`float`, *optional*):
            Accuracy if options are chosen by summed loss, or by loss a character; `None` where there are no options.
        empty_options (`int`):
            Options without a token to score, which are never chosen.
        difference ([`Difference`], *optional*):
            To the other model, in centred accuracy of v2.
    """

    label: str
    type: str
    shots: int
    shots_wanted: int
    rows: int
    rows_of_task: int
    accuracy: float
    standard_error: float
    truncated: float
    summed_accuracy: float | None = None
    character_accuracy: float | None = None
    empty_options: int = 0
    difference: Difference | None = None

    @property
    def is_subset(self) -> bool:
        """Whether rows of the task were left out, here or when its file was cut."""
        return self.rows < self.rows_of_task

    def centered(self, version: Version = "v2") -> float:
        """Centred accuracy: 0 is guessing, 1 is perfect; below 0 is worse than a guess."""
        return TASKS[self.label].centered(self.accuracy, version)

    def centered_error(self, version: Version = "v2") -> float:
        """Standard error of the centred accuracy."""
        return self.standard_error / (1 - TASKS[self.label].baseline(version))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskResult:
        """Read back what `dataclasses.asdict` wrote."""
        difference = values["difference"] and Difference(**values["difference"])
        return cls(**{**values, "difference": difference})


def task_result(
    label: str,
    records: Sequence[RowRecord],
    shots: int,
    categories: Sequence[str] | None = None,
    golds: Sequence[int | None] = (),
    difference: Difference | None = None,
) -> TaskResult:
    """
    The result of a task from its rows.

    Args:
        label (`str`):
            Of the task.
        records (`Sequence[RowRecord]`):
            Of the rows scored.
        shots (`int`):
            Examples each had.
        categories (`Sequence[str]`, *optional*):
            Of each record, where the accuracy is the mean over them.
        golds (`Sequence[int | None]`, *optional*):
            The right option of each record, where there are options.
        difference ([`Difference`], *optional*):
            To the other model.
    """
    task = TASKS[label]
    accuracy, standard_error = accuracy_of([record.correct for record in records], categories)
    summed = characters = None
    if task.type in ("multiple_choice", "schema"):
        pairs = list(zip(records, golds, strict=True))
        by_sum = [least(record.losses, record.tokens, [1] * len(record.losses)) == gold for record, gold in pairs]
        by_character = [least(record.losses, record.tokens, record.characters) == gold for record, gold in pairs]
        summed, _ = accuracy_of(by_sum, categories)
        characters, _ = accuracy_of(by_character, categories)
    return TaskResult(
        label=label,
        type=task.type,
        shots=shots,
        shots_wanted=task.shots,
        rows=len(records),
        rows_of_task=task.num_rows,
        accuracy=accuracy,
        standard_error=standard_error,
        truncated=float(np.mean([record.truncated for record in records])),
        summed_accuracy=summed,
        character_accuracy=characters,
        empty_options=sum(record.tokens.count(0) for record in records),
        difference=difference,
    )


@dataclass(frozen=True)
class CoreReport(SavedReport):
    """
    Results of `evaluate_core`; read back with `load` it is without its rows.

    Args:
        tasks (`list[TaskResult]`):
            In DCLM's order.
        settings (`dict`):
            How it was measured: `protocol`, `max_length`, `max_rows`, `model`, `against` and more.
        differences (`dict[str, Difference]`):
            Of the mean over CORE's tasks, by version, where another model was measured too.
        rows (`list[dict]`, *optional*):
            A [`RowRecord`] each, as plain values.
    """

    tasks: list[TaskResult]
    settings: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    rows: list[dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    file_name = "core"
    plot_size = (7.2, 6.0)

    def task(self, label: str) -> TaskResult:
        """
        The result of a task.

        Raises:
            ValueError: if the report has none of it.
        """
        for result in self.tasks:
            if result.label == label:
                return result
        raise ValueError(f"The report has no task {label!r}; it has {', '.join(t.label for t in self.tasks)}.")

    @property
    def missing(self) -> list[str]:
        """Tasks of CORE that were not measured."""
        labels = {result.label for result in self.tasks}
        return [label for label in CORE_TASKS if label not in labels]

    @property
    def is_core(self) -> bool:
        """Whether all 22 tasks are there, each on all of its rows with all of its examples."""
        of_core = [result for result in self.tasks if result.label in CORE_TASKS]
        is_whole = not any(result.is_subset or result.shots < result.shots_wanted for result in of_core)
        return not self.missing and is_whole

    def score(self, version: Version = "v2") -> Score:
        """
        The mean of centred accuracies over those of CORE's tasks that were measured, with its standard error.

        Raises:
            ValueError: if none was.
        """
        return core_score(*self._shares(), version, is_subset=not self.is_core)

    def scores(self) -> dict[str, Score]:
        """
        The score by v2's baselines and by v1's, each under its name; EXTENDED behind it where all of it was measured.

        Empty where no task of CORE was measured.
        """
        if len(self.missing) == len(CORE_TASKS):
            return {}
        scores = [*map(self.score, VERSIONS)]
        is_whole = not any(result.is_subset or result.shots < result.shots_wanted for result in self.tasks)
        extended = [extended_score(*self._shares(), version) for version in VERSIONS] if is_whole else []
        return {score.name: score for score in (*scores, *extended) if score is not None}

    def _shares(self) -> tuple[dict[str, float], dict[str, float]]:
        """Accuracies and their standard errors by label."""
        return (
            {result.label: result.accuracy for result in self.tasks},
            {result.label: result.standard_error for result in self.tasks},
        )

    def to_dict(self) -> dict[str, Any]:
        """The report without its rows as plain values that `json` takes; `from_dict` reads it back."""
        return {
            "is_core": self.is_core,
            "scores": {name: asdict(score) for name, score in self.scores().items()},
            "tasks": [asdict(result) for result in self.tasks],
            "settings": self.settings,
            "differences": {version: asdict(difference) for version, difference in self.differences.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CoreReport:
        """The report that `to_dict` gave."""
        report = cls(
            [TaskResult.from_dict(result) for result in values["tasks"]],
            values["settings"],
            {version: Difference(**difference) for version, difference in values["differences"].items()},
        )
        report.to_markdown()  # what is missing or of another kind fails here, where `load` names the file
        return report

    def __str__(self) -> str:
        """The report as Markdown."""
        return self.to_markdown()

    def files(self) -> dict[str, str]:
        """What `save` writes beside the plot: with the rows, a line each."""
        if self.rows is None:
            return super().files()
        return super().files() | {"core_rows.jsonl": "".join(json.dumps(row) + "\n" for row in self.rows)}

    # --- Markdown ---

    def to_markdown(self) -> str:
        """The report as Markdown: the scores of both versions, a table of tasks, and how to read it."""
        parts = [self._score_table(), self._task_table(), self._caption()]
        if self.is_core:
            parts.insert(1, self._published_table())
        return "\n\n".join(section for section in parts if section) + "\n"

    def _score_table(self) -> str:
        if not self.scores():
            return ""
        columns = ["score", "mean of centred accuracy", "tasks"]
        columns += ["difference to the other model"] if self.differences else []
        rows: list[list[object]] = []
        for name, score in self.scores().items():
            difference = self.differences.get(name.rpartition("_")[2]) if name.startswith("core") else None
            cells = [name, Markdown(score), score.num_tasks, Markdown(difference) if difference else ""]
            rows.append(cells[: len(columns)])
        return markdown_table(columns, rows, numbers=range(1, len(columns)))

    def _task_table(self) -> str:
        columns = ["task", "shots", "rows", "accuracy", "centred, v2", "centred, v1", "cut", "by sum", "by character"]
        rows = []
        for result in self.tasks:
            shots = f"{result.shots} of {result.shots_wanted}" if result.shots < result.shots_wanted else result.shots
            count = f"{result.rows} of {result.rows_of_task}" if result.is_subset else result.rows
            cells: list[object] = [
                result.label,
                shots,
                count,
                Markdown(f"{result.accuracy:.3f} ± {result.standard_error:.3f}"),
                *(Markdown(f"{result.centered(version):.3f}") for version in VERSIONS),
                f"{result.truncated:.0%}",
                _share(result.summed_accuracy),
                _share(result.character_accuracy),
            ]
            rows.append(cells + ([Markdown(result.difference)] if result.difference else []))
        columns += ["difference, v2"] if any(result.difference for result in self.tasks) else []
        return markdown_table(columns, rows, numbers=range(1, len(columns)))

    def _published_table(self) -> str:
        protocol = self.settings["protocol"]
        rows = [
            [model, f"core_{version}", Markdown(f"{value:.4f}")]
            for (model, of_protocol, version), value in PUBLISHED.items()
            if of_protocol == protocol
        ]
        return markdown_table([f"published, protocol {protocol}", "score", "value"], rows, numbers=[2])

    def _caption(self) -> str:
        facts = self.settings
        sentences = [
            f"Protocol {escape(facts['protocol'])}, {facts['max_length']:,} tokens at most. ± is a standard error "
            "over rows. Centred: 0 is guessing, 1 is perfect; v1 and v2 are two tables of what guessing gets."
        ]
        if len(self.missing) < len(CORE_TASKS) and not self.is_core:
            lacks = f"without {', '.join(map(escape, self.missing))}" if self.missing else "on fewer rows or examples"
            sentences.append(f"This is not CORE, but a mean {lacks}: compare it with nothing that is published.")
        empty = sum(result.empty_options for result in self.tasks)
        if empty:
            sentences.append(f"{empty:,} options had no token to score and were never chosen.")
        if self.differences or any(result.difference for result in self.tasks):
            other = escape(facts["against"])
            sentences.append(
                f"Differences are to {other} on the same rows, with half of a 95 % interval, paired by row."
            )
        sentences.append(
            '"By sum" and "by character": accuracy if options are chosen by summed loss, or by a character.'
        )
        return " ".join(sentences)

    # --- plot and card ---

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return None if self.tasks else "a task"

    def draw(self, figure: Figure) -> None:
        """Draw the centred accuracy of each task with twice its standard error, and the mean as a line."""
        axes = figure.add_subplot()
        results = sorted(self.tasks, key=lambda result: result.centered())
        places = range(len(results))
        values = [result.centered() for result in results]
        errors = [2 * result.centered_error() for result in results]
        colors = ["C0" if result.label in CORE_TASKS else "0.6" for result in results]
        axes.barh(places, values, xerr=errors, color=colors, alpha=0.75, error_kw={"lw": 1, "capsize": 2})
        axes.set_yticks(places, [result.label for result in results], fontsize=8)
        axes.axvline(0, color="0.4", lw=0.9)
        if self.scores():
            score = self.score()
            axes.axvline(score.value, color="C3", lw=1.2, ls="--", label=f"{score.name}: {score.value:.3f}")
            axes.legend(frameon=False, loc="lower right")
        axes.set_xlabel("centred accuracy (v2): 0 is guessing, 1 is perfect; bars: two standard errors")

    def eval_results(
        self, run: str | None = None, *, dataset_name: str = "DCLM CORE", dataset_id: str = "dclm-core"
    ) -> list[EvalResult]:
        """The numbers as `huggingface_hub.EvalResult`, for the `model-index` of a card.

        Args:
            run (`str`, *optional*):
                Not used: the report is about one model. Taken so that a card can hold any kind of report.
            dataset_name, dataset_id (`str`, *optional*):
                Pretty name and Hub id of the tasks.
        """
        from huggingface_hub import EvalResult

        protocol = self.settings["protocol"]
        metrics: list[tuple[str, str, float]] = [
            (name, f"mean centred accuracy of {score.num_tasks} tasks, protocol {protocol}", score.value)
            for name, score in self.scores().items()
        ]
        metrics += [(f"{t.label}_accuracy", f"{t.label}, accuracy, {t.shots} shots", t.accuracy) for t in self.tasks]
        return [
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset_id,
                dataset_name=dataset_name,
                metric_type=metric_type,
                metric_name=metric_name,
                metric_value=round(value, 6),
            )
            for metric_type, metric_name, value in metrics
        ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def rows_of(records: Mapping[str, Sequence[RowRecord]]) -> list[dict[str, Any]]:
    """Records by task as the plain rows of a report."""
    return [asdict(record) for of_task in records.values() for record in of_task]
