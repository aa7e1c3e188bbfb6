"""Which way of retraining to take, told from noisy labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_ext.data.relabeling.accuracy import accuracy_difference, noisy_accuracy
from hf_ext.data.relabeling.channel import RRChannel
from hf_ext.data.relabeling.estimates import Estimate

ROUND_1 = "round 1"


@dataclass(frozen=True)
class Strategy:
    """
    What follows the first round.

    Args:
        mode (`str`, *optional*):
            Of [`~hf_ext.data.relabeling.relabel`]; `None`: nothing, the first round's model is kept.
        budget (`str`, *optional*, defaults to `"steps"`):
            Of a retraining round on fewer rows: as many optimiser `"steps"` as the first round, or `"epochs"`.
    """

    mode: str | None = None
    budget: str = "steps"

    @property
    def name(self) -> str:
        """Its name in tables: `round 1`, `consensus`, `consensus, equal epochs` ..."""
        if self.mode is None:
            return ROUND_1
        return self.mode + (", equal epochs" if self.mode == "consensus" and self.budget == "epochs" else "")


FIRST_ROUND = Strategy()
# The simplest first: no retraining; retraining on fewer rows and fewer steps, whose labels are given ones; on labels
# that nobody gave; on weighted ones. Only consensus has fewer rows, so that only there the budget matters.
STRATEGIES = (
    FIRST_ROUND,
    Strategy("consensus", "epochs"),
    Strategy("consensus", "steps"),
    Strategy("full"),
    Strategy("bayes_soft"),
)


@dataclass(frozen=True)
class Choice:
    """
    What was chosen, and the figures behind it.

    Args:
        chosen (`str`):
            Name of the simplest strategy within one standard error of the best.
        best (`str`):
            Name of the one with the highest accuracy as read off the noisy labels.
        accuracy (`dict[str, Estimate]`):
            Of each strategy, simplest first.
        behind (`dict[str, Estimate]`):
            How far each is behind the best: the paired difference, with its standard error.
    """

    chosen: str
    best: str
    accuracy: dict[str, Estimate]
    behind: dict[str, Estimate]

    def to_markdown(self) -> str:
        """A table, one line a strategy; the chosen one is bold."""
        lines = ["| strategy | accuracy, from noisy labels | behind the best | standard error |", "|---|---|---|---|"]
        for name, estimate in self.accuracy.items():
            title = f"**{name}**" if name == self.chosen else name
            gap = self.behind[name]
            lines.append(f"| {title} | {estimate} | {gap.value:.3f} | {gap.se:.3f} |")
        return "\n".join(lines) + "\n"


def choose_strategy(labels: Any, predictions: Mapping[str, Any], channel: RRChannel) -> Choice:
    """
    The simplest strategy that is within one standard error of the best, by accuracy read off noisy labels.

    All strategies are scored on the same rows, so that the error is that of paired differences: rows on which two of
    them agree cancel.

    Args:
        labels (array of shape `(rows,)`, or a list of lists for tokens):
            Given labels, as they came out of the channel.
        predictions (`Mapping`):
            Strategy to its predictions of these rows, as `labels`; the simplest strategy first. They must not depend
            on the labels' noise: out of fold or held out.
        channel ([`~hf_ext.data.relabeling.RRChannel`]):
            What the labels passed through.

    Returns:
        [`Choice`].

    Raises:
        ValueError: if there is no strategy, or for what [`~hf_ext.data.relabeling.noisy_accuracy`] refuses.

    Reference: the one-standard-error rule of Breiman et al. 1984, *Classification and Regression Trees*, section 3.4,
    with the error of the difference in place of the minimum's.
    """
    if not predictions:
        raise ValueError("there is no strategy to choose from.")
    accuracy = {name: noisy_accuracy(labels, classes, channel) for name, classes in predictions.items()}
    best = max(accuracy, key=lambda name: accuracy[name].value)  # of equals the simplest
    behind = {
        name: accuracy_difference(labels, predictions[best], classes, channel) for name, classes in predictions.items()
    }
    chosen = next(name for name, gap in behind.items() if name == best or gap.value <= gap.se)
    return Choice(chosen, best, accuracy, behind)


def candidates(mode: str, budget: str, judge: bool) -> Sequence[Strategy]:
    """
    The strategies that a configuration leaves to choose from, simplest first.

    Args:
        mode (`str`), budget (`str`):
            A mode or a budget, or `"auto"`.
        judge (`bool`):
            Whether the choice is by accuracy from noisy labels. If not there is one strategy.
    """
    if not judge:
        return (Strategy(mode, "steps" if budget == "auto" else budget),)
    if mode in ("auto", "consensus"):
        return tuple(
            strategy
            for strategy in STRATEGIES
            if strategy.mode is None
            or (
                mode in ("auto", strategy.mode)
                and (strategy.mode != "consensus" or budget in ("auto", strategy.budget))
            )
        )
    return FIRST_ROUND, Strategy(mode)
