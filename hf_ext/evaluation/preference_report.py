"""The likelihood report of preference pairs: a table, a plot, JSON, rows, and entries for a model card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_ext.guards.markdown import Markdown, code, escape
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import EvalResult
    from matplotlib.figure import Figure

__all__ = ["Interval", "LikelihoodReport"]

# Key of a measure: what a table calls it, its unit.
MEASURES = {
    "chosen_delta": ("change of the chosen response's log-likelihood", "nats/sequence"),
    "rejected_delta": ("change of the rejected response's log-likelihood", "nats/sequence"),
    "chosen_delta_per_token": ("change of the chosen response's log-likelihood", "nats/token"),
    "rejected_delta_per_token": ("change of the rejected response's log-likelihood", "nats/token"),
    "margin": ("margin, chosen change minus rejected change", "nats/sequence"),
    "chosen_dropped": ("pairs whose chosen response fell", "share"),
    "accuracy": ("pairs whose chosen response rose more", "share"),
}

BOUNDS = {
    "nwj": ("nwj: KL(chosen‖rejected) is at least", "nats"),
    "infonce": ("infonce (the DPO bound): KL(chosen‖rejected) is at least", "nats"),
    "jsd": ("jsd: JS(chosen, rejected) is at least", "nats"),
    "lsif": ("lsif: chi-square(chosen, rejected) is at least", "no unit"),
    "nwj_mixture": ("nwj_mixture: KL(chosen‖both mixed) is at least", "nats"),
}


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its bootstrap interval.

    Args:
        mean (`float`):
            In the unit of the measure.
        low, high (`float` or `None`):
            Ends of the 95 % interval; `None` where there is a single group of pairs.
    """

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """The mean and the interval, as a table shows them."""
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class LikelihoodReport(SavedReport):
    """
    Results of `likelihood_report`; read back with `load` it is without its rows.

    Args:
        measures (`dict[str, Interval]`):
            Likelihood changes and shares; the keys are those of `rows`' columns, `accuracy` and `*_per_token` beside.
        bounds (`dict[str, Interval]`):
            For each estimator the divergence bound the policy reaches at `settings["beta"]`.
        settings (`dict`):
            How it was measured, and on how much.
        rows (`Dataset`, *optional*):
            One row a pair; `None` in a report that was read back.
    """

    measures: dict[str, Interval]
    bounds: dict[str, Interval]
    settings: dict[str, Any] = field(default_factory=dict)
    rows: Dataset | None = field(default=None, repr=False, compare=False)

    file_name = "preference"
    plot_size = (6.4, 5.2)

    def to_dict(self) -> dict[str, Any]:
        """The report without its rows as plain values that `json` takes; `from_dict` reads it back."""
        return {
            "measures": {key: asdict(value) for key, value in self.measures.items()},
            "bounds": {key: asdict(value) for key, value in self.bounds.items()},
            "settings": self.settings,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LikelihoodReport:
        """The report that `to_dict` gave."""
        measures, bounds = (
            {key: Interval(**interval) for key, interval in values[part].items()} for part in ("measures", "bounds")
        )
        return cls(measures, bounds, values["settings"])

    def __str__(self) -> str:
        """The report as a Markdown table."""
        return self.to_markdown()

    def to_markdown(self) -> str:
        """The report as a Markdown table, one row a measure; units in their own column."""
        rows = [
            map(Markdown, (title, values[key], unit))  # our own text: the brackets of an interval are no link
            for titles, values in ((MEASURES, self.measures), (BOUNDS, self.bounds))
            for key, (title, unit) in titles.items()
            if key in values
        ]
        table = markdown_table(["measure", Markdown("value [95 % interval]"), "unit"], rows, numbers=[1])
        return f"{table}\n\n{self._caption()}\n"

    def _caption(self) -> str:
        facts = self.settings
        column = facts["groups"]
        draws = "pairs" if column is None else f"the {facts['num_groups']:,} values of {code(column)}"
        per = " per token" if facts["length_normalized"] else ""
        left_out = f" {facts['left_out']:,} pairs had no token left and were left out." if facts["left_out"] else ""
        return (
            f"Measured on {facts['num_pairs']:,} pairs ({facts['chosen_tokens']:,} chosen and "
            f"{facts['rejected_tokens']:,} rejected tokens) against {escape(facts['reference'])}. Intervals: "
            f"bootstrap over {draws}. Bounds are of the critic {facts['beta']:g} x log-ratio{per}; a negative bound "
            f"says nothing.{left_out} The changes are on given responses, not on the model's own samples: no KL of "
            "the policy follows from them."
        )

    def files(self) -> dict[str, str]:
        """What `save` writes beside the plot: with the rows, a line a pair."""
        if self.rows is None:
            return super().files()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        return super().files() | {"preference_rows.jsonl": lines}

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks."""
        return "the rows of the pairs, which a report that was read back does not have" if self.rows is None else None

    def draw(self, figure: Figure) -> None:
        """
        Draw each pair's chosen change against its rejected change, in nats per token.

        Left of the vertical line the chosen response fell; below the diagonal it rose more than the rejected one.
        """
        assert self.rows is not None  # `plot` has asked `missing_for_plot`
        plain = self.rows.with_format("numpy")
        x = plain["chosen_delta"][:] / plain["chosen_length"][:]
        y = plain["rejected_delta"][:] / plain["rejected_length"][:]
        axes = figure.add_subplot()
        fell = x < 0
        size = float(np.clip(3000 / len(x), 4, 36))  # points**2: thousands of pairs must stay apart, ten be seen
        for points, color, marker, name in (
            (~fell, "C0", "o", "chosen held or rose"),
            (fell, "C3", "v", "chosen fell"),
        ):
            label = f"{name}: {points.mean():.0%}"
            axes.scatter(x[points], y[points], s=size, c=color, marker=marker, alpha=0.6, lw=0, label=label)
        axes.axhline(0, color="0.7", lw=0.9, zorder=0)
        axes.axvline(0, color="0.7", lw=0.9, zorder=0)
        # Below this diagonal the chosen response rose more than the rejected one: DPO counts the pair as right.
        axes.axline((0, 0), slope=1, color="0.7", lw=0.9, ls="--", zorder=0)
        axes.set_xlabel("chosen response: change of log-likelihood, nats/token")
        axes.set_ylabel("rejected response: change of log-likelihood, nats/token")
        title = "right below the diagonal: ranked as preferred; left of the line: the chosen sank"
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(frameon=False)

    def eval_results(
        self, run: str | None = None, *, dataset_name: str = "held-out pairs", dataset_id: str = "pairs"
    ) -> list[EvalResult]:
        """The numbers as `huggingface_hub.EvalResult`, for the `model-index` of a card.

        Args:
            run (`str`, *optional*):
                Not used: the report is about one model. Taken so that a card can hold either kind of report.
            dataset_name, dataset_id (`str`, *optional*):
                Pretty name and Hub id of the pairs.
        """
        from huggingface_hub import EvalResult

        titles = {**MEASURES, **{key: (f"bound, {title}", unit) for key, (title, unit) in BOUNDS.items()}}
        return [
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset_id,
                dataset_name=dataset_name,
                metric_type=key,
                metric_name=f"{titles[key][0]}, {titles[key][1]}",
                metric_value=round(interval.mean, 6),
            )
            for key, interval in {**self.measures, **self.bounds}.items()
        ]
