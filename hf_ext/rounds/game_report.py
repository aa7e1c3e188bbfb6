"""What came of training one model a treatment: held-out loss and CORE with errors, and a winner only beyond them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar

from hf_ext.guards.extras import naming_extras
from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GameReport", "TreatmentResult"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TreatmentResult:
    """
    The models of a treatment, one a seed, the same seeds for every treatment.

    Args:
        name (`str`):
            The treatment.
        num_documents, num_tokens (`int`):
            That it left to train on.
        epochs (`float`):
            Passes over them.
        losses (`list[list[float]]`):
            A list a seed: the mean loss of each held-out sequence, in nats per token.
        cores (`list[float]`), core_errors (`list[float]`):
            A number a seed: CORE (or the mean of the tasks that there were), and its standard error over rows. Empty
            where it was not measured.
    """

    name: str
    num_documents: int
    num_tokens: int
    epochs: float
    losses: list[list[float]]
    cores: list[float] = field(default_factory=list)
    core_errors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class GameReport(SavedReport):
    """
    Treatments of a training set compared by the models they make.

    Args:
        treatments (`list[TreatmentResult]`):
            In the order of the settings.
        core_name (`str`):
            What the tasks' mean is called, such as `"core16_v2"`; empty where it was not measured.
        settings (`dict[str, Any]`):
            Parameters, tokens and seeds of every model.
    """

    treatments: list[TreatmentResult]
    core_name: str
    settings: dict[str, Any]

    file_name: ClassVar[str] = "game_report"
    plot_size: ClassVar[tuple[float, float]] = (6.4, 4.0)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GameReport:
        """The report that `to_dict` gave."""
        treatments = [TreatmentResult(**entry) for entry in values["treatments"]]
        return cls(treatments, values["core_name"], values["settings"])

    def winner(self, measure: str) -> tuple[str, str | None]:
        """
        The best treatment, and the first one that it does not beat by more than the error.

        Intervals are of the differences, at 95 % for all of them together: the level of each is raised by the number
        of treatments that the best is compared with.

        Args:
            measure (`str`):
                `"loss"` or `"core"`.

        Returns:
            `tuple[str, str | None]`: two names; the second is `None` where the first one wins.
        """
        best = self._ranked(measure)[0]
        for other in self._ranked(measure)[1:]:
            mean, half_width = self.difference(measure, best, other)
            if abs(mean) <= half_width:
                return best.name, other.name
        return best.name, None

    def difference(self, measure: str, treatment: TreatmentResult, other: TreatmentResult) -> tuple[float, float]:
        """
        Mean of a treatment less that of another, and half of its interval.

        Two errors that do not depend on each other: of the seed, from the differences of models of one seed; and of
        what is measured on, from the differences of one sequence (of CORE, from both standard errors).
        """
        level = 1 - (1 - CONFIDENCE) / max(1, len(self.treatments) - 1)
        if measure == "loss":
            by_seed = [
                fmean(losses) - fmean(rival_losses)
                for losses, rival_losses in zip(treatment.losses, other.losses, strict=True)
            ]
            means = [_by_sequence(result.losses) for result in (treatment, other)]
            by_sequence = [value - rival_value for value, rival_value in zip(*means, strict=True)]
            return fmean(by_seed), math.hypot(half_width(by_seed, level), half_width(by_sequence, level))
        by_seed = [value - rival_value for value, rival_value in zip(treatment.cores, other.cores, strict=True)]
        of_rows = math.hypot(fmean(treatment.core_errors), fmean(other.core_errors)) * quantile(level, math.inf)
        return fmean(by_seed), math.hypot(half_width(by_seed, level), of_rows)

    def _ranked(self, measure: str) -> list[TreatmentResult]:
        if measure == "loss":
            return sorted(self.treatments, key=lambda result: fmean(map(fmean, result.losses)))
        return sorted(self.treatments, key=lambda result: -fmean(result.cores))

    def to_markdown(self) -> str:
        """The table, and a sentence on each measure."""
        titles = ["treatment", "documents", "tokens", "epochs", "held-out loss"]
        titles += [self.core_name] if self.core_name else []
        rows = [
            [
                result.name, f"{result.num_documents:,}", f"{result.num_tokens:,}", f"{result.epochs:.2f}",
                _shown([fmean(losses) for losses in result.losses]),
                *([_shown(result.cores, fmean(result.core_errors))] if self.core_name else []),
            ]
            for result in self.treatments
        ]  # fmt: skip
        sentences = [self._sentence("loss", "held-out loss, nats per token")]
        sentences += [self._sentence("core", self.core_name)] if self.core_name else []
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return (
            f"{markdown_table(titles, rows, numbers=range(1, len(titles)))}\n\n"
            f"Every model: {settings}. ± is half of a 95 % interval over seeds"
            f"{', and over rows' if self.core_name else ''}.\n\n" + "\n".join(f"- {line}" for line in sentences) + "\n"
        )

    def _sentence(self, measure: str, title: str) -> str:
        if len(self.treatments) < 2:
            return f"{title}: one treatment alone has no rival."
        best_name, rival_name = self.winner(measure)
        by_name = {result.name: result for result in self.treatments}
        rival = by_name[rival_name] if rival_name is not None else self._ranked(measure)[1]
        mean, width = self.difference(measure, by_name[best_name], rival)
        lead = f"{mean:+.4f} ± {width:.4f} against `{rival.name}`"
        if rival_name is None:
            return f"{title}: `{best_name}` wins, {lead}, the next."
        return f"{title}: no winner. `{best_name}` is ahead, but by no more than the error: {lead}."

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks: nothing."""
        return None

    def draw(self, figure: Figure) -> None:
        """Draw the held-out loss of each treatment with its interval over seeds."""
        axes = figure.add_subplot()
        values = [[fmean(losses) for losses in result.losses] for result in self.treatments]
        places = range(len(values))
        axes.errorbar(
            list(map(fmean, values)),
            places,
            xerr=[half_width(means, CONFIDENCE) for means in values],
            fmt="o",
            capsize=3,
        )
        axes.set_yticks(places, [result.name for result in self.treatments])
        axes.invert_yaxis()
        axes.set_xlabel("held-out loss, nats per token (less is better)")


def half_width(values: Sequence[float], level: float) -> float:
    """Half of the interval of a mean, by Student's t."""
    return quantile(level, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def quantile(level: float, degrees: float) -> float:
    """Student's t that a two-sided interval of that level reaches to; the normal one for infinitely many degrees."""
    with naming_extras():
        from scipy.stats import norm, t

    return float(norm.ppf(0.5 + level / 2) if math.isinf(degrees) else t.ppf(0.5 + level / 2, degrees))


def _by_sequence(losses: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds of each sequence's loss."""
    return [fmean(values) for values in zip(*losses, strict=True)]


def _shown(values: Sequence[float], error: float = 0.0) -> str:
    width = math.hypot(half_width(values, CONFIDENCE), error * quantile(CONFIDENCE, math.inf))
    return f"{fmean(values):.4f} ± {width:.4f}"
