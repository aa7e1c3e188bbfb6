"""The base of every trainer of ours: what it saves and resumes from, and what a method names in its class."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from hf_ext._upstream.checkpoints import CheckpointHooks
from hf_ext.guards.best_metric import check_best_metric, without_host_direction
from hf_ext.guards.checkpoints import DamagedCheckpointError, checkpoints_in, find_damage, is_sealed, seal, unseal
from hf_ext.guards.disk import publishing, writing
from hf_ext.guards.renamed import renamed_attribute
from hf_ext.guards.runs import claimed_folder, claims_output
from hf_ext.guards.vocabulary import require_embedded
from hf_ext.hub.front_matter import without_host_card
from hf_ext.trainers.base.card import HOSTS, TrainerCard
from hf_ext.trainers.base.push import PushesToHub
from hf_ext.trainers.base.resuming import StopOnSigterm, agreed_checkpoint, size_of
from hf_ext.trainers.base.steps import SafeSteps

if TYPE_CHECKING:
    from hf_ext.evaluation.core import CoreReport
    from hf_ext.hub.cards import EvaluationReport


class BaseTrainer(SafeSteps, PushesToHub, CheckpointHooks):
    """
    Steps, checkpoints, saving and pushing of any host trainer; stands before the hooks of that host in the bases.

    A method's class names what is its own:

    - `method`: the name of its record, as on cards;
    - `config_class`: its configuration, which a plain one of the host is turned into;
    - `card_class`: the card; what it shows of the configuration stands in the method's record;
    - `data_collator_class`: the collator, around the host's or in its place.

    Attributes:
        forgetting_report ([`ForgettingReport`] or another report, *optional*), forgetting_run (`str`, *optional*):
            Set them before saving, and the card carries the table and the numbers of that run.
        core_report ([`CoreReport`], *optional*):
            Of the model as it is: the card carries it. A [`CoreCallback`] sets it.
    """

    method: ClassVar[str]
    config_class: ClassVar[type[TrainingArguments]]
    card_class: ClassVar[type[TrainerCard]] = TrainerCard
    forgetting_report: EvaluationReport | None = None
    forgetting_run: str | None = None
    core_report: CoreReport | None = None
    forgetting_arm = renamed_attribute("forgetting_arm", "forgetting_run")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_on_sigterm = StopOnSigterm.take_over(self) if self.args.enable_jit_checkpoint else None

    # --- settings --------------------------------------------------------------------------------------------------

    @classmethod
    def own_config(cls, args: TrainingArguments | None, output_dir: str) -> Any:
        """
        The arguments as one of `config_class`: as they are, made of the host's own, or the default.

        Args:
            args (`TrainingArguments`, *optional*):
                What the user gave.
            output_dir (`str`):
                Of the default.

        Raises:
            TypeError: if they are those of another trainer.
        """
        if args is None:
            return cls.config_class(output_dir=output_dir)
        if isinstance(args, cls.config_class):
            return args
        host_class = next(base for base in cls.config_class.__mro__ if base.__module__.startswith(HOSTS))
        if not isinstance(args, host_class) and type(args) not in cls.config_class.__mro__:
            raise TypeError(f"{cls.__name__} needs a {cls.config_class.__name__}, got {type(args).__name__}.")
        return cls.config_class(**cls.host_values(args))

    @classmethod
    def host_values(cls, args: TrainingArguments) -> dict[str, Any]:
        """Fields of a plain configuration of the host, as they are passed on to `config_class`."""
        return without_host_direction({entry.name: getattr(args, entry.name) for entry in fields(args) if entry.init})

    # --- resuming --------------------------------------------------------------------------------------------------

    @claims_output
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train as the host does; a checkpoint to resume from is whole, or it is not used.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                `True` takes the newest whole checkpoint of `output_dir`, with a warning that names each damaged one.
            *args, **kwargs:
                As in the host's `train`.

        Returns:
            `TrainOutput`: as the host's.

        Raises:
            DamagedCheckpointError: if the checkpoint named is damaged, or none in `output_dir` is whole.
            DiskFullError: if there is no room for a checkpoint; the earlier ones are intact.
            NonFiniteError: if a gradient is not finite, before the optimiser step; or a parameter, before a save and
                after the last step.
            RowError: if a row has a token that the model has no embedding for.
            ValueError: if nothing is trainable; `metric_for_best_model` is a metric of ours that names none of several
                evaluation sets; or not a single step was taken.
            InUseError: if another run trains into `output_dir`.
            StoppedBySigterm: after a SIGTERM with `enable_jit_checkpoint`, once its checkpoint is whole; a
                `SystemExit`, so that nothing takes the weights so far for the result.
        """
        check_best_metric(self)
        self.check_trainable()
        self._check_tokens()
        if resume_from_checkpoint not in (None, False):
            resume_from_checkpoint = agreed_checkpoint(self, resume_from_checkpoint)
        self.before_training(None if isinstance(resume_from_checkpoint, bool) else resume_from_checkpoint)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.stop_on_sigterm is not None:
            self.stop_on_sigterm.exit_if_stopped()
        return result

    def before_training(self, checkpoint: str | None) -> None:
        """
        What a method does before the host begins, and before it loads anything of a checkpoint; here nothing.

        Args:
            checkpoint (`str`, *optional*):
                The whole one that the run goes on from.
        """

    def _check_tokens(self) -> None:
        """Refuse rows with tokens that the model has no embedding for."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **sets}.items():
            require_embedded(dataset, self.model, self.processing_class, name)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        """Around the host's writing of a checkpoint: it gets its manifest, which makes it whole, after all else."""
        self.check_weights()
        path = Path(folder)
        others = [folder for folder in checkpoints_in(path.parent) if folder != path and is_sealed(folder)]
        remedy = f"{others[0]} is whole" if others else "No earlier checkpoint is whole"
        remedy += "; the unfinished one was removed. Free some space, then resume with resume_from_checkpoint=True."
        num_bytes = size_of(others[0]) if others else None
        remove = lambda: shutil.rmtree(path, ignore_errors=True)  # noqa: E731
        with writing("a checkpoint", path, num_bytes=num_bytes, advice=remedy, clean_up=remove):
            if self.args.should_save:
                unseal(path)  # a checkpoint of that step may be there, whole or left by a killed run
            yield
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                seal(path)

    def rotate(self, run_dir: str, newest: str) -> None:
        """
        Remove checkpoints beyond `save_total_limit`, as the host does, but unfinished ones first.

        The newest is whole by now, and stays, as does the best one.
        """
        best = self.state.best_model_checkpoint
        protected = {Path(newest), *([Path(best)] if best is not None else [])}
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        checkpoints = [Path(folder) for folder in sort_checkpoints(run_dir, use_mtime=True)]
        removable = sorted(
            (path for path in checkpoints if path not in protected), key=is_sealed
        )  # stable: oldest first
        for folder in removable[: max(0, len(checkpoints) - max(limit, len(protected)))]:
            unseal(folder)  # half-removed it must not be taken for whole
            shutil.rmtree(folder, ignore_errors=True)

    def check_best(self, folder: str) -> None:
        """
        Refuse to load a damaged best checkpoint at the end of training.

        Raises:
            DamagedCheckpointError: if it is damaged; the message says that the last weights are in a checkpoint.
        """
        damage = find_damage(folder)
        if damage is not None:
            raise DamagedCheckpointError(
                f"Training is done, but the best checkpoint cannot be loaded: {damage}. The last weights are in the "
                f"newest checkpoint of {self.args.output_dir}; to go on with them, resume with "
                "load_best_model_at_end=False."
            )

    # --- the model, its card, the Hub ------------------------------------------------------------------------------

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write a card with licence, method, paper, settings and, once known, the tables of forgetting and CORE."""
        if self.is_world_process_zero():
            self.write_card(self.args.output_dir, model_name=model_name, dataset_name=dataset_name, tags=tags)

    def write_card(self, folder: str, **names: Any) -> None:
        """Write the card into `folder`; `names` as in [`create_model_card`]."""
        self.card_class(self).write(folder, **names)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save model, tokenizer and card, no pickle; with `push_to_hub=True` then push them, as the host does.

        They are written beside their place and then moved there: what a kill or a full disk leaves is the model saved
        before, or none.

        Raises:
            DiskFullError: if there is no room for the model; what was in the folder is intact.
            NonFiniteError: if a parameter holds a NaN or an infinity; what was in the folder is intact.
        """
        folder = Path(output_dir or self.args.output_dir)
        if not self.is_writing_checkpoint:  # which has checked them
            self.check_weights()
        if self.is_writing_checkpoint or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            with self._without_host_card(folder):
                super().save_model(str(folder), _internal_call=True)  # a manifest guards it; or many processes write
        else:
            self._save_beside(folder)
        if self.is_world_process_zero():
            self.write_card(str(folder))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _without_host_card(self, folder: Path) -> AbstractContextManager[None]:
        return without_host_card(folder) if self.args.should_save else nullcontext()

    def _save_beside(self, folder: Path) -> None:
        num_bytes = sum(
            value.numel() * value.element_size() for value in self.model.parameters() if value.requires_grad
        )
        advice = "What was in the folder before, and every checkpoint, is intact. Free some space and save again."
        writes = self.args.should_save
        # A run that has begun to train there in the meantime is waited for: these weights are nowhere else.
        claim = claimed_folder(folder, waits=True) if writes else nullcontext()
        saving = publishing(folder, num_bytes=num_bytes, advice=advice, is_writer=writes)
        with claim, saving as staging, self._without_host_card(staging):
            super().save_model(str(staging), _internal_call=True)
