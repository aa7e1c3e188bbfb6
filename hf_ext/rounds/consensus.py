"""Consensus: a first round on noisy labels, retraining where it earns its place, and one model at the end."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import ExportableState

from hf_ext.data.provenance import model_hash
from hf_ext.data.relabeling import RelabelReport, RRChannel, relabel
from hf_ext.data.relabeling.choice import Choice, Strategy, choose_strategy
from hf_ext.data.relabeling.class_names import check_class_count
from hf_ext.data.relabeling.columns import IGNORED_LABEL
from hf_ext.data.relabeling.consensus import EmptyConsensusError
from hf_ext.data.relabeling.ranks import refuse_different_ranks
from hf_ext.data.run_settings import begin_run, described, model_settings, settings_of
from hf_ext.guards.disk import replacing, write_whole, writing
from hf_ext.guards.rows import ROW_INDEX
from hf_ext.guards.runs import RunFolder, claims_output
from hf_ext.rounds._rounds import push_result, repo_name, train_from_newest
from hf_ext.rounds.consensus_report import FORMAT_REVISION, ConsensusResult, RoundReport, markdown_of, report_of_round
from hf_ext.rounds.consensus_rows import (
    card_facts,
    channel_of,
    check_eval_rows,
    class_names_of,
    label_column_of,
    labels_of,
    strategies_of,
)
from hf_ext.rounds.parts import (
    PREDICTED,
    Part,
    fold_of,
    in_row_order,
    load_predictions,
    predict_rows,
    save_predictions,
)
from hf_ext.trainers.consensus.config import ConsensusConfig
from hf_ext.trainers.consensus.labels import check_model, checked_rows, class_bound, same_eval_names
from hf_ext.trainers.consensus.trainer import NoisyLabels, noisy_labels_trainer

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)

# Arguments that change no result, beside those of `run_settings.FREE`; the first three count as what they resolve to.
FREE = ("channel_epsilon", "num_classes", "label_column", "min_rows_per_class")
STEP_CAP = 4  # equal steps take at most this many times the first round's epochs: rows seen too often are memorised


class ConsensusRecipe:
    r"""
    Consensus retraining over any stock trainer of classifiers.

    Round 1 learns from the noisy labels, by default with the loss corrected for their channel. Its model predicts the
    training rows; a later round trains afresh, from the same initial weights, on the rows whose prediction is the
    given label (or on other labels, see `ConsensusConfig.mode`). Which of these to do is told from the noisy labels
    alone. Every round is an ordinary run with checkpoints. A run that was killed goes on, in the right round and step,
    when `run` is called again with the same arguments, and ends in the same weights.

    Args:
        trainer_cls (`type[Trainer]`):
            [`~transformers.Trainer`] or a subclass that leaves the loss to it.
        model_init (`Callable`):
            Makes the model, a fresh one with the same weights on every call: the recipe seeds it before.
        args ([`ConsensusConfig`]):
            Settings of every round and of the recipe.
        train_dataset (`Dataset`):
            As the trainer reads it (tokenised), with the noisy labels; the ledger's columns, if there.
        eval_dataset (`Dataset`, `IterableDataset`, or a mapping of names to them, *optional*):
            For the trainers' own evaluation; its labels should be noisy ones too. No choice is made by it.
        channel ([`~hf_ext.data.relabeling.RRChannel`], *optional*):
            What the labels came through. By default of `args.channel_epsilon`, else of the ledger.
        **trainer_kwargs:
            Further arguments of every trainer: `data_collator`, `processing_class`, `callbacks`, `compute_metrics` ...

    | column in | type |
    |---|---|
    | `label` (or `labels`) | int, a noisy class; lists of them and -100 for token classification |
    | `label_dp_epsilon`, `label_dp_channel` | the ledger, optional |
    | `weight` | float, optional: a row's multiplier |

    Raises:
        ValueError: if a channel is needed and none is known, if settings do not go together, or if the classes of the
            evaluation rows, or (in `run`) of the model, are not those of the training rows, in their order.
        RowError: if a training or evaluation label is no class; of a stream of evaluation rows when it is read.
        TypeError: if the training rows are a stream, or the trainer has a loss of its own.
        RuntimeError: if processes that train together hold different rows.

    Relations: [`~hf_ext.data.relabeling.relabel`] is one step of it, for loops of your own;
    [`ForwardCorrectedTrainer`] is its trainer, for rows of unequal channels.

    Reference: Das et al. 2025, *Retraining with Predicted Hard Labels Provably Increases Model Accuracy*
    (arXiv 2406.11206); the corrected loss is Patrini et al. 2017 (arXiv 1609.03683).
    """

    def __init__(
        self,
        trainer_cls: type[Trainer],
        model_init: Callable[[], nn.Module],
        args: ConsensusConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        channel: RRChannel | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"ConsensusRecipe needs a Dataset, got {type(train_dataset).__name__}: rows are predicted and chosen "
                "by number. Materialise the stream; stream.filter(ConsensusFilter()) is one round of your own."
            )
        for name in ("model", "model_init", "optimizers", "compute_loss_func"):
            if trainer_kwargs.get(name) not in (None, (None, None)):
                raise ValueError(
                    f"{name} cannot be passed on: every round has a model, an optimiser and a loss of its own. Use "
                    "model_init, args.optim (or optimizer_cls_and_kwargs), and round_loss."
                )
        host: Any = trainer_cls  # a class can be hashed, whatever mypy thinks of one whose base it skips
        self.trainer_class: Any = noisy_labels_trainer(host)
        self.model_init = model_init
        self.args = args
        self.trainer_kwargs = trainer_kwargs
        self.state = PartialState()
        self.output = Path(args.output_dir)
        self.run_folder = RunFolder(self.output, "consensus.json", processes=self.state)
        self.label = label_column_of(train_dataset, args.label_column)
        self.channel = channel_of(train_dataset, self.label, channel, args)
        stated_classes = self._stated_classes()
        check_class_count(stated_classes, train_dataset.features[self.label], "the recipe", self.label)
        known_classes = class_bound(stated_classes, train_dataset.features, self.label)
        labels = labels_of(train_dataset, self.label, known_classes)
        labelled = labels.flat[labels.flat != IGNORED_LABEL]
        if not len(labelled):
            raise ValueError(f"column {self.label!r} has no label: there is nothing to learn from.")
        self.is_tokens = labels.lengths is not None
        self.num_classes = known_classes or int(labelled.max()) + 1
        class_names = class_names_of(train_dataset, self.label) or map(str, range(self.num_classes))
        self.class_names = list(class_names)[: self.num_classes]  # a ClassLabel may name classes that no row has
        refuse_different_ranks(labels.flat, "the training labels")
        numbers = np.arange(len(train_dataset))
        is_numbered = ROW_INDEX in train_dataset.column_names
        self.train_dataset = train_dataset if is_numbered else train_dataset.add_column(ROW_INDEX, numbers)
        check_eval_rows(train_dataset, eval_dataset, args)
        label_columns = (self.label, *(name for name in ("label", "labels") if name != self.label))
        same_eval_names(train_dataset, eval_dataset, label_columns)
        self.eval_dataset = checked_rows(eval_dataset, known_classes, "evaluation", label_columns, integers=True)
        self.strategies = strategies_of(args, self.channel, self.is_tokens)
        self.initial_weights: str | None = None
        self.facts: dict[str, str] = {}
        self.last_trainer: NoisyLabels | None = None

    # --- what is to be done ------------------------------------------------------------------------------------------

    @claims_output
    def run(self) -> ConsensusResult:
        """
        Train what is not trained yet, and leave the last round's model in `output_dir`; push it if `args` say so.

        Returns:
            [`ConsensusResult`].

        Raises:
            ValueError: if the run was begun before with other settings, rows or model.
            EmptyConsensusError: if a consensus leaves no row to train on.
            PushError: if the Hub did not take the model; it is saved by then.
        """
        self._begin()
        choice = self._choose() if len(self.strategies) > 1 else None
        strategy_name = choice.chosen if choice is not None else self.strategies[0].name
        strategy = next(strategy for strategy in self.strategies if strategy.name == strategy_name)
        self.facts = card_facts(strategy, choice, self.channel, self.is_tokens)
        part = Part("rounds", self.train_dataset, cross_fit=self.args.cross_fit, keeps_models=True)
        numbers = range(1, self._last_round(strategy) + 1)
        reports = [self._round(part, strategy, number) for number in numbers]
        models = [self.output / part.place(strategy, number) / "model" for number in numbers]
        table = markdown_of(reports, choice)
        if self.state.is_main_process:
            write_whole(self.output / "rounds.md", table)
        self.run_folder.publish(models[-1])
        if self.args.push_to_hub:
            self.push_to_hub()
        return ConsensusResult(models, reports, strategy_name, table, choice, self.last_trainer)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> CommitInfo | None:
        """
        Push `output_dir`: model, card and the table of rounds. Checkpoints and predictions of rows stay here.

        Args:
            commit_message (`str`, *optional*), **kwargs:
                As in [`~hf_ext.hub.push.push_folder`].

        Returns:
            `CommitInfo`; `None` on processes other than the main one.

        Raises:
            PushError: if the Hub did not take it.
        """
        commit = None
        if self.state.is_main_process:
            commit = push_result(self.output, self.args, commit_message=commit_message, **kwargs)
        self.state.wait_for_everyone()
        return commit

    def _begin(self) -> None:
        """Refuse to go on with a run that was begun otherwise."""
        set_seed(self.args.seed)
        model = self._initial_model()
        check_model(model, self.train_dataset, self.label, self._stated_classes())
        callbacks = self.trainer_kwargs.get("callbacks") or ()
        settings = {
            "trainer": self.trainer_class.__name__,
            "epsilon": None if self.channel is None else self.channel.epsilon,
            "num_classes": self.num_classes,
            "label": self.label,
            "processes": self.state.num_processes,
            **settings_of(self.args, FREE),
            **{name: described(value) for name, value in self.trainer_kwargs.items() if name != "callbacks"},
            # The host's own callbacks that end a training say by what; others cannot be asked.
            "callbacks": [
                described({"class": type(callback), **callback.state()["args"]})
                for callback in callbacks
                if isinstance(callback, ExportableState)
            ],
            **model_settings(model),
        }
        rows = {"training rows": self.train_dataset, "evaluation rows": self.eval_dataset}
        begin_run(self.run_folder, settings, rows, parts="rounds")

    def _choose(self) -> Choice:
        """Every strategy on every fold's other rows; then the comparison on the rows held out."""
        folds = fold_of(self.train_dataset, self.args.selection_folds)
        all_rows = Part("", self.train_dataset)
        parts = [
            all_rows.without(folds, fold, f"folds/{fold}", self.args.cross_fit)
            for fold in range(self.args.selection_folds)
        ]
        predictions = {}
        for strategy in self.strategies:
            number = self._last_round(strategy)
            try:
                for part in parts:
                    self._round(part, strategy, number)
            except EmptyConsensusError:
                logger.warning("Strategy %r is left out: in a fold its consensus is empty.", strategy.name)
                continue
            held_out = [self._predictions(part, strategy, number, "held_out") for part in parts]
            predictions[strategy.name] = in_row_order(held_out, folds)["pred"][:]
        assert self.channel is not None, "strategies_of leaves one strategy without a channel"
        labels = self.train_dataset.with_format(None)[self.label][:]
        choice = choose_strategy(labels, predictions, self.channel)
        if self.state.is_main_process:
            logger.info("Chosen on noisy labels: %s\n%s", choice.chosen, choice.to_markdown())
        return choice

    def _last_round(self, strategy: Strategy) -> int:
        return 1 if strategy.mode is None else 1 + self.args.rounds

    def _stated_classes(self) -> int | None:
        return self.channel.num_classes if self.channel is not None else self.args.num_classes

    # --- a round -----------------------------------------------------------------------------------------------------

    def _round(self, part: Part, strategy: Strategy, number: int) -> RoundReport:
        """The report of a round, which is trained now unless it was before."""
        record = self.run_folder.results(f"{part.place(strategy, number)}/round")
        self.state.wait_for_everyone()  # all have looked before one writes
        return self._train_round(part, strategy, number) if record is None else RoundReport.from_dict(record["report"])

    def _train_round(self, part: Part, strategy: Strategy, number: int) -> RoundReport:
        rows = part.rows
        relabelled = None
        steps = None
        start = None
        place = part.place(strategy, number)
        folder = self.output / place
        is_corrected = number == 1 and self.args.round_loss == "forward" and self.channel is not None
        if number > 1:
            rows, relabelled = self._relabelled_rows(part, strategy, number - 1)
            steps = self._max_steps(part, strategy, len(rows))
            if not self.args.reinit:
                start = self.output / part.place(strategy, number - 1) / "weights.safetensors"
        trainer = self._trainer(folder / "train", rows, is_corrected, steps, start, evaluates=part.keeps_models)
        train_from_newest(trainer)
        predictions = predict_rows(trainer, part.rows, self.label, out_of_fold=False)
        report = report_of_round(
            number,
            strategy,
            "forward" if is_corrected else "ce",
            trainer,
            len(rows),
            relabelled,
            part.rows.with_format(None)[self.label][:],
            predictions,
            self.channel,
            self.class_names,
            self.args.min_rows_per_class,
        )
        held_out = None
        if part.held_out is not None:
            held_out = predict_rows(trainer, part.held_out, self.label, out_of_fold=True)
        if self.state.is_main_process:
            save_predictions(folder, "train", predictions)
            if held_out is not None:
                save_predictions(folder, "held_out", held_out)
            if not self.args.reinit:
                _save_weights(trainer, folder / "weights.safetensors")
        if part.keeps_models:
            self._save_model(trainer, folder / "model")
        self.state.wait_for_everyone()
        self.run_folder.mark_done(f"{place}/round", {"format_revision": FORMAT_REVISION, "report": report.to_dict()})
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            logger.info("%s, %s", part.name, report)
            if not part.keeps_models:
                shutil.rmtree(folder / "train", ignore_errors=True)
        self.last_trainer = trainer if part.keeps_models else None  # one model a fold would stay in memory
        return report

    def _relabelled_rows(self, part: Part, strategy: Strategy, number: int) -> tuple[Dataset, RelabelReport]:
        """
        The rows for the round after `number`, under new labels.

        Raises:
            EmptyConsensusError: if no prediction is the given label.
        """
        assert strategy.mode is not None, "a strategy without a mode has one round"
        inputs = [name for name in part.rows.column_names if name not in PREDICTED]
        predictions = self._predictions_to_relabel_by(part, strategy, number)
        rows = concatenate_datasets([part.rows.select_columns(inputs), predictions], axis=1)
        soft = "column" if strategy.mode == "bayes_soft" else "weight"
        relabelled, report = relabel(
            rows, strategy.mode, self.channel, label=self.label, soft=soft, return_report=True
        )
        return relabelled.remove_columns(list(PREDICTED)), report

    def _predictions_to_relabel_by(self, part: Part, strategy: Strategy, number: int) -> Dataset:
        """Predictions of all rows: in-sample, or out of fold by models that did not see the row."""
        if part.cross_fit == 0:
            self._round(part, strategy, number)
            return self._predictions(part, strategy, number, "train")
        folds = fold_of(part.rows, part.cross_fit)
        held_out = []
        for fold in range(part.cross_fit):
            others = part.without(folds, fold, f"{part.name}/cross/{fold}")
            self._round(others, strategy, number)
            held_out.append(self._predictions(others, strategy, number, "held_out"))
        return in_row_order(held_out, folds)

    def _predictions(self, part: Part, strategy: Strategy, number: int, name: str) -> Dataset:
        return load_predictions(self.output / part.place(strategy, number), name)

    def _max_steps(self, part: Part, strategy: Strategy, num_rows: int) -> int | None:
        """Optimiser steps of a retraining round; `None`: as the arguments say."""
        args = self.args
        first_steps = self._round(part, strategy, 1).steps
        if num_rows == len(part.rows):
            return first_steps
        if strategy.budget == "epochs":
            return None if args.max_steps <= 0 else max(1, round(first_steps * num_rows / len(part.rows)))
        epochs = args.num_train_epochs
        if args.max_steps > 0:
            epochs = first_steps / self._steps_per_epoch(len(part.rows))
        return max(1, min(first_steps, math.ceil(STEP_CAP * epochs * self._steps_per_epoch(num_rows))))

    def _steps_per_epoch(self, num_rows: int) -> int:
        """Optimiser steps of a pass, as the trainer counts them."""
        batches = math.ceil(num_rows / (self.args.train_batch_size * self.state.num_processes))
        return max(1, math.ceil(batches / self.args.gradient_accumulation_steps))

    # --- a training --------------------------------------------------------------------------------------------------

    def _trainer(
        self, folder: Path, rows: Dataset, is_corrected: bool, steps: int | None, start: Path | None, evaluates: bool
    ) -> NoisyLabels:
        """The trainer of an ordinary run in `folder`."""
        args = copy.copy(self.args)
        args.output_dir = str(folder)
        args.push_to_hub = False
        args.max_steps = args.max_steps if steps is None else steps
        if not evaluates or self.eval_dataset is None:
            args.eval_strategy = "no"
            args.load_best_model_at_end = False
        set_seed(args.seed)  # a head is drawn before the trainer seeds anything
        model = self._initial_model()
        if start is not None:
            from safetensors.torch import load_model

            load_model(model, str(start))
        set_seed(args.seed)
        trainer = self.trainer_class(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=self.eval_dataset if evaluates else None,
            channel=self.channel if is_corrected else None,
            **self.trainer_kwargs,
        )
        trainer.card_facts_of_run = self.facts
        trainer.card_name = repo_name(self.args)
        return trainer

    def _initial_model(self) -> nn.Module:
        """A model with the initial weights, which must be the same on every call."""
        model = self.model_init()
        weights = model_hash(model)
        self.initial_weights = self.initial_weights or weights
        if weights != self.initial_weights:
            raise ValueError(
                "model_init() gave other weights than before: the round before has trained the same object, or the "
                "weights are drawn from a source the recipe does not seed. Return a fresh model, such as "
                "lambda: AutoModelForSequenceClassification.from_pretrained(name, num_labels=...)."
            )
        return model

    def _save_model(self, trainer: NoisyLabels, folder: Path) -> None:
        """The model as a stock folder, with its card."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PreTrainedModel) or not hasattr(model, "save_pretrained"):
            trainer.save_model(str(folder), _internal_call=True)
        elif (
            self.state.is_main_process
        ):  # such as SentenceHead, which transformers' Trainer would save as bare weights
            shutil.rmtree(folder, ignore_errors=True)
            with writing("the model", folder), replacing(folder) as temporary:
                model.save_pretrained(str(temporary))
            trainer.write_card(str(folder))


def _save_weights(trainer: NoisyLabels, path: Path) -> None:
    from safetensors.torch import save_model

    with writing("the weights", path), replacing(path) as temporary:
        save_model(trainer.accelerator.unwrap_model(trainer.model), str(temporary))
