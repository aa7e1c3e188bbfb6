"""Hooks around the checkpoints of any host trainer: when they are written, rotated and loaded again."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn import Module
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

TOUCHED = (
    ("transformers.Trainer", "_save_checkpoint", "a checkpoint could be half-written and taken for whole"),
    ("transformers.Trainer", "_get_output_dir", "the folder of a checkpoint would not be known"),
    ("transformers.Trainer", "_load_best_model", "a damaged best checkpoint could be loaded"),
)


class CheckpointHooks(Trainer):
    """
    Public hooks around the checkpoints of any host trainer; stands before it in the bases.

    - `writing_checkpoint(folder)`: a context around the host's writing, on every process;
    - `rotate(run_dir, newest)`: removes older checkpoints, after that context: the host itself removes none;
    - `check_best(folder)`: before the best checkpoint is loaded at the end of training.
    """

    is_writing_checkpoint = False

    def writing_checkpoint(self, folder: str) -> AbstractContextManager[None]:
        """Around the writing of a checkpoint; the default does nothing."""
        return nullcontext()

    def rotate(self, run_dir: str, newest: str) -> None:
        """Remove older checkpoints beyond `save_total_limit`; the default is the host's way."""
        rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def check_best(self, folder: str) -> None:
        """Look at the best checkpoint before it is loaded; the default takes it as it is."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the host does."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.is_writing_checkpoint:
            # The host rotates at the end of its `_save_checkpoint`, when other processes may still write. Only here
            # and not before: the limit is among the arguments that were just saved.
            self.args.save_total_limit = None

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial=trial)
        limit = self.args.save_total_limit
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        self.is_writing_checkpoint = True
        try:
            with self.writing_checkpoint(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.is_writing_checkpoint = False
            self.args.save_total_limit = limit
        if self.args.should_save:
            self.rotate(run_dir, folder)

    def _load_best_model(self) -> None:
        self.check_best(self.state.best_model_checkpoint)
        super()._load_best_model()


def load_checkpoint(trainer: Trainer, folder: str) -> None:
    """Load a checkpoint's weights into a trainer's model as the host loads its best one, which it is from now on."""
    trainer.state.best_model_checkpoint = folder
    trainer._load_best_model()
