"""Configuration of training with context-free rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig


@dataclass
class ContextFreeSFTConfig(WeightedSFTConfig):
    r"""
    Configuration of [`ContextFreeSFTTrainer`]: [`WeightedSFTConfig`] and three fields.

    Parameters:
        kl_weight (`float`, *optional*, defaults to `1.0`):
            $\lambda$: weight of the context-free rows' mean loss against the target rows' (unitless).
        context_free_path (`str`, *optional*):
            Folder of a store written by [`generate_context_free`]; an alternative to the trainer's argument.
        context_free_batch_size (`int`, *optional*):
            Context-free rows a micro-batch and process. Defaults to `per_device_train_batch_size`.
    """

    kl_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the context-free rows' mean loss against the target rows' mean loss (unitless). "
            "Independent of the two sets' sizes. 0 turns the anchor off; 0.25 keeps most of the target gain."
        },
    )
    context_free_path: str | None = field(
        default=None,
        metadata={"help": "Folder of context-free rows written by 'hf-ext data context-free'."},
    )
    context_free_batch_size: int | None = field(
        default=None,
        metadata={"help": "Context-free rows per micro-batch and process. Default: per_device_train_batch_size."},
    )

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kl_weight) and self.kl_weight >= 0):
            raise ValueError(f"kl_weight must be finite and at least 0, got {self.kl_weight!r}.")
        if self.context_free_batch_size is not None and self.context_free_batch_size < 1:
            raise ValueError(f"context_free_batch_size must be at least 1, got {self.context_free_batch_size}.")
        super().__post_init__()
