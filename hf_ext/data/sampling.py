"""Exact sampling of the original model: ancestral, temperature 1, no filter, nothing from a generation config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_ext.data.provenance import adapters_off, original_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["end_ids", "sample_rows", "sampling_mode", "start_ids"]

# Names under which tokenizers keep the separator of pre-training documents when their end token is a turn's end.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")


def start_ids(model: nn.Module, tokenizer: Any, start: str | Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the ids every row begins with; `start` as in [`generate_context_free`], errors as there."""
    if start == "bos":
        if tokenizer.bos_token_id is None:
            raise ValueError(
                'The tokenizer has no beginning token, so start="bos" names nothing. Pass start="separator" for a '
                "model trained on documents with a separator between them, or the text or ids that texts begin with."
            )
        ids = [tokenizer.bos_token_id]
    elif start == "separator":
        known = [tokenizer.added_tokens_encoder[name] for name in SEPARATORS if name in tokenizer.added_tokens_encoder]
        ids = [known[0] if known else tokenizer.eos_token_id]
        if ids == [None]:
            raise ValueError(
                "The tokenizer has no document separator and no end token. Pass start as text or token ids."
            )
    elif isinstance(start, str):
        ids = tokenizer(start, add_special_tokens=False)["input_ids"]
    else:
        ids = [int(token) for token in start]
    config = original_model(model).config.get_text_config()
    outside = [token for token in ids if not 0 <= token < config.vocab_size]
    if not ids or outside:
        raise ValueError(
            f"start must give at least one id, all below {config.vocab_size}; {start!r} gives {ids[:20]}."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and len(ids) + max_new_tokens > longest:
        raise ValueError(
            f"A start of {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the model's {longest} "
            f"positions. Pass max_new_tokens={longest - len(ids)} or less."
        )
    return ids


def end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return every id that ends a text: the tokenizer's, and those the checkpoint's generation config lists."""
    generation_config = getattr(original_model(model), "generation_config", None)
    listed = getattr(generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])]
    return sorted({int(token) for token in ids if token is not None})


@contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Original model, no dropout, no gradients; every module's training flag comes back as it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with adapters_off(model), torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
        # Weights cast without a graph must not serve a training step inside an autocast region of the caller's.
        torch.clear_autocast_cache()


def sample_rows(
    model: nn.Module,
    start: Tensor,
    num_rows: int,
    max_new_tokens: int,
    eos: Tensor,
    generator: torch.Generator,
    on_tokens: Callable[[int], Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Ancestral sampling with a key-value cache. All rows share the start and grow in step, so nothing is ever padded.

    Returns ids and log-probabilities, both of shape `(num_rows, max_new_tokens)` and zero after a row's end, and the
    lengths `(num_rows,)`.
    """
    ids = torch.zeros(num_rows, max_new_tokens, dtype=torch.long, device=start.device)
    logps = torch.zeros(num_rows, max_new_tokens, device=start.device)
    lengths = torch.zeros(num_rows, dtype=torch.long, device=start.device)
    alive = torch.arange(num_rows, device=start.device)  # rows that have not ended, in the cache's order
    keep = torch.zeros_like(alive)  # the start is the same in every row: computed once, its cache row is repeated
    inputs, cache = start[None], None
    for position in range(max_new_tokens):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        log_probs = torch.log_softmax(output.logits[:, -1].float(), dim=-1).expand(len(alive), -1)
        if log_probs[:, 0].isnan().any():  # one NaN or infinite logit makes the whole log-softmax NaN
            raise FloatingPointError(
                f"The model's logits are not finite at sampled token {position}: check its weights."
            )
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)  # (alive, 1)
        ids[alive, position] = drawn[:, 0]
        logps[alive, position] = log_probs.gather(1, drawn)[:, 0]
        lengths[alive] += 1
        on_tokens(len(alive))
        going = ~torch.isin(drawn[:, 0], eos)
        if position + 1 == max_new_tokens or not going.any():
            break
        # Ended rows leave the batch and the cache, so that they cost nothing from here on.
        cache = output.past_key_values
        if position == 0:
            cache.reorder_cache(keep[going])
        elif not going.all():
            cache.reorder_cache(going.nonzero()[:, 0])
        alive, inputs = alive[going], drawn[going]
    return ids, logps, lengths
