"""KL between two models from their last hidden states and output heads, as TRL's distillation has it: no logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from hf_ext._upstream.fused_head import base_of
from hf_ext._upstream.sharding import whole

TOUCHED = (
    (
        "trl.kernels.chunked_divergence",
        "ChunkedDivergenceFunction",
        "the exact KL could not be had without the logits of both models",
    ),
)

# The names under which a configuration has what its logits are multiplied by, in the order in which TRL looks for them
# (trl 1.16, `add_fused_lm_head`), and the one that most models divide by.
MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVISOR = "logits_scaling"
MULTIPLIED_DIVISOR = ("hyperclovax",)  # model types that multiply by what the others divide by
TILE_VALUES = 2**24  # logits that are there at one time: 64 MiB in float32


@dataclass(frozen=True)
class OutputHead:
    """
    What makes logits of a last hidden state.

    Args:
        weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`), bias (`torch.Tensor` or `None`):
            Of the linear layer.
        scale (`float`):
            What its output is multiplied by.
        softcap (`float` or `None`):
            $c$ where logits $z$ are bent to $c \\tanh(z / c)$ afterwards.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `(..., vocab_size)` in float32 of hidden states `(..., hidden_size)`."""
        # As TRL's kernels: factors in the precision of the hidden states, their products in float32.
        weight = self.weight.to(hidden.dtype).float()
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.nn.functional.linear(hidden.float(), weight, bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def copy(self, device: torch.device | None = None) -> OutputHead:
        """The head as it is now, which no training moves; on another device if one is named."""
        device = device or self.weight.device
        weight = self.weight.detach().to(device, copy=True)
        bias = None if self.bias is None else self.bias.detach().to(device, copy=True)
        return OutputHead(weight, bias, self.scale, self.softcap)


def output_head(model: Module) -> OutputHead:
    """
    The output head of a causal language model (or `PeftModel`), its weights those that its forward would use now.

    Of a sharded model they are gathered, so every process must ask. Whether a model's logits are made as this head
    makes them is for [`head_error`] to tell.
    """
    base = base_of(model)
    layer = base.get_output_embeddings()
    config = base.config.get_text_config()
    scale = next((value for name in MULTIPLIERS if (value := getattr(config, name, None)) is not None), None)
    divisor = getattr(config, DIVISOR, None)
    if scale is None and divisor is not None:
        scale = divisor if config.model_type in MULTIPLIED_DIVISOR else 1 / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(layer, "bias", None)
    scale = 1.0 if scale is None else float(scale)
    return OutputHead(whole(layer.weight), None if bias is None else whole(bias), scale, softcap)


@torch.no_grad()
def head_error(model: Module) -> float:
    """Largest difference between a model's own logits of a few tokens and its [`output_head`]'s, over the largest."""
    base = base_of(model)
    device = base.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % base.config.get_text_config().vocab_size
    with last_hidden_states(base) as states:
        logits = base(input_ids=ids, use_cache=False).logits.float()
    head = output_head(base)
    difference = logits - head.logits(states[-1].to(head.weight.device))
    return float(difference.abs().max() / logits.abs().max())


@contextmanager
def last_hidden_states(model: Module) -> Iterator[list[Tensor]]:
    """A list that gets the last hidden states `(batch, seq_len, hidden_size)` of each forward, with their gradient."""
    states: list[Tensor] = []

    def record(module: Module, inputs: Any, output: Any) -> None:
        states.append(output.last_hidden_state)

    # What TRL's fused head calls, too (trl 1.16).
    handle = base_of(model).base_model.register_forward_hook(record)
    try:
        yield states
    finally:
        handle.remove()


def chunked_kl(original_hidden: Tensor, original_head: OutputHead, new_hidden: Tensor, new_head: OutputHead) -> Tensor:
    """
    KL(original || new) of the next-token distributions, by TRL on tiles of tokens and vocabulary.

    Args:
        original_hidden, new_hidden (`torch.Tensor` of shape `(tokens, hidden_size)`):
            Last hidden states at the same positions.
        original_head, new_head ([`OutputHead`]):
            The heads of the two; the gradient flows to the new hidden states and the new head alone.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: nats, in float32. At equal states and heads value and gradient are 0.
    """
    device = new_head.weight.device
    divergence, _ = ChunkedDivergenceFunction.apply(
        new_hidden.to(device),
        new_head.weight,
        new_head.bias,
        original_hidden.to(device),
        original_head.weight,
        original_head.bias,
        0.0,  # beta: KL(teacher || student)
        1.0,  # temperature
        new_head.scale,
        new_head.softcap,
        original_head.scale,
        original_head.softcap,
    )
    return divergence


@torch.no_grad()
def top_k_log_probs(hidden: Tensor, head: OutputHead, k: int) -> tuple[Tensor, Tensor]:
    """
    The `k` likeliest next tokens.

    Returns:
        `tuple`: their ids and their log-probabilities in nats, both `(tokens, k)`.
    """
    tiles = [head.logits(tile).log_softmax(-1).topk(k, dim=-1) for tile in _tiles(hidden, head)]
    return torch.cat([tile.indices for tile in tiles]), torch.cat([tile.values for tile in tiles])


def chosen_log_probs(hidden: Tensor, head: OutputHead, ids: Tensor) -> Tensor:
    """
    Log-probabilities of chosen next tokens, with their gradient; tiles of logits are computed again for it.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden_size)`):
            Last hidden states.
        head ([`OutputHead`]):
            The head.
        ids (`torch.Tensor` of shape `(tokens, k)`):
            The tokens.

    Returns:
        `torch.Tensor` of shape `(tokens, k)`: nats.
    """
    tiles = _tiles(hidden, head)
    parts = zip(tiles, ids.split([len(tile) for tile in tiles]), strict=True)
    return torch.cat([_checkpointed(tile, head, chosen) for tile, chosen in parts])


def _checkpointed(hidden: Tensor, head: OutputHead, ids: Tensor) -> Tensor:
    def log_probs(states: Tensor) -> Tensor:
        return head.logits(states).log_softmax(-1).gather(-1, ids)

    values: Tensor = checkpoint(log_probs, hidden, use_reentrant=False, preserve_rng_state=False)
    return values


def _tiles(hidden: Tensor, head: OutputHead) -> tuple[Tensor, ...]:
    rows = max(1, TILE_VALUES // len(head.weight))
    return hidden.to(head.weight.device).split(rows)


__all__ = [
    "TOUCHED",
    "OutputHead",
    "chosen_log_probs",
    "chunked_kl",
    "head_error",
    "last_hidden_states",
    "output_head",
    "top_k_log_probs",
]
