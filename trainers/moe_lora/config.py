"""Configuration of a mixture of LoRA experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_ext.guards.numbers import POSITIVE, SIZE, Bounds
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig

_BOUNDS = {
    "num_experts": SIZE,
    "rounds": Bounds(int, 1, math.inf, "a whole number, at least 1"),  # of any size: until it is stopped
    "e_step_temperature": POSITIVE,
    "gate_ridge": POSITIVE,
}


@dataclass
class LoraMixtureConfig(WeightedSFTConfig):
    r"""
    Configuration of [`LoraMixtureTrainer`]: [`WeightedSFTConfig`] of an adapter's training in a round, and four more.

    `num_train_epochs` or `max_steps` are those of one adapter in one round. `normalize` is `"tokens"` here: divided
    by its weights, a batch of rows that others handle would pull as hard as one of the expert's own.

    Parameters:
        num_experts (`int`, *optional*, defaults to `2`):
            Number of adapters. One is plain LoRA, without a gate.
        rounds (`int`, *optional*, defaults to `3`):
            Rounds of EM; a finished run goes on when it is raised.
        e_step_temperature (`float`, *optional*, defaults to `0.1`):
            What a row's log-likelihood is divided by in the E-step, as a share of its supervised tokens.
        gate_ridge (`float`, *optional*, defaults to `0.1`):
            Penalty of the gate's squared coefficients, in nats a row.
    """

    normalize: str = field(
        default="tokens",
        metadata={
            "help": "Denominator of an adapter's loss: 'tokens'. 'weights' is refused with more than one adapter: a "
            "batch of rows that others handle would pull as hard as one of its own.",
            "choices": ["weights", "tokens"],
        },
    )
    num_experts: int = field(default=2, metadata={"help": "Number of LoRA adapters; 1 is plain LoRA, without a gate."})
    rounds: int = field(default=3, metadata={"help": "Rounds of EM; raise it to go on after the last."})
    e_step_temperature: float = field(
        default=0.1,
        metadata={
            "help": "The E-step divides a row's log-likelihood (nats) by this share of its supervised tokens. Higher: "
            "rows are shared among the adapters; lower: each row soon has one."
        },
    )
    gate_ridge: float = field(
        default=0.1,
        metadata={
            "help": "Penalty of the gate's squared coefficients on standardised embeddings, nats a row. Too low, and "
            "the gate repeats the first assignment of every row."
        },
    )

    def __post_init__(self) -> None:
        for name, bounds in _BOUNDS.items():
            problem = bounds.problem_of(getattr(self, name))
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        if self.num_experts > 1 and self.normalize == "weights":
            raise ValueError(
                "normalize='weights' makes a batch of rows that other experts handle pull as hard as one of the "
                "expert's own: leave it at 'tokens'."
            )
        super().__post_init__()
