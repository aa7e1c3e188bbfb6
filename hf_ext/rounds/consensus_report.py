"""What a run of the recipe did: a report a round, the choice, and where the models are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from hf_ext.data.relabeling import Estimate, RelabelReport, RRChannel, noisy_accuracy
from hf_ext.data.relabeling.choice import Choice, Strategy
from hf_ext.data.relabeling.columns import IGNORED_LABEL, class_column
from hf_ext.data.relabeling.consensus import OUT_OF_FOLD

if TYPE_CHECKING:
    from hf_ext.trainers.consensus.trainer import NoisyLabels

logger = logging.getLogger(__name__)

FORMAT_REVISION = 1  # of what is written of a finished round


@dataclass
class RoundReport:
    """
    Figures of a round.

    Args:
        round (`int`):
            From 1, the round on the noisy labels.
        strategy (`str`):
            Name of the strategy it belongs to.
        loss (`str`):
            `"forward"` or `"ce"`.
        rows (`int`):
            Rows it was trained on.
        steps (`int`):
            Optimiser steps.
        kept (`list[int]`):
            Labels of each class it was trained on.
        vanished (`list[str]`):
            Classes that the noisy labels have and these do not.
        agreement (`float`):
            Share of the given labels of *all* rows that this round's model predicts.
        accuracy ([`Estimate`], *optional*):
            Of these predictions, read off the noisy labels; too high where they are in-sample, and then says so.
        precision ([`Estimate`], *optional*):
            Share of right labels among the rows that a consensus round was trained on.
        out_of_fold (`bool`):
            Whether the predictions that this round was relabelled by were out of fold.
        train_loss (`float`, *optional*):
            As the trainer reports it, nats per label.
    """

    round: int
    strategy: str
    loss: str
    rows: int
    steps: int
    kept: list[int]
    vanished: list[str]
    agreement: float
    accuracy: Estimate | None = None
    precision: Estimate | None = None
    out_of_fold: bool = False
    train_loss: float | None = None

    def __str__(self) -> str:
        return (
            f"round {self.round} ({self.strategy}): {self.rows} rows, {self.steps} steps, agreement "
            f"{self.agreement:.3f}, accuracy from noisy labels {self.accuracy}, rows a class {self.kept}, vanished: "
            f"{', '.join(self.vanished) or 'none'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RoundReport:
        """What [`to_dict`] gave, after JSON."""
        estimates = {name: values[name] and _estimate(values[name]) for name in ("accuracy", "precision")}
        return cls(**{**values, **estimates})


def _estimate(fields: dict[str, Any]) -> Estimate:
    return Estimate(**{**fields, "notes": tuple(fields["notes"])})


@dataclass
class ConsensusResult:
    """
    What [`ConsensusRecipe.run`] gives.

    Args:
        models (`list[Path]`):
            Folder of each round's model; the last one's is also in `output_dir`.
        rounds (`list[RoundReport]`):
            One a round.
        chosen (`str`):
            Name of the strategy: `round 1`, `consensus` ...
        report (`str`):
            Markdown: the choice and the rounds, as in `rounds.md`.
        choice ([`Choice`], *optional*):
            The figures behind it, where it was made on noisy labels.
        trainer (`Trainer`, *optional*):
            Of the last round, if this call trained it.
    """

    models: list[Path]
    rounds: list[RoundReport]
    chosen: str
    report: str
    choice: Choice | None = None
    trainer: NoisyLabels | None = field(default=None, repr=False)


def markdown_of(rounds: Sequence[RoundReport], choice: Choice | None) -> str:
    """The choice and one line a round."""
    lines = ["# Rounds", ""]
    if choice is not None:
        lines += [
            "Accuracy is that of out-of-fold predictions, read off the noisy labels. Of the strategies within one"
        ]
        lines += [f"standard error of the best ({choice.best}) the simplest was taken.", "", choice.to_markdown(), ""]
    lines += [
        "| round | labels | loss | rows | steps | agreement | accuracy, from noisy labels | right labels | vanished |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in rounds:
        labels = "noisy" if report.round == 1 else report.strategy
        cells = [report.round, labels, report.loss, f"{report.rows:,}", f"{report.steps:,}", f"{report.agreement:.3f}"]
        cells += [report.accuracy or "-", report.precision or "-", ", ".join(report.vanished) or "none"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Labels of each class:", "", "| round | " + " | ".join(map(str, range(len(rounds[0].kept)))) + " |"]
    lines.append("|---" * (len(rounds[0].kept) + 1) + "|")
    lines += [f"| {report.round} | " + " | ".join(f"{count:,}" for count in report.kept) + " |" for report in rounds]
    return "\n".join(lines) + "\n"


def report_of_round(
    number: int,
    strategy: Strategy,
    loss: str,
    trainer: NoisyLabels,
    num_rows: int,
    relabelled: RelabelReport | None,
    given_labels: Sequence[Any],
    predictions: Dataset,
    channel: RRChannel | None,
    class_names: Sequence[str],
    min_rows_per_class: int,
) -> RoundReport:
    """
    Figures of a round that was trained just now; a retraining round that keeps few labels of a class is warned of.

    Args:
        number (`int`), strategy ([`Strategy`]), loss (`str`), num_rows (`int`):
            As they stand in the report.
        trainer ([`NoisyLabels`]):
            After its training.
        relabelled ([`RelabelReport`], *optional*):
            Of the labels it was trained on, where they are not the given ones.
        given_labels (`Sequence`), predictions (`Dataset`):
            Of all rows, those too that the round was not trained on.
        channel ([`RRChannel`], *optional*):
            What the given labels came through.
        class_names (`Sequence[str]`):
            One a class.
        min_rows_per_class (`int`):
            Labels of a class that are enough.
    """
    labels = class_column({"label": given_labels}, "label").flat
    predicted = class_column({"pred": predictions["pred"][:]}, "pred").flat
    labelled = labels != IGNORED_LABEL
    given_counts = np.bincount(labels[labelled], minlength=len(class_names)).tolist()
    trained_counts = given_counts
    if relabelled is not None:  # its list ends at the last class that it saw
        trained_counts = relabelled.kept + [0] * (len(class_names) - len(relabelled.kept))
    thin = [
        class_names[i] for i, count in enumerate(trained_counts) if given_counts[i] and 0 < count < min_rows_per_class
    ]
    if relabelled is not None and thin:
        logger.warning(
            "Round %d keeps fewer than %d rows of %d classes: %s. Keep more rows (mode='full' or 'bayes_soft'), or "
            "train longer before relabelling.",
            number, min_rows_per_class, len(thin), ", ".join(thin),
        )  # fmt: skip
    accuracy = None
    if channel is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the estimate carries the same words as a note
            flags = predictions[OUT_OF_FOLD][:]
            accuracy = noisy_accuracy(given_labels, predictions["pred"][:], channel, out_of_fold=flags)
    return RoundReport(
        round=number,
        strategy=strategy.name,
        loss=loss,
        rows=num_rows,
        steps=trainer.state.global_step,
        kept=trained_counts,
        vanished=[class_names[i] for i, count in enumerate(given_counts) if count and not trained_counts[i]],
        agreement=float((labels == predicted)[labelled].mean()),
        accuracy=accuracy,
        precision=relabelled.precision if relabelled is not None and strategy.mode == "consensus" else None,
        out_of_fold=bool(relabelled is not None and relabelled.out_of_fold),
        train_loss=next((float(log["loss"]) for log in reversed(trainer.state.log_history) if "loss" in log), None),
    )
