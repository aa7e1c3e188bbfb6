"""Configuration of training with context-free rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_ext.trainers.base.config import check_choice
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig

ESTIMATES = ("sampled", "exact", "topk")


@dataclass
class ContextFreeSFTConfig(WeightedSFTConfig):
    r"""
    Configuration of [`ContextFreeSFTTrainer`]: [`WeightedSFTConfig`] and seven fields.

    Parameters:
        kl_weight (`float`, *optional*):
            $\lambda$: weight of the context-free rows' mean loss against the target rows' (unitless). 1 unless
            `kl_budget` is set.
        kl_budget (`float`, *optional*):
            KL(original || new) to keep to, in nats per token, in place of `kl_weight`: the weight starts at 1, rises
            while the step's KL (as `kl` has it; for `"sampled"` the estimate `k3`) is above the budget and falls while
            it is below, between 0.001 and 1000.
        kl (`str`, *optional*, defaults to `"sampled"`):
            The context-free rows' loss. `"sampled"`: the likelihood of their tokens, the paper's. `"exact"`: the KL at
            each prefix, over the whole vocabulary; its gradient is 0 at the original weights, without the noise of the
            sampled tokens. `"topk"`: a lower bound of it, over the original's `kl_top_k` likeliest tokens and one lump
            of all others.
        kl_top_k (`int`, *optional*, defaults to `64`):
            Tokens that `kl="topk"` tells apart.
        original_cache_dir (`str`, *optional*):
            Where `"exact"` keeps the original model's last hidden states on the context-free rows, and `"topk"` its
            likeliest tokens, computed before the first step. Without it each step runs the original model again.
        context_free_path (`str`, *optional*):
            Folder of a store written by [`generate_context_free`]; an alternative to the trainer's argument.
        context_free_batch_size (`int`, *optional*):
            Context-free rows a micro-batch and process. Defaults to `per_device_train_batch_size`.
        context_free_top_up (`bool`, *optional*, defaults to `False`):
            Whether the store is topped up, before training, to as many rows as the run draws: every epoch has fresh
            ones, and none is seen twice.
    """

    kl_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the context-free rows' mean loss against the target rows' mean loss (unitless). "
            "Independent of the two sets' sizes. 0 turns the anchor off; 0.25 keeps most of the target gain. Default: "
            "1, or what kl_budget finds."
        },
    )
    kl_budget: float | None = field(
        default=None,
        metadata={
            "help": "KL(original || new) to keep to, in nats per token, in place of kl_weight, which then follows the "
            "KL of the steps."
        },
    )
    kl: str = field(
        default="sampled",
        metadata={
            "help": "'sampled': likelihood of the sampled tokens, the paper's. 'exact': KL(original || new) at each "
            "prefix over the whole vocabulary, without the noise of sampled tokens. 'topk': a lower bound of it over "
            "kl_top_k tokens.",
            "choices": list(ESTIMATES),
        },
    )
    kl_top_k: int = field(
        default=64,
        metadata={"help": "The original model's likeliest tokens that kl='topk' tells apart; others are one lump."},
    )
    original_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for what the original model says on the context-free rows, computed before the first step "
            "(kl='exact': 2 or 4 bytes times the hidden size a token; 'topk': 8 bytes times kl_top_k). Default: none, "
            "and each step runs the original model."
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
    context_free_top_up: bool = field(
        default=False,
        metadata={
            "help": "Sample as many rows as the run draws into the store, before training: no row is seen twice, so "
            "that none is memorised. They are kept, and a resumed run finds them."
        },
    )

    def __post_init__(self) -> None:
        check_choice(self, "kl", ESTIMATES)
        if self.kl_budget is not None:
            if self.kl_weight is not None:
                raise ValueError(
                    f"kl_budget={self.kl_budget!r} and kl_weight={self.kl_weight!r} are both set, and the budget "
                    "finds the weight: leave kl_weight out (None), or kl_budget."
                )
            if not (math.isfinite(self.kl_budget) and self.kl_budget > 0):
                raise ValueError(f"kl_budget must be finite and above 0 (nats per token), got {self.kl_budget!r}.")
        elif self.kl_weight is None:
            self.kl_weight = 1.0
        if self.kl_weight is not None and not (math.isfinite(self.kl_weight) and self.kl_weight >= 0):
            raise ValueError(f"kl_weight must be finite and at least 0, got {self.kl_weight!r}.")
        if self.original_cache_dir is not None and self.kl == "sampled":
            raise ValueError(
                "original_cache_dir keeps what the original model says, and kl='sampled' does not ask it: set kl to "
                "'exact' or 'topk', or leave the folder out."
            )
        if self.context_free_batch_size is not None and self.context_free_batch_size < 1:
            raise ValueError(f"context_free_batch_size must be at least 1, got {self.context_free_batch_size}.")
        super().__post_init__()
