"""What a trainer of ours checks before the optimiser's step, and before its weights are used: no step is broken."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from torch import Tensor
from torch.nn import Module, Parameter

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.steps import StepHooks
from hf_ext.data.provenance import is_peft
from hf_ext.guards.checkpoints import checkpoints_in, is_sealed
from hf_ext.guards.finite import NonFiniteError, check_finite, check_gradient, parameter_error, readable_part
from hf_ext.guards.weights import LEAST_WEIGHT

logger = logging.getLogger(__name__)

STATISTICS = ("running_mean", "running_var")  # of a normalisation layer: buffers that every forward changes
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a value


class SafeSteps(StepHooks):
    """
    Checks around every optimiser step of any host trainer; stands before it in the bases.

    Batches may carry `__hf_ext_row__`: the rows that an error names.
    """

    weight_remedy = "Look at the column 'weight', where there is one: 1 is usual."
    _step_rows: tuple[Tensor, ...] = ()
    _first_values: tuple[int, int] | None = None  # the step that training began after, and the parameters' checksum
    _said_that_a_step_vanished = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the host does, from here on."""
        self._first_values = None  # of a training that ended in an error
        return super().train(*args, **kwargs)

    def check_trainable(self) -> None:
        """
        Refuse a run that could move nothing, before anything is done for it.

        Raises:
            ValueError: if no parameter is trainable, the optimizer that was passed holds none that is, there is no
                epoch to train, or no batch is full where only full ones are taken.
        """
        if self.args.max_steps <= 0 and self.args.num_train_epochs <= 0:
            self.check_steps()
        rows = self.train_dataset
        size = self.args.train_batch_size
        if self.args.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < size:
            raise ValueError(
                f"dataloader_drop_last=True leaves out a batch that is not full, and the {len(rows):,} rows of the "
                f"train dataset do not fill one of {size:,}: there is nothing to train on. Leave it out, or lower "
                "per_device_train_batch_size."
            )
        trainable = [value for value in self.model.parameters() if value.requires_grad]
        if not trainable:
            raise ValueError(nothing_trainable(self.model))
        # One that the host has made is prepared, and may hold other tensors in place of the parameters.
        is_users = self.optimizer is not None and not isinstance(self.optimizer, AcceleratedOptimizer)
        if is_users and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            optimized = {id(value) for group in self.optimizer.param_groups for value in group["params"]}
            if not any(id(value) in optimized for value in trainable):
                raise ValueError(
                    "The optimizer in optimizers= holds no parameter that is trained: it was made of another model's "
                    "parameters, or of those before an adapter was added. Make it of trainer.model's, or pass "
                    "optimizer_cls_and_kwargs."
                )

    def check_steps(self) -> None:
        """
        Stop a run that had no batch to take a step with, before it saves a model that is what it was.

        Raises:
            ValueError: if not a single optimiser step was taken.
        """
        if self._first_values is not None:
            reason = (
                "a pass over the train dataset gives fewer batches than gradient_accumulation_steps="
                f"{self.args.gradient_accumulation_steps}, so that none is ever complete: lower it, or add rows"
            )
        elif self.args.max_steps <= 0 and self.args.num_train_epochs <= 0:
            reason = f"num_train_epochs={self.args.num_train_epochs}: set it, or max_steps, above 0"
        else:
            reason = "the train dataset gave no row: look at its filters, its split and the rows that were dropped"
        raise ValueError(f"Training ended without an optimiser step, and no model is saved: {reason}.")

    def see_batches(self, batches: list[dict[str, Any]]) -> None:
        """Keep which rows the step is made of: a loss takes the column out of its batch."""
        if not batches and self.state.global_step == 0:
            self.check_steps()  # here, for the host would save a checkpoint at the end of the epoch
        if batches and self._first_values is None:
            self._first_values = (self.state.global_step, checksum(self.model))
        self._step_rows = tuple(batch[ROW_INDEX] for batch in batches if ROW_INDEX in batch)

    def check_gradient(self, norm: Tensor | float, parameters: Iterable[tuple[str, Parameter]]) -> None:
        """
        Stop before the optimiser step when the gradient is not finite.

        With float16 the scaler leaves such a step out and halves its scale. At a scale of 1 nothing is left to halve.
        A gradient that is zero is said once.

        Raises:
            NonFiniteError: if the gradient's norm is a NaN or an infinity.
        """
        if math.isfinite(size := float(norm)):
            if size < LEAST_WEIGHT:
                self._say_that_the_step_vanished()
            return
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled() or scaler.get_scale() <= 1:
            check_gradient(norm, parameters, **self._place())

    def guard(self, name: str, values: Tensor, row_index: Tensor | None = None) -> None:
        """
        Stop before the optimiser step when `values` are not finite.

        Args:
            name (`str`):
                What they are, for the message.
            values (`torch.Tensor` of any shape):
                Of one micro-batch.
            row_index (`torch.Tensor`, *optional*):
                Row of each value, or of the batch.

        Raises:
            NonFiniteError: if one is a NaN or an infinity; the rows are named.
        """
        rank = self.accelerator.process_index
        check_finite(name, values, step=self.state.global_step, rank=rank, row_index=row_index)

    def check_result(self) -> None:
        """
        Stop after the last step when the model is not finite; say so when training has moved no parameter.

        Raises:
            NonFiniteError: if [`check_weights`] raises it.
        """
        self.check_weights()
        start, first_values = self._first_values or (self.state.global_step, 0)
        self._first_values = None
        num_steps = self.state.global_step - start
        # Of ZeRO-3 no process holds a whole parameter to sum.
        can_tell = num_steps > 0 and self.is_world_process_zero() and not self.is_deepspeed_enabled
        if can_tell and checksum(self.model) == first_values:
            logger.warning(
                "Training has moved no parameter in %s step%s: the model is what it was. Either the gradient vanished "
                "(every weight 0, or too small for float32), or learning_rate is 0 or too small for the parameters' "
                "type, or nothing that the loss depends on is trained. %s",
                f"{num_steps:,}", "s" if num_steps > 1 else "", self.weight_remedy,
            )  # fmt: skip

    def check_weights(self) -> None:
        """
        Stop before the model is saved, pushed or handed on when it is not finite.

        What no training changes is not looked at: a mask of infinities among frozen parameters is the model's own.

        Raises:
            NonFiniteError: if a trained parameter, or a running statistic that this process saves, holds a NaN or an
                infinity; names it, and the last whole checkpoint.
        """
        checkpoints = [path for path in checkpoints_in(self.args.output_dir) if is_sealed(path)]
        remedy = f"{checkpoints[0]} is whole: resume from it" if checkpoints else "No checkpoint is whole: start again"
        remedy += ", with a lower learning rate."
        error = parameter_error(changing_values(self.model, self.args.should_save), **self._place(), advice=remedy)
        if self.is_fsdp_enabled:  # each process has seen its own shards, and all of them must stop
            flags = torch.tensor([error is not None], device=self.accelerator.device)
            is_bad_somewhere = bool(self.accelerator.gather(flags).any())
            if error is None and is_bad_somewhere:
                place = self._place()
                message = f"a parameter is not finite on another rank, after step {place['step']:,}. {remedy}"
                error = NonFiniteError(message, "parameter", place["step"], place["rank"], [])
        if error is not None:
            raise error

    def _say_that_the_step_vanished(self) -> None:
        if self._said_that_a_step_vanished or not self.is_world_process_zero():
            return
        self._said_that_a_step_vanished = True
        logger.warning(
            "The gradient of step %s is zero: its rows teach nothing. Their weights are 0 or vanish in float32, or "
            "their loss is constant. Said once; further steps may be alike. %s",
            f"{self.state.global_step + 1:,}", self.weight_remedy,
        )  # fmt: skip

    def _place(self) -> dict[str, Any]:
        """Where the run is: step, process, rows of the step."""
        rows = [values.detach().flatten().cpu() for values in self._step_rows]
        return {
            "step": self.state.global_step,
            "rank": self.accelerator.process_index,
            "row_index": torch.cat(rows) if rows else None,
        }


def nothing_trainable(model: Module) -> str:
    """What to say of a model without a trainable parameter."""
    if any(is_peft(module, "BaseTunerLayer") for module in model.modules()) or is_peft(model, "PeftModel"):
        remedy = (
            "Its adapter was loaded for inference, as PeftModel.from_pretrained does: load it with is_trainable=True "
            "to train it on, or pass the base model and peft_config= for a new one."
        )
    else:
        remedy = "Call requires_grad_(True) on what is to be trained, or pass peft_config= for an adapter."
    return f"No parameter of the model is trainable (requires_grad is False), so nothing would be learned. {remedy}"


def changing_values(model: Module, with_statistics: bool = True) -> Iterator[tuple[str, Tensor]]:
    """
    What training changes of a model, by name: trained parameters, and running means and variances.

    Args:
        model (`torch.nn.Module`):
            The model.
        with_statistics (`bool`, *optional*, defaults to `True`):
            Whether running statistics count. Each process has its own, and those of the one that saves are saved.
    """
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    if with_statistics:
        yield from ((name, value) for name, value in model.named_buffers() if name.rpartition(".")[2] in STATISTICS)


def checksum(model: Module) -> int:
    """Sum of the bit patterns of every trained parameter (on this process): one that moves changes it."""
    total = 0
    for value in model.parameters():
        part = readable_part(value) if value.requires_grad else None
        if part is not None and part.dtype.itemsize in _BITS:
            total += int(part.contiguous().view(_BITS[part.dtype.itemsize]).sum(dtype=torch.int64))
    return total


__all__ = ["SafeSteps"]
