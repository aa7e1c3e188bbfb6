"""The curve of a pretraining: loss by tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hf_ext.guards.reports import SavedReport, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ROWS = 20  # of the table: a run may log ten thousand lines


@dataclass(frozen=True)
class TrainingCurve(SavedReport):
    """
    Loss of a pretraining by the tokens seen.

    Args:
        tokens_per_step (`int`):
            Tokens of an optimiser step.
        steps (`list[int]`), losses (`list[float]`):
            Of the log lines: next-token loss in nats per token, mean since the line before.
        eval_steps (`list[int]`), eval_losses (`list[float]`):
            Of the evaluations, in nats per token.
    """

    tokens_per_step: int
    steps: list[int]
    losses: list[float]
    eval_steps: list[int]
    eval_losses: list[float]

    file_name: ClassVar[str] = "curve"
    plot_size: ClassVar[tuple[float, float]] = (6.4, 4.0)

    @classmethod
    def of_log(cls, log_history: Iterable[Mapping[str, Any]], tokens_per_step: int) -> TrainingCurve:
        """
        The curve in a trainer's log.

        Args:
            log_history (`Iterable[Mapping[str, Any]]`):
                `trainer.state.log_history` of a [`PretrainingTrainer`].
            tokens_per_step (`int`):
                Of its arguments.
        """
        lines = list(log_history)
        training = [line for line in lines if "loss/next_token" in line]
        evaluations = [line for line in lines if "eval_loss" in line]
        return cls(
            tokens_per_step,
            [line["step"] for line in training],
            [line["loss/next_token"] for line in training],
            [line["step"] for line in evaluations],
            [line["eval_loss"] for line in evaluations],
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingCurve:
        """The curve that `to_dict` gave."""
        return cls(**values)

    def to_markdown(self) -> str:
        """At most 20 points of the curve, the last one among them, as a table."""
        every = max(1, -(-len(self.steps) // _MOST_ROWS))
        points = list(zip(self.steps, self.losses, strict=True))[::-1][::every][::-1]
        held_out = dict(zip(self.eval_steps, self.eval_losses, strict=True))
        rows = [
            (f"{step:,}", f"{step * self.tokens_per_step:,}", f"{loss:.4f}", _number(held_out.get(step)))
            for step, loss in points
        ]
        titles = ["step", "tokens", "training loss", "held-out loss"]
        return f"{markdown_table(titles, rows, numbers=range(4))}\n\nNats per token.\n"

    def missing_for_plot(self) -> str | None:
        """What a plot needs and the curve lacks."""
        return None if len(self.steps) > 1 else "two log lines"

    def draw(self, figure: Figure) -> None:
        """Draw both losses by tokens."""
        axes = figure.add_subplot()
        axes.plot([step * self.tokens_per_step for step in self.steps], self.losses, lw=1.2, label="training")
        if self.eval_steps:
            tokens = [step * self.tokens_per_step for step in self.eval_steps]
            axes.plot(tokens, self.eval_losses, "o-", ms=4, lw=1.2, label="held out")
            axes.legend(frameon=False)
        axes.set_xlabel("tokens")
        axes.set_ylabel("loss, nats per token")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
