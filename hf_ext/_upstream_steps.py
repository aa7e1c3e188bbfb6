"""The seam around the optimiser steps of any host trainer: which of them are left, and what is checked before each.

A part of `_upstream.py`, whose `TOUCHED` lists the private names used here.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import EarlyStoppingCallback, Trainer

logger = logging.getLogger(__name__)


def restore_patience(trainer: Trainer) -> None:
    """Go on with the counts of early stopping, which the host restores from a checkpoint on request alone."""
    saved = trainer.state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
    counts = [entry["attributes"] for entry in (saved if isinstance(saved, list) else [saved])]
    callbacks = trainer.callback_handler.callbacks
    stoppers = [callback for callback in callbacks if type(callback) is EarlyStoppingCallback]
    for stopper, attributes in zip(stoppers, counts, strict=False):
        vars(stopper).update(attributes)


class StepSeam(Trainer):
    """
    Public hooks around the steps of any host trainer; stands before it in the bases.

    - `has_steps_left()`: whether a run that goes on from a checkpoint trains at all.
    """

    finished_checkpoint: str | None = None

    def has_steps_left(self) -> bool:
        """Whether there is a step to train, once the state of a checkpoint is loaded."""
        stopped = any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )
        return self.state.global_step < self.state.max_steps and not stopped

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        begin = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.finished_checkpoint = None
        if resume_from_checkpoint is None:
            return begin
        restore_patience(self)
        if self.has_steps_left():
            return begin
        # The host looks for the end after a step, never before one: it would train the step after the last one, where
        # that is not an epoch's first (transformers 5.23). No epoch is begun instead.
        self.finished_checkpoint = resume_from_checkpoint
        if self.is_world_process_zero():
            logger.warning(
                "%s is the end of its run, step %s of %s: nothing is left to train. To train on, raise max_steps or "
                "num_train_epochs, or take away the callback that stopped it.",
                resume_from_checkpoint, f"{self.state.global_step:,}", f"{self.state.max_steps:,}",
            )  # fmt: skip
        return num_train_epochs, 0

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if self.finished_checkpoint is None:
            return super()._finalize_training(trial, num_train_samples, start_time)
        self._load_rng_state(self.finished_checkpoint)  # the host restores it where an epoch is begun
        output = super()._finalize_training(trial, num_train_samples, start_time)
        return output._replace(training_loss=math.nan)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, without the mean loss of a training without steps, which the host gives as 0."""
        if self.finished_checkpoint is not None:
            logs.pop("train_loss", None)
        super().log(logs, start_time)


__all__ = ["StepSeam"]
