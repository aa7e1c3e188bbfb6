"""What a trainer of ours saves and pushes: a stock folder with a card, and no pickle; and what it resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import sort_checkpoints

from hf_ext._upstream.checkpoints import CheckpointHooks
from hf_ext.guards.best_metric import check_best_metric
from hf_ext.guards.checkpoints import DamagedCheckpointError, checkpoints_in, find_damage, is_sealed, seal, unseal
from hf_ext.guards.disk import writing
from hf_ext.guards.renamed import renamed_attribute
from hf_ext.guards.runs import claimed_folder, claims_output
from hf_ext.guards.vocabulary import require_embedded
from hf_ext.hub.front_matter import without_host_card
from hf_ext.trainers.base.card import card_of_trainer
from hf_ext.trainers.base.push import prepare_repo, push_checkpoint, push_trainer
from hf_ext.trainers.base.resuming import StopOnSigterm, agreed_checkpoint, publish, size_of
from hf_ext.trainers.base.steps import SafeSteps

if TYPE_CHECKING:
    from concurrent.futures import Future

    from huggingface_hub import CommitInfo

    from hf_ext.evaluation.report import ForgettingReport

PARTIAL = "_saving"  # begins like everything that no push takes along


class BaseTrainer(SafeSteps, CheckpointHooks):
    """
    Saving and pushing for a trainer whose class names its `method`; stands before the host trainer in its bases.

    Attributes:
        forgetting_report ([`ForgettingReport`], *optional*), forgetting_run (`str`, *optional*):
            Set them before saving, and the card carries the table and the numbers of that run.
    """

    method: str
    forgetting_report: ForgettingReport | None = None
    forgetting_run: str | None = None
    forgetting_arm = renamed_attribute("forgetting_arm", "forgetting_run")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_on_sigterm = StopOnSigterm.take_over(self) if self.args.enable_jit_checkpoint else None

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
            DamagedCheckpointError: the checkpoint named is damaged, or none in `output_dir` is whole.
            DiskFullError: no room for a checkpoint; the earlier ones are intact.
            NonFiniteError: a gradient is not finite, before the optimiser step; or a parameter is not, before a save
                and after the last step.
            RowError: a row has a token that the model has no embedding for.
            ValueError: nothing is trainable; `metric_for_best_model` is a metric of ours that names none of several
                evaluation sets; or not a single step was taken.
            InUseError: another run trains into `output_dir`.
            StoppedBySigterm: with `enable_jit_checkpoint`, after a SIGTERM, once its checkpoint is whole; a
                `SystemExit`, so that nothing takes the weights so far for the result.
        """
        check_best_metric(self)
        self.check_trainable()
        self._check_tokens()
        if resume_from_checkpoint not in (None, False):
            resume_from_checkpoint = agreed_checkpoint(self, resume_from_checkpoint)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.stop_on_sigterm is not None:
            self.stop_on_sigterm.exit_if_stopped()
        return result

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
        earlier = [found for found in checkpoints_in(path.parent) if found != path and is_sealed(found)]
        then = f"{earlier[0]} is whole" if earlier else "No earlier checkpoint is whole"
        then += "; the unfinished one was removed. Free some space, then resume with resume_from_checkpoint=True."
        needed = size_of(earlier[0]) if earlier else None
        with writing("a checkpoint", path, num_bytes=needed, advice=then, clean_up=lambda: shutil.rmtree(path, True)):
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
        kept = {Path(newest), *([Path(best)] if best is not None else [])}
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        found = [Path(folder) for folder in sort_checkpoints(run_dir, use_mtime=True)]
        removable = sorted((folder for folder in found if folder not in kept), key=is_sealed)  # stable: oldest first
        for folder in removable[: max(0, len(found) - max(limit, len(kept)))]:
            unseal(folder)  # half-removed it must not be taken for whole
            shutil.rmtree(folder, ignore_errors=True)

    def check_best(self, folder: str) -> None:
        """
        Refuse to load a damaged best checkpoint at the end of training.

        Raises:
            DamagedCheckpointError: names it, and says that the last weights are in a checkpoint.
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
        """Write a card with licence, method, paper, settings and, once known, the forgetting table."""
        if self.is_world_process_zero():
            self.write_card(self.args.output_dir, model_name=model_name, dataset_name=dataset_name, tags=tags)

    def write_card(self, folder: str, **names: Any) -> None:
        """Write the card into `folder`; `names` as in [`create_model_card`]. The default is a generator's."""
        card_of_trainer(self, folder, **names)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save model, tokenizer and card, no pickle; with `push_to_hub=True` then push them, as the host does.

        They are written beside their place and then moved there: what a kill or a full disk leaves is the model saved
        before, or none.

        Raises:
            DiskFullError: no room for the model; what was in the folder is intact.
            NonFiniteError: a parameter holds a NaN or an infinity; what was in the folder is intact.
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
        partial = folder / PARTIAL
        needed = sum(value.numel() * value.element_size() for value in self.model.parameters() if value.requires_grad)
        remove = lambda: shutil.rmtree(partial, ignore_errors=True)  # noqa: E731  named for what it does, twice
        then = "What was in the folder before, and every checkpoint, is intact. Free some space and save again."
        # A run that has begun to train there in the meantime is waited for: these weights are nowhere else.
        claim = claimed_folder(folder, waits=True) if self.args.should_save else nullcontext()
        with claim, writing("the model", folder, num_bytes=needed, advice=then, clean_up=remove):
            if self.args.should_save:
                remove()  # left by a killed run
            with self._without_host_card(partial):
                super().save_model(str(partial), _internal_call=True)
            if self.args.should_save:
                publish(partial, folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        Save into `output_dir`, then push it to `hub_model_id`: retried, never twice, without pickles or training rows.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            create_pr (`bool`, *optional*, defaults to `False`):
                Whether to open a pull request instead of committing to `main`.
            **kwargs:
                For [`create_model_card`]: `model_name`, `dataset_name`, `tags`.

        Returns:
            `CommitInfo`, or a `Future` of it unless `blocking`; `None` on processes other than the main one.

        Raises:
            PushError: the push failed for good; the message says why and that everything is in `output_dir`.
        """
        return push_trainer(
            self,
            commit_message or "End of training",
            blocking=blocking,
            token=token,
            revision=revision,
            private=private,
            create_pr=create_pr,
            card=kwargs,
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `hub_model_id` unless it is there, with retries."""
        prepare_repo(self, token, private)

    def push_checkpoint(self, checkpoint: str) -> None:
        """Push a checkpoint's model beside training, as `hub_strategy` says; the states to resume from stay here."""
        push_checkpoint(self, checkpoint)
