"""What the model at hand says to rows that an engine has sampled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from hf_ext.data.provenance import original_model
from hf_ext.data.sampling import sampling_mode

if TYPE_CHECKING:
    from torch import nn

FLOATS = 2**26  # logits of one forward: 256 MiB in float32

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""A prompt and what was sampled after it."""


def logits_of_rows(
    model: nn.Module, pairs: Sequence[Pair], autocast_dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """
    Logits before each sampled token, `(tokens, vocabulary)` in float32, pair by pair; adapters are off.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            On its device.
        pairs (`Sequence[Pair]`):
            Prompts and sampled ids, neither empty.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of the forward.
    """
    base = original_model(model)
    device = next(base.parameters()).device
    vocab_size = base.config.get_text_config().vocab_size
    can_drop = "logits_to_keep" in inspect.signature(type(base).forward).parameters
    for batch in _batches(pairs, vocab_size):
        # The last token's logits are of no use, so it is not read. Padding stands behind a row, where it is not seen.
        rows = [[*prompt, *ids[:-1]] for prompt, ids in batch]
        width = max(map(len, rows))
        inputs = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=device)
        first = min(len(prompt) for prompt, _ in batch) - 1
        options = {"logits_to_keep": width - first} if can_drop else {}
        with sampling_mode(model), torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
            logits = base(input_ids=inputs, use_cache=False, **options).logits
        dropped = width - logits.shape[1]
        for (prompt, ids), of_row in zip(batch, logits, strict=True):
            begin = len(prompt) - 1 - dropped
            yield of_row[begin : begin + len(ids)].float()


def logps_of_rows(
    model: nn.Module, pairs: Sequence[Pair], autocast_dtype: torch.dtype | None = None
) -> list[tuple[float, ...]]:
    """Log-probabilities in nats of the sampled ids, at temperature 1; arguments as of [`logits_of_rows`]."""
    logps: list[tuple[float, ...]] = []
    for (_, ids), logits in zip(pairs, logits_of_rows(model, pairs, autocast_dtype), strict=True):
        index = torch.tensor(ids, device=logits.device)[:, None]
        logps.append(tuple(logits.log_softmax(dim=-1).gather(1, index)[:, 0].tolist()))
    return logps


def _batches(pairs: Sequence[Pair], vocab_size: int) -> Iterator[list[Pair]]:
    """Neighbours, as many as the logits of one forward may be."""
    batch: list[Pair] = []
    for pair in pairs:
        width = max(len(prompt) + len(ids) for prompt, ids in [*batch, pair])
        if batch and (len(batch) + 1) * width * vocab_size > FLOATS:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
