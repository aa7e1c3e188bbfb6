"""The recipe: a first round on noisy labels, retraining where it earns its place, and one model at the end."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import ExportableState

from hf_ext.data.provenance import model_hash
from hf_ext.data.relabeling import RRChannel
from hf_ext.data.relabeling.class_names import check_class_count
from hf_ext.data.relabeling.columns import IGNORED_LABEL
from hf_ext.data.relabeling.ranks import refuse_different_ranks
from hf_ext.data.run_settings import claim_run, described, model_settings, settings_of
from hf_ext.guards.checkpoints import newest_whole
from hf_ext.guards.disk import replacing, write_whole, writing
from hf_ext.guards.rows import ROW_INDEX
from hf_ext.guards.runs import claims_output
from hf_ext.hub.push import push_folder
from hf_ext.trainers.consensus.choice import Choice, Strategy, candidates, choose_strategy
from hf_ext.trainers.consensus.config import ConsensusConfig
from hf_ext.trainers.consensus.facts import (
    channel_of,
    check_eval_rows,
    class_names_of,
    label_column_of,
    labels_of,
)
from hf_ext.trainers.consensus.labels import check_model, checked_rows, class_bound, same_eval_names
from hf_ext.trainers.consensus.report import ConsensusResult, RoundReport, markdown_of
from hf_ext.trainers.consensus.rounds import Fitted, Rounds, Shared, fold_of, in_order
from hf_ext.trainers.consensus.trainer import NoisyLabels, noisy_labels_trainer

logger = logging.getLogger(__name__)

MANIFEST, TABLE = "consensus.json", "rounds.md"
# Arguments that change no result, beside those of `run_settings.FREE`; the first three count as what they resolve to.
FREE = ("channel_epsilon", "num_classes", "label_column", "min_rows_per_class")


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
        ValueError: no channel where one is needed, or settings that do not go together; evaluation rows, or (in `run`)
            a model, whose classes are others than those of the training rows, or in another order.
        RowError: a training or evaluation label that is no class; of a stream of evaluation rows when it is read.
        TypeError: a stream, or a trainer with a loss of its own.
        RuntimeError: processes that train together hold different rows.

    Relations: [`~hf_ext.data.relabeling.relabel`] is one step of it, for loops of your own;
    [`ForwardCorrectedTrainer`] is its trainer, for rows of unequal channels.

    Reference: Das et al. 2025, *Retraining with Predicted Hard Labels Provably Increases Model Accuracy*
    (arXiv 2406.11206); the corrected loss is Patrini et al. 2017 (arXiv 1609.03683).
    """

    def __init__(
        self,
        trainer_cls: type[Trainer],
        model_init: Callable[[], Any],
        args: ConsensusConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | IterableDataset | dict[str, Any] | None = None,
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
        self.model_init, self.args, self.trainer_kwargs = model_init, args, trainer_kwargs
        self.state = PartialState()
        self.output = Path(args.output_dir)
        self.label = label_column_of(train_dataset, args.label_column)
        self.channel = channel_of(train_dataset, self.label, channel, args)
        self.class_names = class_names_of(train_dataset, self.label)
        check_class_count(self._classes_or_none(), train_dataset.features[self.label], "the recipe", self.label)
        self.known_classes = class_bound(self._classes_or_none(), train_dataset.features, self.label)
        columns = labels_of(train_dataset, self.label, self.known_classes)
        self.is_tokens = columns.lengths is not None
        labelled = columns.flat[columns.flat != IGNORED_LABEL]
        if not len(labelled):
            raise ValueError(f"column {self.label!r} has no label: there is nothing to learn from.")
        self.num_classes = self.known_classes or int(labelled.max()) + 1
        refuse_different_ranks(columns.flat, "the training labels")
        self.train_dataset = self._numbered(train_dataset)
        check_eval_rows(train_dataset, eval_dataset, args)
        label_columns = (self.label, *(name for name in ("label", "labels") if name != self.label))
        same_eval_names(train_dataset, eval_dataset, label_columns)
        self.eval_dataset = checked_rows(eval_dataset, self.known_classes, "evaluation", label_columns, integers=True)
        self.strategies = self._strategies()
        self.initial_weights: str | None = None
        self.facts: dict[str, Any] = {}

    # --- what is to be done ------------------------------------------------------------------------------------------

    @claims_output
    def run(self) -> ConsensusResult:
        """
        Train what is not trained yet, and leave the last round's model in `output_dir`; push it if `args` say so.

        Returns:
            [`ConsensusResult`].

        Raises:
            ValueError: begun before with other settings, rows or model; or a consensus that leaves no row.
            PushError: the Hub did not take the model; it is saved by then.
        """
        self._open()
        choice = self._choose() if len(self.strategies) > 1 else None
        name = choice.chosen if choice is not None else self.strategies[0].name
        strategy = next(one for one in self.strategies if one.name == name)
        self.facts = self._facts(strategy, choice)
        rounds = Rounds(
            self._shared(), self.output / "rounds", self.train_dataset, cross_fit=self.args.cross_fit, keep=True
        )
        last = 1 if strategy.mode is None else 1 + self.args.rounds
        reports = [rounds.run(strategy, number) for number in range(1, last + 1)]
        folders = [rounds.place(strategy, number).folder / "model" for number in range(1, last + 1)]
        report = self._write_table(reports, choice)
        self._publish(folders[-1])
        if self.args.push_to_hub:
            self.push_to_hub()
        return ConsensusResult(folders, reports, name, report, choice, rounds.trainer)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> Any:
        """
        Push `output_dir`: model, card and the table of rounds. Checkpoints and predictions of rows stay here.

        Args:
            commit_message (`str`, *optional*), **kwargs:
                As in [`~hf_ext.hub.push.push_folder`].

        Returns:
            `CommitInfo`; `None` on processes other than the main one.

        Raises:
            PushError: the Hub did not take it.
        """
        result = None
        if self.state.is_main_process:
            kwargs = {"token": self.args.hub_token, "private": self.args.hub_private_repo} | kwargs
            kwargs = {"merge_card": True, "license": self.args.model_license} | kwargs
            repo = self.args.hub_model_id or self.output.absolute().name
            result = push_folder(self.output, repo, commit_message=commit_message, **kwargs)
        self.state.wait_for_everyone()
        return result

    def _choose(self) -> Choice:
        """Every strategy on every fold's other rows; then the comparison on the rows held out."""
        folds = fold_of(self.train_dataset, self.args.selection_folds)
        order = [np.flatnonzero(folds == k) for k in range(self.args.selection_folds)]
        whole = Rounds(self._shared(), self.output, self.train_dataset)
        places = [self.output / "folds" / str(k) for k in range(len(order))]
        parts = [whole.without(folds, k, place, self.args.cross_fit) for k, place in enumerate(places)]
        predictions: dict[str, Any] = {}
        for strategy in self.strategies:
            number = 1 if strategy.mode is None else 1 + self.args.rounds
            try:
                for part in parts:
                    part.run(strategy, number)
            except ValueError as error:
                if strategy.mode is None or "leaves no label" not in str(error):
                    raise
                logger.warning("Strategy %r is left out: in a fold its consensus is empty.", strategy.name)
                continue
            found = [part.place(strategy, number).predictions("held_out") for part in parts]
            predictions[strategy.name] = in_order(found, order)["pred"][:]
        assert self.channel is not None
        labels = self.train_dataset.with_format(None)[self.label][:]
        choice = choose_strategy(labels, predictions, self.channel)
        if self.state.is_main_process:
            logger.info("Chosen on noisy labels: %s\n%s", choice.chosen, choice.to_markdown())
        return choice

    def _strategies(self) -> tuple[Strategy, ...]:
        args = self.args
        found = tuple(candidates(args.mode, args.budget, args.select_on_noisy_eval))
        if (
            self.is_tokens
        ):  # masked tokens leave all rows: equal epochs are equal steps, and soft tokens have no column
            found = tuple(s for s in found if s.mode != "bayes_soft" and s.budget == "steps")
            if not found or (len(found) == 1 and args.select_on_noisy_eval):
                raise ValueError(f"mode={args.mode!r}, budget={args.budget!r} is not for token classification.")
        needs = [s.name for s in found if (s.mode or "").startswith("bayes")]
        if self.channel is None and (len(found) > 1 or needs or args.round_loss == "forward"):
            raise ValueError(
                "no channel is known: pass channel=RRChannel(epsilon, num_classes) or args.channel_epsilon, or rows "
                "with a ledger. For labels whose noise is not known use round_loss='ce', mode='consensus' (or "
                "'full'), budget='steps' and select_on_noisy_eval=False."
            )
        return found

    def _classes_or_none(self) -> int | None:
        return self.channel.num_classes if self.channel is not None else self.args.num_classes

    @staticmethod
    def _numbered(rows: Dataset) -> Dataset:
        return rows if ROW_INDEX in rows.column_names else rows.add_column(ROW_INDEX, np.arange(len(rows)))

    # --- one run -----------------------------------------------------------------------------------------------------

    def _shared(self) -> Shared:
        return Shared(
            fit=self._fit,
            save_model=self._save_model,
            channel=self.channel,
            args=self.args,
            label=self.label,
            num_classes=self.num_classes,
            class_names=self.class_names,
            state=self.state,
        )

    def _fit(
        self, folder: Path, rows: Dataset, corrected: bool, steps: int | None, start: Path | None, evaluate: bool
    ) -> Fitted:
        """An ordinary run in `folder`, from its newest whole checkpoint if there is one."""
        args = copy.copy(self.args)
        args.output_dir, args.push_to_hub = str(folder), False
        args.max_steps = args.max_steps if steps is None else steps
        if not evaluate or self.eval_dataset is None:
            args.eval_strategy, args.load_best_model_at_end = "no", False
        set_seed(args.seed)  # a head is drawn before the trainer seeds anything
        model = self._initial(start)
        set_seed(args.seed)
        trainer = self.trainer_class(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=self.eval_dataset if evaluate else None,
            channel=self.channel if corrected else None,
            **self.trainer_kwargs,
        )
        trainer.card_facts_of_run = self.facts
        trainer.card_name = self.args.hub_model_id or self.output.absolute().name
        checkpoint, damages = newest_whole(folder)
        for damage in damages:
            logger.warning("Damaged checkpoint not used: %s.", damage)
        self.state.wait_for_everyone()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return Fitted(trainer, trainer.state.global_step)

    def _initial(self, start: Path | None) -> Any:
        """A model with the initial weights, or with those of the round before."""
        model = self.model_init()
        found = model_hash(model)
        if self.initial_weights is None:
            self.initial_weights = found
        if found != self.initial_weights:
            raise ValueError(
                "model_init() gave other weights than before: the round before has trained the same object, or the "
                "weights are drawn from a source the recipe does not seed. Return a fresh model, such as "
                "lambda: AutoModelForSequenceClassification.from_pretrained(name, num_labels=...)."
            )
        if start is not None:
            from safetensors.torch import load_model

            load_model(model, str(start))
        return model

    def _save_model(self, trainer: NoisyLabels, folder: Path) -> None:
        """The model as a stock folder, with its card."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PreTrainedModel) or not hasattr(model, "save_pretrained"):
            trainer.save_model(str(folder), _internal_call=True)
        elif self.state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            with writing("the model", folder), replacing(folder) as temporary:
                model.save_pretrained(str(temporary))
            trainer.write_card(str(folder))

    # --- files of the whole run --------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Refuse to go on with a run that was begun otherwise."""
        set_seed(self.args.seed)
        model = self._initial(None)
        check_model(model, self.train_dataset, self.label, self._classes_or_none())
        stateful = [one for one in self.trainer_kwargs.get("callbacks") or () if isinstance(one, ExportableState)]
        settings = {
            "trainer": self.trainer_class.__name__,
            "epsilon": None if self.channel is None else self.channel.epsilon,
            "num_classes": self.num_classes,
            "label": self.label,
            "processes": self.state.num_processes,
            **settings_of(self.args, FREE),
            **{name: described(value) for name, value in self.trainer_kwargs.items() if name != "callbacks"},
            # The host's own callbacks that end a training say by what; others cannot be asked.
            "callbacks": [described({"class": type(one), **one.state()["args"]}) for one in stateful],
            **model_settings(model),
        }
        rows = {"training rows": self.train_dataset, "evaluation rows": self.eval_dataset}
        claim_run(self.output / MANIFEST, settings, rows, state=self.state, stages="rounds")

    def _facts(self, strategy: Strategy, choice: Choice | None) -> dict[str, Any]:
        """For the card: what the labels went through, what was done, and how right it is."""
        facts: dict[str, Any] = {"strategy": strategy.name}
        if self.channel is not None:
            unit = "one token's label" if self.is_tokens else "one label"
            facts |= {
                "label privacy": f"epsilon {self.channel.epsilon:g} nats, of {unit}",
                "mechanism": f"randomised response over {self.channel.num_classes} classes",
            }
        if choice is not None:
            facts["accuracy, from noisy labels, out of fold"] = str(choice.accuracy[strategy.name])
        return facts

    def _write_table(self, reports: list[RoundReport], choice: Choice | None) -> str:
        report = markdown_of(reports, choice)
        if self.state.is_main_process:
            write_whole(self.output / TABLE, report)
        return report

    def _publish(self, model: Path) -> None:
        """Copy the last round's model into `output_dir`, each file whole."""
        if self.state.is_main_process:
            for file in sorted(path for path in model.rglob("*") if path.is_file()):
                target = self.output / file.relative_to(model)
                target.parent.mkdir(parents=True, exist_ok=True)
                with writing("the model", target), replacing(target) as temporary:
                    shutil.copyfile(file, temporary)
        self.state.wait_for_everyone()
