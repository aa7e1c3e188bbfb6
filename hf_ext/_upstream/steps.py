"""Hooks around the optimiser steps of any host trainer: which of them are left, and what is checked before each."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

logger = logging.getLogger(__name__)

TOUCHED = (
    ("transformers.Trainer", "get_batch_samples", "the rows of a step that is not finite would not be known"),
    ("transformers.Trainer", "_clip_grad_norm", "gradients would be clipped before they are checked"),
    ("transformers.Trainer", "_get_grad_norm", "a gradient that is not finite would reach the optimiser"),
    ("transformers.Trainer", "_init_training_state", "a finished run that is resumed would train one step more"),
    ("transformers.Trainer", "_finalize_training", "the random state of a finished run would not be restored"),
    ("transformers.Trainer", "_load_rng_state", "the random state of a finished run would not be restored"),
)


def restore_patience(trainer: Trainer) -> None:
    """Go on with the counts of early stopping, which the host restores from a checkpoint on request alone."""
    entries = trainer.state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
    counts = [entry["attributes"] for entry in (entries if isinstance(entries, list) else [entries])]
    callbacks = trainer.callback_handler.callbacks
    stoppers = [callback for callback in callbacks if type(callback) is EarlyStoppingCallback]
    for stopper, attributes in zip(stoppers, counts, strict=False):
        vars(stopper).update(attributes)


def place_in_stream(trainer: Trainer, checkpoint: str) -> tuple[int, int]:
    """
    Whole passes over a stream that a checkpoint has behind it, and micro-batches of the pass it is in.

    The host takes the steps so far for those of one pass, and would skip to the stream's end (transformers 5.23). The
    epoch it saves counts passes, and in the last one micro-batches as shares of `max_steps`, for want of a length.
    """
    saved_state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    share, passes = math.modf(float(saved_state.epoch or 0))
    return int(passes), round(share * saved_state.max_steps * trainer.args.gradient_accumulation_steps)


def is_sharded(trainer: Trainer, model: Module) -> bool:
    """Whether a process holds parts of parameters alone, so that the norm of a gradient is for the host to find."""
    sharding = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.XLA, DistributedType.MEGATRON_LM)
    return trainer.accelerator.distributed_type in sharding or any(
        hasattr(value, "to_local") for value in model.parameters()
    )


def checked_norm(trainer: StepHooks, model: Module) -> Tensor:
    """The norm of the gradient as the host computes it, once the trainer has looked at it."""
    trainer.accelerator.unscale_gradients()
    norm = get_total_norm([value.grad for value in model.parameters() if value.grad is not None])
    trainer.check_gradient(norm, trainer.model.named_parameters())
    return norm


class StepHooks(Trainer):
    """
    Public hooks around the steps of any host trainer; stands before it in the bases.

    - `has_steps_left()`: whether a run that goes on from a checkpoint trains at all;
    - `see_batches(batches)`: the micro-batches of the optimiser step that comes, on this process;
    - `check_gradient(norm, parameters)`: before every optimiser step, and before gradients are clipped;
    - `check_steps()`: when a training ends without a step;
    - `check_result()`: after the last step, before anything is made of the weights.
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

    def see_batches(self, batches: list[dict[str, Any]]) -> None:
        """Look at the micro-batches of a step before it; the default does not."""

    def check_gradient(self, norm: Tensor | float, parameters: Iterable[tuple[str, Parameter]]) -> None:
        """
        Look at the norm of a step's gradient, over all parameters and processes; the default does not.

        `parameters` by name, with their gradients; none where shards or clipping hide which one is to blame.
        """

    def check_steps(self) -> None:
        """Look at a training that ended without a step; the default takes it as it is."""

    def check_result(self) -> None:
        """Look at the weights after the last step; the default does not."""

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Draw the micro-batches of one optimiser step."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.see_batches(batches)
        return batches, num_items

    def _clip_grad_norm(self, model: Module) -> Any:
        if is_sharded(self, model):
            return super()._clip_grad_norm(model)  # checked in `_get_grad_norm`, which comes next
        # The host's own two halves, with the check in between: clipping by a NaN makes every gradient NaN.
        norm = checked_norm(self, model)
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: Module, grad_norm: Any = None) -> Any:
        if not is_sharded(self, model):
            return checked_norm(self, model) if grad_norm is None else grad_norm
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_deepspeed_enabled:  # which has taken its step in the backward pass, or left it out
            self.check_gradient(grad_norm, ())
        return grad_norm

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.finished_checkpoint = None
        if resume_from_checkpoint is None:
            return position
        restore_patience(self)
        if self.has_steps_left():
            counts_micro_batches = has_length(self.train_dataset) or self.args.ignore_data_skip
            return position if counts_micro_batches else place_in_stream(self, resume_from_checkpoint)
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
        if self.finished_checkpoint is None and self.state.global_step == 0:
            self.check_steps()
        if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None):
            self.check_result()
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


__all__ = ["TOUCHED", "StepHooks"]
