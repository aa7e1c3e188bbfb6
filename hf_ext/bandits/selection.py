"""What came of a race between candidates: who is best, how sure that is, and what it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hf_ext.guards.markdown import Markdown, escape, one_line, well_formed
from hf_ext.guards.reports import SavedReport, markdown_table, name_legend

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from matplotlib.figure import Figure

__all__ = ["CandidateResult", "Selection"]

STATUSES = ("best", "level", "undecided", "refuted", "not finite")


@dataclass(frozen=True)
class CandidateResult:
    """
    What came of a candidate.

    Args:
        name (`str`):
            The candidate's.
        num_items (`int`):
            On how many items it was measured.
        mean (`float`, *optional*):
            Mean of its values there; `None` where one of them is not finite.
        behind (`float`, *optional*):
            By how much the best one's mean is better on the same items; at least 0 for all but those that dropped out
            for what they did on few items.
        standard_error (`float`, *optional*):
            Of `behind`, for a sample of endlessly many items; `None` where there are fewer than two.
        status (`str`):
            `"best"`; `"level"`, its mean over the whole pool is the best one's; `"undecided"`, it may be the best;
            `"refuted"`; or `"not finite"`.
    """

    name: str
    num_items: int
    mean: float | None
    behind: float | None
    standard_error: float | None
    status: str


@dataclass(frozen=True)
class Selection(SavedReport):
    """
    Result of `select_best`.

    Args:
        name (`str`):
            The best candidate, or where nothing is certified the one that leads.
        certified (`bool`):
            Whether it is the best one of the pool, at `level`.
        level (`float`, *optional*):
            1 where every candidate was measured on every item, otherwise the confidence asked for; `None` where
            nothing is certified.
        candidates (`list[CandidateResult]`):
            In the order given.
        items_spent (`int`):
            Evaluations: candidates times the items that they were measured on.
        race (`dict[str, list]`):
            For the plot: by candidate, pairs of items seen and how far its mean was behind the best one's.
        settings (`dict`):
            `num_items` (of the pool), `confidence`, `greater_is_better`, `budget`, `seed`.
    """

    name: str
    certified: bool
    level: float | None
    candidates: list[CandidateResult]
    items_spent: int
    race: dict[str, list[list[float]]] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    file_name = "selection"
    plot_size = (7.2, 4.6)

    @property
    def undecided(self) -> list[str]:
        """The other candidates that may be the best, or are as good."""
        return [result.name for result in self.candidates if result.status in ("undecided", "level")]

    def candidate(self, name: str) -> CandidateResult:
        """
        The result of a candidate.

        Raises:
            ValueError: if there was none of that name.
        """
        results = {result.name: result for result in self.candidates}
        if name not in results:
            raise ValueError(f"candidate={name!r}: there were {list(results)}; name one of them.")
        return results[name]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Selection:
        """The report that `to_dict` gave."""
        results = [CandidateResult(**result) for result in values["candidates"]]
        report = cls(**(values | {"candidates": results}))
        if report.name not in [result.name for result in results]:
            raise ValueError("the best candidate is none of those measured")
        report.to_markdown()  # what is missing or of another kind fails here, where `load` names the file
        return report

    def __str__(self) -> str:
        """The report as Markdown."""
        return self.to_markdown()

    def to_markdown(self) -> str:
        """The report as Markdown: what can be said, a table of the candidates, and how to read it."""
        rows = [
            [
                result.name,
                f"{result.num_items:,}",
                _number(result.mean),
                _number(result.behind),
                _number(result.standard_error),
                result.status,
            ]
            for result in self.candidates
        ]
        table = markdown_table(
            ["candidate", "items", "mean", "behind the best", "standard error", "status"], rows, numbers=range(1, 5)
        )
        return f"{self.verdict()}\n\n{table}\n\n{self._caption()}\n"

    def verdict(self) -> str:
        """What can be said, in some sentences of Markdown."""
        dropped_names = [escape(result.name) for result in self.candidates if result.status == "not finite"]
        words = f" A value of {', '.join(dropped_names)} is not finite: dropped." if dropped_names else ""
        return self._certificate() + words

    def _certificate(self) -> str:
        num_items = self.settings["num_items"]
        max_evaluations = num_items * len(self.candidates)
        name = f"**{escape(self.name)}**"
        expense = f"{self.items_spent:,} of {max_evaluations:,} evaluations"
        if len(self.candidates) == 1:
            return f"{name} is the only candidate; nothing was measured."
        if not self.certified:
            others = ", ".join(map(escape, self.undecided))
            if all(self.candidate(other).status == "level" for other in self.undecided):
                return f"Nothing can be told: on all {num_items:,} items {name} is exactly as good as {others}."
            confidence = _percent(self.settings["confidence"])
            return (
                f"Nothing can be told at {confidence} confidence after {expense}: {name} leads, and {others} may be "
                "better. More budget may tell."
            )
        if self.level == 1:
            return (
                f"{name} is the best on these {num_items:,} items, on which every candidate was measured. Of other "
                "items that says nothing: compare how far the next one is behind with its standard error."
            )
        return (
            f"{name} is the best on these {num_items:,} items, at {_percent(self.level)} confidence, after {expense} "
            f"({self.items_spent / max_evaluations:.0%})."
        )

    def _caption(self) -> str:
        direction = "higher" if self.settings["greater_is_better"] else "lower"
        return (
            f"Means are over the items that a candidate was measured on; {direction} is better. How far it is behind "
            "is of the items that both saw, with the standard error for a sample of endlessly many."
        )

    def eval_results(
        self,
        run: str | None = None,
        *,
        dataset_name: str = "the items it was chosen on",
        dataset_id: str = "selection",
    ) -> list[EvalResult]:
        """
        The best candidate's mean as `huggingface_hub.EvalResult`, for the `model-index` of a card; none where nothing
        was measured. It was chosen for being the best, so its mean flatters it.

        Args:
            run (`str`, *optional*):
                The candidate that the card is about; the best one by default.
            dataset_name, dataset_id (`str`, *optional*):
                Pretty name and Hub id of the items.
        """
        from huggingface_hub import EvalResult

        result = self.candidate(self.name if run is None else run)
        if result.mean is None:
            return []
        direction = "higher" if self.settings["greater_is_better"] else "lower"
        return [
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset_id,
                dataset_name=dataset_name,
                metric_type="selection_mean",
                metric_name=f"mean over {result.num_items:,} items it was chosen on ({direction} is better)",
                metric_value=round(result.mean, 6),
            )
        ]

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return None if any(len(points) for points in self.race.values()) else "two candidates that were measured"

    def draw(self, figure: Figure) -> None:
        """Draw how far each candidate was behind the best one as items were seen; a cross where it was dropped."""
        axes = figure.add_subplot()
        names = []
        for number, result in enumerate(self.candidates):
            points = self.race.get(result.name, [])
            if not points:
                continue
            counts, distances = zip(*points, strict=True)
            is_best = result.name == self.name
            label = f"candidate {number}"
            names.append(result.name)
            style: dict[str, Any] = {"color": f"C{number % 10}", "lw": 2.2 if is_best else 1.2, "label": label}
            axes.plot(counts, distances, ls=("-", "--", ":")[number // 10 % 3], **style)
            if result.status == "refuted":
                axes.plot(counts[-1], distances[-1], marker="x", ms=8, color=style["color"])
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
        axes.set_xlabel("items seen")
        axes.set_ylabel("behind the best one (mean, same items)")
        title = _plain(one_line(well_formed(f"Best of {len(self.candidates)}: {self.name}")))
        axes.set_title(title, loc="left", parse_math=False)
        columns = 1 + len(self.candidates) // 15
        name_legend(axes.legend(frameon=False, fontsize=8, ncols=columns), names)


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.6g} %"


def _plain(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: float | None) -> Markdown | str:
    return "" if value is None else Markdown(f"{value:.5g}")
