"""What a pretraining will take, before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_ext.trainers.pretraining.architecture import num_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_ext.trainers.pretraining.config import PretrainingConfig

STATE_BYTES = 16  # a parameter: weight, gradient and the two moments of AdamW, in float32
LOGIT_BYTES = 14  # a logit in bf16: itself, in float32, its softmax and its gradient
_GIB = 2**30


@dataclass(frozen=True)
class TrainingPlan:
    """
    Size, length and cost of a pretraining.

    Args:
        num_parameters, num_without_embeddings (`int`):
            Of the model, and without its input embeddings.
        num_steps, tokens_per_step (`int`):
            Of the training.
        token_budget (`int`, *optional*):
            Tokens that were asked for.
        epochs (`float`, *optional*):
            Passes over the shards; `None` where they are not known.
        activation_bytes (`int`):
            Of a device, about: what the backward pass needs of one micro-batch.
        num_devices (`int`):
            That train together.
        teraflops (`float`):
            That a device keeps up, in 10^12 operations a second.
        hourly_price (`float`):
            Dollars for an hour of a device.
    """

    num_parameters: int
    num_without_embeddings: int
    num_steps: int
    tokens_per_step: int
    token_budget: int | None
    epochs: float | None
    activation_bytes: int
    num_devices: int
    teraflops: float
    hourly_price: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps."""
        return self.num_steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """6 operations a parameter and token, as the paper counts: forward 2, backward 4, without attention's own."""
        return 6.0 * self.num_parameters * self.num_tokens

    @property
    def hours(self) -> float:
        """Of all devices together, from the first step to the last."""
        return self.flops / (self.teraflops * 1e12 * self.num_devices) / 3600

    @property
    def cost(self) -> float:
        """Dollars."""
        return self.hours * self.num_devices * self.hourly_price

    def to_text(self) -> str:
        """A line a figure."""
        state = self.num_parameters * STATE_BYTES
        whole = (state + self.activation_bytes) / _GIB
        sharded = (state / self.num_devices + self.activation_bytes) / _GIB
        budget = "" if self.token_budget is None else f" (asked for: {self.token_budget:,})"
        lines = {
            "parameters": f"{self.num_parameters:,} ({self.num_without_embeddings:,} without the input embeddings)",
            "tokens": f"{self.num_tokens:,} in {self.num_steps:,} steps of {self.tokens_per_step:,}{budget}",
            "tokens a parameter": f"{self.num_tokens / self.num_parameters:.2f}",
            "epochs": "not known: name the shards in dataset_name" if self.epochs is None else self._epochs(),
            "operations": f"{self.flops:.3g} (6 a parameter and token)",
            "memory": f"about {whole:.1f} GiB a device" + (
                f", {sharded:.1f} GiB where {self.num_devices} share the model (FSDP)" if self.num_devices > 1 else ""
            ),
            "time": f"{self.hours:,.2f} hours on {self.num_devices:,} device(s) at {self.teraflops:g} TFLOP/s each",
            "cost": f"${self.cost:,.2f} at ${self.hourly_price:g} an hour and device",
        }  # fmt: skip
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())

    def _epochs(self) -> str:
        assert self.epochs is not None
        repeated = " (the shards have fewer tokens than the plan: they are repeated)" if self.epochs > 1 else ""
        return f"{self.epochs:.3f}{repeated}"


def plan_of(
    model: PreTrainedModel,
    args: PretrainingConfig,
    *,
    num_sequences: int | None,
    num_devices: int,
    teraflops: float,
    hourly_price: float,
) -> TrainingPlan:
    """
    The plan of a training.

    Args:
        model (`PreTrainedModel`):
            Its weights may be on the meta device.
        args ([`PretrainingConfig`]):
            Of the training.
        num_sequences (`int`, *optional*):
            Of the shards.
        num_devices (`int`), teraflops (`float`), hourly_price (`float`):
            As in [`TrainingPlan`].

    Raises:
        ValueError: if nothing says how long to train.
    """
    sequences_per_step = args.tokens_per_step // args.sequence_length
    num_steps = args.max_steps
    if num_steps <= 0:
        if num_sequences is None:
            raise ValueError("Nothing says how long to train: give token_budget, max_steps or dataset_name.")
        num_steps = -(-int(num_sequences * args.num_train_epochs) // sequences_per_step)
    total, without_embeddings = num_parameters(model)
    return TrainingPlan(
        num_parameters=total,
        num_without_embeddings=without_embeddings,
        num_steps=num_steps,
        tokens_per_step=args.tokens_per_step,
        token_budget=args.token_budget,
        epochs=None if num_sequences is None else num_steps * sequences_per_step / num_sequences,
        activation_bytes=activation_bytes(model.config, args),
        num_devices=num_devices,
        teraflops=teraflops,
        hourly_price=hourly_price,
    )


def activation_bytes(config: Any, args: PretrainingConfig) -> int:
    """
    What the backward pass of a micro-batch needs, about; attention's scores are not kept, as in a fused kernel.

    A layer keeps 9 vectors of the model's width a token (inputs and outputs of two norms, queries, keys and values
    before and after theirs, attention and its output) and 4 of the feed-forward's; with activation checkpointing its
    input alone, and one layer at a time is whole.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = 2 if args.bf16 or args.fp16 else 4
    tokens = args.per_device_train_batch_size * args.sequence_length
    layer = size * (9 * width + 4 * inner)
    is_checkpointed = bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing)
    all_layers = layers * size * width + layer if is_checkpointed else layers * layer
    return tokens * (all_layers + config.vocab_size * LOGIT_BYTES)
