"""Configuration of [`MixtureSFTTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_ext.bandits.mixture import FLOOR, REWARDS, WINDOW
from hf_ext.guards.numbers import SIZE
from hf_ext.trainers.base.config import check_choice
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig


@dataclass
class MixtureSFTConfig(WeightedSFTConfig):
    r"""
    Configuration of [`MixtureSFTTrainer`]: [`WeightedSFTConfig`] and what its sources are mixed by.

    Parameters:
        reward (`str`, *optional*, defaults to `"alignment"`):
            `"alignment"`: cosine of the gradients of source and target; `"loss"`; `"probe_drop"`: fall of the
            target's loss.
        reward_every (`int`, *optional*, defaults to `4`):
            Optimiser steps from one measurement to the next.
        target_rows (`int`, *optional*, defaults to `32`):
            Target rows of a measurement, over all processes.
        floor_share (`float`, *optional*, defaults to `0.02`):
            Least share of a source.
        reward_window (`float`, *optional*, defaults to `100.0`):
            Observed micro-batches after which one has faded to 1/e.
    """

    reward: str = field(
        default="alignment",
        metadata={
            "help": "What a source is judged by. 'alignment': cosine of its gradient and the target's. "
            "'probe_drop': fall of the target's loss. 'loss': its own training loss, which likes noise.",
            "choices": list(REWARDS),
        },
    )
    reward_every: int = field(
        default=4,
        metadata={
            "help": "Optimiser steps from one measurement to the next. A measurement costs a step on target_rows rows."
        },
    )
    target_rows: int = field(
        default=32, metadata={"help": "Prepared target rows of a measurement, over all processes."}
    )
    floor_share: float = field(
        default=0.02,
        metadata={"help": "Least share of each source (at most 1 / number of sources): none is lost sight of."},
    )
    reward_window: float = field(
        default=100.0,
        metadata={"help": "Observed micro-batches after which one has faded to 1/e: rewards drift in training."},
    )

    def __post_init__(self) -> None:
        check_choice(self, "reward", REWARDS)
        numbers = {"reward_every": SIZE, "target_rows": SIZE, "floor_share": FLOOR, "reward_window": WINDOW}
        for name, bounds in numbers.items():
            if (problem := bounds.problem_of(getattr(self, name))) is not None:
                raise ValueError(f"{name} {problem}.")
        super().__post_init__()
