"""The rounds on one set of rows: each an ordinary checkpointed run, trained once and remembered in its folder."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value, concatenate_datasets

from hf_ext.data.relabeling import RelabelReport, RRChannel, fold_numbers, noisy_accuracy, predict_column, relabel
from hf_ext.data.relabeling.columns import IGNORED_LABEL, class_column
from hf_ext.data.relabeling.consensus import OUT_OF_FOLD
from hf_ext.trainers.consensus.choice import Strategy
from hf_ext.trainers.consensus.facts import labels_of
from hf_ext.trainers.consensus.report import RoundFolder, RoundReport

logger = logging.getLogger(__name__)

STEP_CAP = 4  # equal steps take at most this many times the first round's epochs: rows seen too often are memorised
PREDICTED = ("pred", "probs", OUT_OF_FOLD)
FOLD_SEED = 0


@dataclass
class Fitted:
    """A trained round: `trainer`, and the steps it took."""

    trainer: Any
    steps: int


@dataclass
class Shared:
    """
    What the rounds of every set of rows have in common.

    Args:
        fit (`Callable`): `(folder, rows, corrected, max_steps, start, evaluate) -> Fitted`: a run, resumed if it can.
        save_model (`Callable`): `(trainer, folder)`.
        channel ([`RRChannel`], *optional*): what the labels came through.
        args ([`ConsensusConfig`]): settings.
        label (`str`): label column.
        class_names (`list[str]`, *optional*): for messages.
        state (`PartialState`): the processes.
    """

    fit: Callable[..., Fitted]
    save_model: Callable[[Any, Path], None]
    channel: RRChannel | None
    args: Any
    label: str
    num_classes: int
    class_names: list[str] | None
    state: Any


class Rounds:
    """
    Rounds on some rows, and their predictions of these and of others that they never see.

    Args:
        shared ([`Shared`]): see there.
        folder (`Path`): where they are kept.
        rows (`Dataset`): with the noisy labels.
        held_out (`Dataset`, *optional*): predicted by every round.
        cross_fit (`int`): 0, or the folds of out-of-fold predictions to relabel by.
        keep (`bool`): whether models and checkpoints stay; else predictions alone do.
    """

    def __init__(
        self,
        shared: Shared,
        folder: Path,
        rows: Dataset,
        *,
        held_out: Dataset | None = None,
        cross_fit: int = 0,
        keep: bool = False,
    ) -> None:
        self.shared, self.folder, self.rows, self.held_out = shared, folder, rows, held_out
        self.cross_fit, self.keep = cross_fit, keep
        self.trainer: Any = None

    def place(self, strategy: Strategy, number: int) -> RoundFolder:
        """A round's folder; all strategies share the first round."""
        slug = strategy.name.replace(", ", "-").replace(" ", "-")
        folder = self.folder if number == 1 else self.folder / slug
        return RoundFolder(folder / f"round-{number}", self.shared.state.is_main_process)

    def run(self, strategy: Strategy, number: int) -> RoundReport:
        """
        The report of a round, trained now unless it was before.

        Raises:
            ValueError: a consensus that leaves no row.
        """
        place = self.place(strategy, number)
        report = place.report
        self.shared.state.wait_for_everyone()  # all have looked before one writes
        return report or self._train(strategy, number, place)

    # --- a round -----------------------------------------------------------------------------------------------------

    def _train(self, strategy: Strategy, number: int, place: RoundFolder) -> RoundReport:
        shared, rows, relabelled, start, steps = self.shared, self.rows, None, None, None
        corrected = number == 1 and shared.args.round_loss == "forward" and shared.channel is not None
        if number > 1:
            rows, relabelled = self._relabelled(strategy, number - 1)
            steps = self._steps(strategy, len(rows))
            if not shared.args.reinit:
                start = self.place(strategy, number - 1).folder / "weights.safetensors"
        fitted = shared.fit(place.folder / "train", rows, corrected, steps, start, self.keep)
        report = self._report(strategy, number, fitted, rows, relabelled)
        report.loss = "forward" if corrected else "ce"
        own = self._predict(fitted.trainer, self.rows, out_of_fold=False)
        self._judge(report, own)
        place.save_predictions("train", own)
        if self.held_out is not None:
            place.save_predictions("held_out", self._predict(fitted.trainer, self.held_out, out_of_fold=True))
        if not shared.args.reinit:
            self._save_weights(fitted.trainer, place.folder / "weights.safetensors")
        if self.keep:
            shared.save_model(fitted.trainer, place.folder / "model")
        shared.state.wait_for_everyone()
        place.finish(report)
        shared.state.wait_for_everyone()
        if not self.keep and shared.state.is_main_process:
            shutil.rmtree(place.folder / "train", ignore_errors=True)
        self.trainer = fitted.trainer if self.keep else None  # one model a fold would stay in memory
        self._log(report)
        return report

    def _relabelled(self, strategy: Strategy, number: int) -> tuple[Dataset, RelabelReport]:
        """The rows for the round after `number`, under new labels."""
        assert strategy.mode is not None
        found = self._predictions(strategy, number)
        kept = [name for name in self.rows.column_names if name not in PREDICTED]
        rows = concatenate_datasets([self.rows.select_columns(kept), found], axis=1)
        soft = "column" if strategy.mode == "bayes_soft" else "weight"
        relabelled, report = relabel(
            rows, strategy.mode, self.shared.channel, label=self.shared.label, soft=soft, return_report=True
        )
        return relabelled.remove_columns(list(PREDICTED)), report

    def _predictions(self, strategy: Strategy, number: int) -> Dataset:
        """Predictions of all rows to relabel by: in-sample, or out of fold by models that did not see the row."""
        if self.cross_fit == 0:
            self.run(strategy, number)
            return self.place(strategy, number).predictions("train")
        folds = fold_of(self.rows, self.cross_fit)
        parts, order = [], []
        for k in range(self.cross_fit):
            part = self.without(folds, k, self.folder / "cross" / str(k))
            part.run(strategy, number)
            parts.append(part.place(strategy, number).predictions("held_out"))
            order.append(np.flatnonzero(folds == k))
        return in_order(parts, order)

    def without(self, folds: np.ndarray, k: int, folder: Path, cross_fit: int = 0) -> Rounds:
        """The same rounds on the rows outside a fold, which they then predict."""
        others, inside = (self.rows.select(np.flatnonzero(mask).tolist()) for mask in (folds != k, folds == k))
        return Rounds(self.shared, folder, others, held_out=inside, cross_fit=cross_fit)

    def _steps(self, strategy: Strategy, rows: int) -> int | None:
        """Optimiser steps of a retraining round; `None`: as the arguments say."""
        args, first = self.shared.args, self.run(strategy, 1).steps
        if rows == len(self.rows):
            return first
        if strategy.budget == "epochs":
            return None if args.max_steps <= 0 else max(1, round(first * rows / len(self.rows)))
        epochs = args.num_train_epochs if args.max_steps <= 0 else first / self.steps_per_epoch(len(self.rows))
        return max(1, min(first, math.ceil(STEP_CAP * epochs * self.steps_per_epoch(rows))))

    def steps_per_epoch(self, rows: int) -> int:
        """Optimiser steps of a pass, as the trainer counts them."""
        args = self.shared.args
        batches = math.ceil(rows / (args.train_batch_size * self.shared.state.num_processes))
        return max(1, math.ceil(batches / args.gradient_accumulation_steps))

    # --- predictions and figures -------------------------------------------------------------------------------------

    def _predict(self, trainer: Any, rows: Dataset, *, out_of_fold: bool) -> Dataset:
        found = predict_column(trainer, rows, label=self.shared.label)
        # The recipe has compared the names; plain numbers go with the predictions that an older version saved.
        feature = List(Value("int64")) if isinstance(found.features["pred"], List) else Value("int64")
        found = found.remove_columns("pred").add_column("pred", found["pred"][:], feature=feature)
        found = found.select_columns(list(PREDICTED))
        if not out_of_fold:
            return found
        flags = [True] * len(found)
        return found.remove_columns(OUT_OF_FOLD).add_column(OUT_OF_FOLD, flags, feature=Value("bool"))

    def _report(
        self, strategy: Strategy, number: int, fitted: Fitted, rows: Dataset, relabelled: RelabelReport | None
    ) -> RoundReport:
        given = labels_of(self.rows, self.shared.label, self.shared.num_classes).flat
        own = np.bincount(given[given != IGNORED_LABEL], minlength=self.shared.num_classes)
        kept = own.tolist() if relabelled is None else relabelled.kept + [0] * (len(own) - len(relabelled.kept))
        names = self.shared.class_names
        vanished = [names[i] if names else str(i) for i, n in enumerate(own) if n and not kept[i]]
        history = fitted.trainer.state.log_history
        report = RoundReport(
            round=number,
            strategy=strategy.name,
            loss="",
            rows=len(rows),
            steps=fitted.steps,
            kept=kept,
            vanished=vanished,
            agreement=0.0,
            precision=None if relabelled is None or strategy.mode != "consensus" else relabelled.precision,
            out_of_fold=bool(relabelled is not None and relabelled.out_of_fold),
            train_loss=next((float(log["loss"]) for log in reversed(history) if "loss" in log), None),
        )
        self._warn_of_thin_classes(report, own)
        return report

    def _warn_of_thin_classes(self, report: RoundReport, given: np.ndarray) -> None:
        least, names = self.shared.args.min_rows_per_class, self.shared.class_names
        thin = [names[i] if names else str(i) for i, n in enumerate(report.kept) if given[i] and 0 < n < least]
        if report.round > 1 and thin:
            logger.warning(
                "Round %d keeps fewer than %d rows of %d classes: %s. Keep more rows (mode='full' or 'bayes_soft'), "
                "or train longer before relabelling.",
                report.round, least, len(thin), ", ".join(thin),
            )  # fmt: skip

    def _judge(self, report: RoundReport, found: Dataset) -> None:
        """Agreement of this round's predictions with all given labels, and what it says of their accuracy."""
        given, own = self.rows.with_format(None)[self.shared.label][:], found["pred"][:]
        one, two = (class_column({"x": values}, "x").flat for values in (given, own))
        kept = one != IGNORED_LABEL
        report.agreement = float((one == two)[kept].mean())
        if self.shared.channel is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the estimate carries the same words as a note
                report.accuracy = noisy_accuracy(given, own, self.shared.channel, out_of_fold=found[OUT_OF_FOLD][:])

    def _save_weights(self, trainer: Any, path: Path) -> None:
        from safetensors.torch import save_model

        from hf_ext.guards.disk import replacing, writing

        if self.shared.state.is_main_process:
            with writing("the weights", path), replacing(path) as temporary:
                save_model(trainer.accelerator.unwrap_model(trainer.model), str(temporary))

    def _log(self, report: RoundReport) -> None:
        if self.shared.state.is_main_process:
            logger.info(
                "%s, round %d (%s): %d rows, %d steps, agreement %.3f, accuracy from noisy labels %s, rows a class "
                "%s, vanished: %s",
                self.folder.name, report.round, report.strategy, report.rows, report.steps, report.agreement,
                report.accuracy, report.kept, ", ".join(report.vanished) or "none",
            )  # fmt: skip


def fold_of(rows: Dataset, folds: int) -> np.ndarray:
    """Fold number of every row, the same on every call."""
    return np.asarray(fold_numbers(rows, folds, seed=FOLD_SEED)["fold"][:])


def in_order(parts: list[Dataset], order: list[np.ndarray]) -> Dataset:
    """Predictions of folds, in the order of the rows they belong to."""
    return concatenate_datasets(parts).select(np.argsort(np.concatenate(order)).tolist())
