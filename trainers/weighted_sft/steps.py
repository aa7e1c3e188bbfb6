"""No broken step: what a trainer of ours checks before the optimiser's step, and before its weights are used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hf_ext._upstream_steps import StepSeam
from hf_ext.guards.checkpoints import checkpoints_in, is_sealed
from hf_ext.guards.finite import NonFiniteError, check_gradient, parameter_error
from hf_ext.guards.rows import ROW_INDEX


class SafeSteps(StepSeam):
    """
    Checks around every optimiser step of any host trainer; stands before it in the bases.

    Batches may carry `row_index`: the rows that an error names.
    """

    _step_rows: tuple[Tensor, ...] = ()

    def see_batches(self, batches: list[dict[str, Any]]) -> None:
        """Keep which rows the step is made of: a loss takes the column out of its batch."""
        self._step_rows = tuple(batch[ROW_INDEX] for batch in batches if ROW_INDEX in batch)

    def check_gradient(self, norm: Tensor | float, parameters: Iterable[tuple[str, Parameter]]) -> None:
        """
        Stop before the optimiser step when the gradient is not finite.

        With float16 the scaler leaves such a step out and halves its scale. At a scale of 1 nothing is left to halve.

        Raises:
            NonFiniteError: the gradient's norm is a NaN or an infinity.
        """
        if bool(torch.isfinite(torch.as_tensor(norm))):
            return
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled() or scaler.get_scale() <= 1:
            check_gradient(norm, parameters, **self._place())

    def check_result(self) -> None:
        """
        Stop after the last step when the model is not finite.

        Raises:
            NonFiniteError: a parameter holds a NaN or an infinity.
        """
        self.check_weights()

    def check_weights(self) -> None:
        """
        Stop before the model is saved, pushed or handed on when it is not finite.

        Raises:
            NonFiniteError: a parameter holds a NaN or an infinity; names it, and the last whole checkpoint.
        """
        whole = [path for path in checkpoints_in(self.args.output_dir) if is_sealed(path)]
        then = f"{whole[0]} is whole: resume from it" if whole else "No checkpoint is whole: start again"
        then += ", with a lower learning rate."
        error = parameter_error(self.model.named_parameters(), **self._place(), then=then)
        if self.is_fsdp_enabled:  # each process has seen its own shards, and all of them must stop
            flags = torch.tensor([error is not None], device=self.accelerator.device)
            is_bad_somewhere = bool(self.accelerator.gather(flags).any())
            if error is None and is_bad_somewhere:
                place = self._place()
                message = f"a parameter is not finite on another rank, after step {place['step']:,}. {then}"
                error = NonFiniteError(message, "parameter", place["step"], place["rank"], [])
        if error is not None:
            raise error

    def _place(self) -> dict[str, Any]:
        """Where the run is: step, process, rows of the step."""
        rows = [values.detach().flatten().cpu() for values in self._step_rows]
        return {
            "step": self.state.global_step,
            "rank": self.accelerator.process_index,
            "row_index": torch.cat(rows) if rows else None,
        }


__all__ = ["SafeSteps"]
