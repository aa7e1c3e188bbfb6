"""Hooks of any stock `Trainer`: columns that reach the loss, and metrics of training that are ratios."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_ext._upstream.rows import CarriesColumns
from hf_ext._upstream.trainer import BaseTrainerHooks

TOUCHED = (
    ("transformers.Trainer", "_set_signature_columns_if_needed", "columns of the loss would be dropped"),
    ("transformers.Trainer", "_signature_columns", "columns of the loss would be dropped"),
    ("transformers.Trainer", "_get_num_items_in_batch", "the loss would be divided by labels, not by weights"),
)


class StockTrainerHooks(BaseTrainerHooks):
    """
    A stock trainer with public hooks; stands before the host in the bases.

    - `carried_columns()`: numeric columns that must reach the batch;
    - `count_items(batches, device)`: the loss's denominator over the whole accumulated, gathered batch;
    - ratios of training, summed over processes, join its log lines.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = CarriesColumns(self.data_collator, self.carried_columns())

    def carried_columns(self) -> tuple[str, ...]:
        """Numeric columns beyond the model's inputs that the loss reads."""
        return ()

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Denominator of the loss for one optimiser step over all processes; the default counts labels."""
        return super()._get_num_items_in_batch(batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the ratios of training on the lines that have its loss."""
        if "loss" in logs:
            logs |= self.take_ratios("train")
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or []), *self.carried_columns()]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        return self.count_items(batch_samples, device) if batch_samples else None


__all__ = ["TOUCHED", "StockTrainerHooks"]
