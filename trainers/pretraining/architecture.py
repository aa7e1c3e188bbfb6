"""A new model of a stock architecture, from a mapping in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def new_model(
    architecture: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 124,
    attn_implementation: str | None = None,
    on_meta: bool = False,
) -> PreTrainedModel:
    """
    A causal language model with random weights, in float32.

    Args:
        architecture (`Mapping[str, Any]`):
            `model_type`, such as `"qwen3"`, and any field of its stock configuration. Without a `vocab_size` the model
            has as many tokens as the tokenizer.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Gives the ids of the special tokens, and is checked against the vocabulary.
        seed (`int`, *optional*, defaults to 124):
            Of the weights.
        attn_implementation (`str`, *optional*):
            As in `from_pretrained`.
        on_meta (`bool`, *optional*, defaults to `False`):
            Whether the weights are only shapes: to count them takes no memory then.

    Raises:
        ValueError: if there is no such type or field, or the tokenizer has more tokens than the model.
    """
    config = _config(architecture, tokenizer)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer):,} tokens, and the architecture has room for {config.vocab_size:,}. "
            "Raise vocab_size in architecture, which changes the number of parameters, or train a smaller tokenizer."
        )
    if not on_meta:
        set_seed(seed)
    with torch.device("meta") if on_meta else nullcontext():
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)


def _config(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedConfig:
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ValueError(f"architecture needs a model_type, such as 'qwen3'; it has {sorted(fields)}.")
    try:
        stock = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(f"architecture: transformers has no model_type {model_type[:80]!r}.") from error
    unknown = [name for name in fields if not hasattr(stock, name)]
    if unknown:
        raise ValueError(f"architecture: {model_type} has no field {unknown[0][:80]!r}.")
    if "vocab_size" not in fields and tokenizer is not None:
        fields["vocab_size"] = len(tokenizer)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    try:
        return AutoConfig.for_model(model_type, **(ids | fields))
    except Exception as error:  # a configuration checks its fields in its own way
        raise ValueError(f"architecture cannot be used: {error}") from error


def num_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters, and those without the input embeddings; a tied head counts once, as the embeddings."""
    total = sum(value.numel() for value in model.parameters())
    return total, total - model.get_input_embeddings().weight.numel()
