"""What a run of the recipe did: a report a round, the choice, and where the models are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_ext.data.relabeling import Estimate
from hf_ext.guards.disk import write_whole
from hf_ext.trainers.consensus.choice import Choice

FORMAT_REVISION = 1
MANIFEST = "round.json"


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RoundReport:
        """What [`to_dict`] gave, after JSON."""
        estimates = {name: values[name] and estimate_of(values[name]) for name in ("accuracy", "precision")}
        return cls(**{**values, **estimates})


def estimate_of(values: dict[str, Any]) -> Estimate:
    """An [`Estimate`] from its fields."""
    return Estimate(**{**values, "notes": tuple(values["notes"])})


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
    trainer: Any = field(default=None, repr=False)


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
    for one in rounds:
        labels = "noisy" if one.round == 1 else one.strategy
        cells = [one.round, labels, one.loss, f"{one.rows:,}", f"{one.steps:,}", f"{one.agreement:.3f}"]
        cells += [one.accuracy or "-", one.precision or "-", ", ".join(one.vanished) or "none"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Labels of each class:", "", "| round | " + " | ".join(map(str, range(len(rounds[0].kept)))) + " |"]
    lines.append("|---" * (len(rounds[0].kept) + 1) + "|")
    lines += [f"| {one.round} | " + " | ".join(f"{n:,}" for n in one.kept) + " |" for one in rounds]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class RoundFolder:
    """
    A round's place on disk: `train/` (checkpoints), `predictions-*/`, `model/`, and `round.json`, written last.

    Args:
        folder (`Path`): the place.
        main (`bool`): whether this process writes.
    """

    folder: Path
    main: bool = True

    @property
    def report(self) -> RoundReport | None:
        """Of a finished round."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return None
        return RoundReport.from_dict(json.loads(path.read_text(encoding="utf-8"))["report"])

    def finish(self, report: RoundReport) -> None:
        """Write down that the round is over: everything else of it is on the disk by now."""
        if self.main:
            content = {"format_revision": FORMAT_REVISION, "report": report.to_dict()}
            write_whole(self.folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def save_predictions(self, name: str, columns: Any) -> None:
        """Keep predicted columns (`Dataset`), whole or not at all."""
        import shutil

        from hf_ext.guards.disk import replacing, writing

        target = self.folder / f"predictions-{name}"
        if self.main:
            shutil.rmtree(target, ignore_errors=True)  # left by a killed run
            with writing("the predictions", target), replacing(target) as temporary:
                columns.save_to_disk(temporary)

    def predictions(self, name: str) -> Any:
        """What was kept under that name."""
        from datasets import load_from_disk

        return load_from_disk(str(self.folder / f"predictions-{name}"))
