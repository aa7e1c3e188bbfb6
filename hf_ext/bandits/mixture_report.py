"""How the shares of a mixture went: table and plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from hf_ext.guards.reports import SavedReport, markdown_table, name_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MixtureReport"]


@dataclass(frozen=True)
class MixtureReport(SavedReport):
    """
    Results of a training on a [`SideObservationMixture`].

    Attributes:
        reward (`str`):
            What the sources were judged by.
        rows (`dict[str, int]`):
            Prepared rows of each source.
        readings (`dict[str, float]`):
            How often each source was read through.
        shares, overall_shares (`dict[str, float]`):
            Of the micro-batches trained lately, and of all.
        means, standard_errors (`dict[str, float]`):
            Estimated rewards; none where the sources were not looked at twice each.
        steps (`list[float]`):
            Optimiser steps in the middle of some 50 parts of the training.
        curve (`dict[str, list[float]]`):
            Share of each source in each part.
    """

    reward: str
    rows: dict[str, int]
    readings: dict[str, float]
    shares: dict[str, float]
    overall_shares: dict[str, float]
    means: dict[str, float]
    standard_errors: dict[str, float]
    steps: list[float]
    curve: dict[str, list[float]]

    file_name = "mixture_shares"
    plot_size = (7.0, 3.6)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The report that `to_dict` gave."""
        return cls(**values)

    def to_markdown(self) -> str:
        """A row a source."""

        def reward_of(name: str) -> str:
            return f"{self.means[name]:.3g} ± {self.standard_errors[name]:.2g}" if name in self.means else ""

        rows = [
            (
                name,
                f"{size:,}",
                f"{self.readings[name]:.2f}",
                f"{self.overall_shares[name]:.1%}",
                f"{self.shares[name]:.1%}",
                reward_of(name),
            )
            for name, size in self.rows.items()
        ]
        titles = ("source", "rows", "times read", "share in all", "share at the end", f"mean of {self.reward}")
        return f"# Shares of the sources\n\n{markdown_table(titles, rows, numbers=(1, 2, 3, 4, 5))}\n"

    def missing_for_plot(self) -> str | None:
        """A step that was trained."""
        return None if self.steps else "a training of at least one step"

    def draw(self, figure: Figure) -> None:
        """The shares over the steps, one on top of the other."""
        axes = figure.subplots()
        labels = [f"source {number}" for number in range(len(self.curve))]
        axes.stackplot(self.steps, list(self.curve.values()), labels=labels, step="mid")
        axes.set(xlabel="optimiser step", ylabel="share of the micro-batches", ylim=(0, 1))
        axes.margins(x=0)
        name_legend(figure.legend(loc="outside right upper", frameon=False), self.curve)
