"""Configuration of pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import SchedulerType, TrainingArguments

from hf_ext.guards.numbers import COUNT, NON_NEGATIVE, SIZE, check_numbers
from hf_ext.trainers.base.config import license_field

BOUNDS = {
    "sequence_length": SIZE,
    "token_budget": COUNT,
    "sequences_per_step": SIZE,
    "z_loss_weight": NON_NEGATIVE,
    "cooldown_learning_rate": NON_NEGATIVE,
}


@dataclass
class PretrainingConfig(TrainingArguments):
    r"""
    Configuration of [`PretrainingTrainer`]: [`~transformers.TrainingArguments`] and these.

    Defaults that differ from the host's: `lr_scheduler_type` is `"cosine"`, `adam_beta2` is 0.95.

    Parameters:
        architecture (`dict`, *optional*):
            Of a new model: `model_type` and any field of its stock configuration.
        tokenizer_name (`str`, *optional*):
            Folder or Hub name of the tokenizer of the shards; the one that lies beside them by default.
        sequence_length (`int`, *optional*, defaults to `2048`):
            Tokens to predict in a sequence; a row of the shards has one more.
        token_budget (`int`, *optional*):
            Tokens to train on, rounded up to a whole step; it sets `max_steps` unless that is given.
        sequences_per_step (`int`, *optional*):
            Sequences of an optimiser step over all processes; it sets `gradient_accumulation_steps`.
        z_loss_weight (`float`, *optional*, defaults to `1e-4`):
            Weight of the z-loss, in nats per squared nat. 0 turns it off.
        cooldown_learning_rate (`float`, *optional*, defaults to `3e-5`):
            Learning rate at the end of the cosine. `None` leaves the schedule to the host.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "architecture"]

    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "The schedule; with cooldown_learning_rate it is 'cosine'."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of the second moment, per step."})
    architecture: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Of a new model: model_type and any field of its stock configuration."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of the shards' tokenizer. Default: the one that lies beside them."},
    )
    sequence_length: int = field(
        default=2048, metadata={"help": "Tokens to predict in a sequence; a row of the shards has one more."}
    )
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Tokens to train on, rounded up to a whole step; sets max_steps unless that is given."},
    )
    sequences_per_step: int | None = field(
        default=None,
        metadata={"help": "Sequences of an optimiser step over all processes; sets gradient_accumulation_steps."},
    )
    z_loss_weight: float = field(
        default=1e-4, metadata={"help": "Weight of the z-loss, in nats per squared nat. 0 turns it off."}
    )
    cooldown_learning_rate: float | None = field(
        default=3e-5,
        metadata={"help": "Learning rate at the end of the cosine. null leaves the schedule to the host."},
    )
    model_license: str | None = license_field()

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            problem = None if value is None else bounds.problem_of(value)
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        check_numbers(self)
        super().__post_init__()
        self._check_schedule()
        self._set_accumulation()
        if self.max_steps <= 0 and self.token_budget is not None:
            self.max_steps = -(-self.token_budget // self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimiser step over all processes."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps * self.sequence_length

    def _check_schedule(self) -> None:
        if self.cooldown_learning_rate is None:
            return
        if self.lr_scheduler_type != SchedulerType.COSINE:
            raise ValueError(
                f"cooldown_learning_rate={self.cooldown_learning_rate} is the end of a cosine, and lr_scheduler_type "
                f"is {SchedulerType(self.lr_scheduler_type).value!r}: set cooldown_learning_rate to null."
            )
        if self.lr_scheduler_kwargs:
            raise ValueError(
                f"lr_scheduler_kwargs={self.lr_scheduler_kwargs!r} has no effect with cooldown_learning_rate: leave "
                "one of both out."
            )
        if self.cooldown_learning_rate > self.learning_rate:
            raise ValueError(
                f"cooldown_learning_rate={self.cooldown_learning_rate} is above learning_rate={self.learning_rate}, "
                "down from which it leads."
            )

    def _set_accumulation(self) -> None:
        """Micro-batches of a step; a copy of these arguments has them already."""
        if self.sequences_per_step is None:
            return
        at_once = self.train_batch_size * self.world_size
        accumulation, remainder = divmod(self.sequences_per_step, at_once)
        if remainder:
            raise ValueError(
                f"sequences_per_step={self.sequences_per_step:,} is no multiple of the {at_once:,} sequences that "
                f"{self.world_size} process(es) take at once (per_device_train_batch_size="
                f"{self.per_device_train_batch_size}): change one of them."
            )
        if self.gradient_accumulation_steps not in (1, accumulation):
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not give sequences_per_step="
                f"{self.sequences_per_step:,}: leave it out."
            )
        self.gradient_accumulation_steps = accumulation
