"""Exact sampling of the original model: ancestral, temperature 1, no filter, nothing from a generation config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_ext._upstream.cache import cache_argument, cache_of
from hf_ext.data.provenance import as_original, original_model
from hf_ext.data.slots import SlotCache

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BLOCK = 256  # tokens whose probabilities are summed at once when one is drawn

# Names under which tokenizers keep the separator of pre-training documents when their end token is a turn's end.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")


def start_ids(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, start: str | Sequence[int], max_new_tokens: int
) -> list[int]:
    """Return the ids every row begins with; `start` as in [`generate_context_free`], errors as there."""
    if start == "bos":
        if tokenizer.bos_token_id is None:
            raise ValueError(
                'The tokenizer has no beginning token, so start="bos" names nothing. Pass start="separator" for a '
                "model trained on documents with a separator between them, or the text or ids that texts begin with."
            )
        ids = [tokenizer.bos_token_id]
    elif start == "separator":
        id_of = tokenizer.added_tokens_encoder
        ids = [next((id_of[name] for name in SEPARATORS if name in id_of), tokenizer.eos_token_id)]
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


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every id that ends a text: the tokenizer's, and those the checkpoint's generation config lists."""
    generation_config = getattr(original_model(model), "generation_config", None)
    config_ids = getattr(generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(config_ids if isinstance(config_ids, list | tuple) else [config_ids])]
    return sorted({int(token) for token in ids if token is not None})


@contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Original model, no dropout, no gradients; everything in the model comes back as it was."""
    try:
        with as_original(model), torch.no_grad():
            yield
    finally:
        # Weights cast without a graph must not serve a training step inside an autocast region of the caller's.
        torch.clear_autocast_cache()


def row_uniforms(seed: int, rows: range, count: int) -> Tensor:
    """Return `count` uniform numbers for each row, `(rows, count)`, float64: a stream for each (`seed`, row)."""
    streams = (np.random.default_rng([seed, row]) for row in rows)
    return torch.from_numpy(np.stack([stream.random(count) for stream in streams]))


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """
    Draw a token a row by inverting the distribution function: several times faster than `torch.multinomial` on a CPU.

    The inversion goes by blocks, then inside one, in float64, so that no probability is lost to the rounding of a long
    running sum. What remains is the rounding of a float32 softmax.

    Args:
        logits (`torch.Tensor` of shape `(rows, vocabulary)`):
            Any floating dtype; or one row for all.
        uniforms (`torch.Tensor` of shape `(rows,)`):
            Float64, in [0, 1).
        temperature (`float`, *optional*, defaults to `1.0`):
            The logits are divided by it before a token is drawn.

    Returns:
        tokens and their log-probabilities in nats (float32), each `(rows,)`; these are at temperature 1.

    Raises:
        FloatingPointError: if a logit is NaN or +infinite.
    """
    if temperature != 1.0:
        tokens, _ = draw(logits.float() / temperature, uniforms)
        all_logps = logits.float().log_softmax(dim=-1).expand(len(uniforms), -1)
        return tokens, all_logps.gather(1, tokens[:, None])[:, 0]
    peak = logits.amax(dim=-1, keepdim=True).float()
    weights = logits.to(torch.float32, copy=True).sub_(peak).exp_()  # in place: most of the time is memory traffic
    if weights.shape[-1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK))  # padding has no mass: never drawn
    weights = weights.view(len(logits), -1, BLOCK).expand(len(uniforms), -1, -1)
    # Apple's GPUs have no float64; what is left to do is small.
    place = torch.device("cpu") if logits.device.type == "mps" else logits.device
    upto = weights.sum(dim=-1).to(place, torch.float64).cumsum(dim=-1)  # (rows, blocks)
    total = upto[:, -1:]
    if not total.isfinite().all():
        raise FloatingPointError("The model's logits are not finite: check its weights.")
    target = _below(uniforms.to(place)[:, None] * total, total)
    block = torch.searchsorted(upto, target, right=True)  # (rows, 1): the first whose sum is above the target
    sum_before = torch.where(block > 0, upto.gather(1, (block - 1).clamp(min=0)), 0.0)
    chosen = weights[torch.arange(len(uniforms), device=logits.device), block[:, 0].to(logits.device)]
    inside = chosen.to(place, torch.float64).cumsum(dim=-1)  # (rows, BLOCK)
    share = (target - sum_before) / (upto.gather(1, block) - sum_before)
    token = torch.searchsorted(inside, _below(share * inside[:, -1:], inside[:, -1:]), right=True) + block * BLOCK
    token = token.to(logits.device)
    logit = logits.expand(len(uniforms), -1).gather(1, token).float()
    logps = logit - peak - total.log().to(logits.device, torch.float32)
    return token[:, 0], logps[:, 0]


def _below(values: Tensor, bound: Tensor) -> Tensor:
    """`values`, where rounding has brought one up to the bound the next smaller number."""
    return torch.minimum(values, torch.nextafter(bound, torch.zeros_like(bound)))


class _Rows:
    """Rows as they grow, on the CPU: ids and log-probabilities are zero after a row's end."""

    def __init__(
        self,
        uniforms: Tensor,
        eos: Tensor,
        limits: Tensor | None,
        on_tokens: Callable[[int], Any],
        ends: int = 1,
        temperature: float = 1.0,
    ) -> None:
        self.uniforms = uniforms
        self.temperature = temperature
        self.eos = eos.cpu()
        self.on_tokens = on_tokens
        num_rows, longest = uniforms.shape
        self.limits = torch.full((num_rows,), longest) if limits is None else limits
        self.ids = torch.zeros(num_rows, longest, dtype=torch.long)
        self.logps = torch.zeros(num_rows, longest)
        self.lengths = torch.zeros(num_rows, dtype=torch.long)
        self.ends_left = torch.full((num_rows,), ends)

    def extend(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Draw the next token of `rows` (numbers, in the logits' order or sharing one row of logits); which go on?"""
        at = self.lengths[rows]
        tokens, logps = (values.cpu() for values in draw(logits, self.uniforms[rows, at], self.temperature))
        self.ids[rows, at] = tokens
        self.logps[rows, at] = logps
        self.lengths[rows] += 1
        self.on_tokens(len(rows))
        self.ends_left[rows] -= torch.isin(tokens, self.eos).long()
        return (self.ends_left[rows] > 0) & (at + 1 < self.limits[rows])

    def last(self, rows: Tensor, device: torch.device) -> Tensor:
        """The last token of each of `rows`."""
        return self.ids[rows, self.lengths[rows] - 1].to(device)


def sample_rows(
    model: nn.Module,
    start: Tensor,
    uniforms: Tensor,
    eos: Tensor,
    *,
    batch_size: int,
    refill: bool,
    on_tokens: Callable[[int], Any] = lambda count: None,
    limits: Tensor | None = None,
    ends: int = 1,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Ancestral sampling with a key-value cache; each row follows its own random numbers, whatever its neighbours do.

    Args:
        model (`PreTrainedModel`):
            In [`sampling_mode`].
        start (`torch.Tensor` of shape `(start_length,)`):
            Ids every row begins with, on the model's device.
        uniforms (`torch.Tensor` of shape `(rows, max_new_tokens)`):
            From [`row_uniforms`].
        eos (`torch.Tensor`):
            Ids that end a row.
        batch_size (`int`):
            Rows sampled together.
        refill (`bool`):
            Whether a row that ends makes room for the next one at once ([`can_refill`] tells if the model allows it).
            Otherwise a batch begins together, and its rows only leave.
        on_tokens (callable):
            Told the number of tokens sampled, a step.
        limits (`torch.Tensor` of shape `(rows,)`, *optional*):
            A limit a row below `max_new_tokens`, each at least 1.
        ends (`int`, *optional*, defaults to `1`):
            End tokens after which a row is over.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of the draws.

    Returns:
        ids and log-probabilities in nats, both `(rows, max_new_tokens)` and zero after a row's end, and the lengths
        `(rows,)`, on the CPU.
    """
    rows = _Rows(uniforms, eos, limits, on_tokens, ends, temperature)
    (_refilled if refill else _in_step)(model, start, rows, batch_size)
    return rows.ids, rows.logps, rows.lengths


def sample_after(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    eos: Tensor,
    *,
    batch_size: int,
    pads: bool,
    on_tokens: Callable[[int], Any] = lambda count: None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Ancestral sampling of one row after each prompt; as [`sample_rows`] else.

    Args:
        model, uniforms, eos, batch_size, on_tokens, temperature:
            As in [`sample_rows`].
        prompts (`Sequence[Sequence[int]]`):
            Ids that the rows begin with, each its own.
        pads (`bool`):
            Whether prompts of several lengths may share a batch, padded on the left; a model that takes no mask or
            positions gets batches of one length.

    Returns:
        As [`sample_rows`].
    """
    rows = _Rows(uniforms, eos, None, on_tokens, temperature=temperature)
    device = next(model.parameters()).device
    for batch in _batches_by_length(prompts, batch_size, pads):
        _after(model, [prompts[row] for row in batch], torch.tensor(batch), rows, device)
    return rows.ids, rows.logps, rows.lengths


def _batches_by_length(prompts: Sequence[Sequence[int]], batch_size: int, pads: bool) -> Iterator[list[int]]:
    """Numbers of prompts of like length, or of one length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    batch: list[int] = []
    for row in order:
        is_other = bool(batch) and not pads and len(prompts[row]) != len(prompts[batch[0]])
        if len(batch) == batch_size or is_other:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _after(
    model: nn.Module, prompts: Sequence[Sequence[int]], alive: Tensor, rows: _Rows, device: torch.device
) -> None:
    """One batch: prompts end in the same column, and their rows grow in step."""
    width = max(map(len, prompts))
    inputs = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    is_padded = not bool(mask.all())
    cache = None
    while True:
        places: dict[str, Tensor] = {}
        if is_padded:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            places = {"attention_mask": mask, "position_ids": positions[:, -inputs.shape[1] :]}
        output = model(input_ids=inputs, use_cache=True, **cache_argument(model, cache), **places)
        going = rows.extend(alive, output.logits[:, -1])
        if not going.any():
            return
        cache = cache_of(output)
        if not going.all():
            cache.reorder_cache(going.nonzero()[:, 0])
        alive = alive[going]
        mask = torch.nn.functional.pad(mask[going.to(device)], (0, 1), value=1)
        inputs = rows.last(alive, device)[:, None]


def _refilled(model: nn.Module, start: Tensor, rows: _Rows, batch_size: int) -> None:
    """Keep `batch_size` rows alive until none is waiting; then ended rows leave the batch."""
    started = model(input_ids=start[None], use_cache=True)
    everyone = torch.arange(len(rows.ids))
    waiting = everyone[rows.extend(everyone, started.logits[:, -1])].tolist()[::-1]
    alive = [waiting.pop() for _ in range(min(batch_size, len(waiting)))]  # the row in each slot
    if not alive:
        return
    cache = SlotCache(cache_of(started), len(alive), rows.ids.shape[1])
    while alive:
        numbers = torch.tensor(alive)
        going = rows.extend(numbers, cache.step(model, rows.last(numbers, start.device)))
        ended = (~going).nonzero()[:, 0].tolist()
        free = ended[: len(waiting)]
        if free:
            cache.refill(free)
        for slot in free:
            alive[slot] = waiting.pop()
        for slot in reversed(ended[len(free) :]):
            cache.remove(slot)
            alive[slot] = alive[-1]
            alive.pop()


def _in_step(model: nn.Module, start: Tensor, rows: _Rows, batch_size: int) -> None:
    """One batch after the other. All rows of one share the start and grow in step, so nothing is ever padded."""
    for alive in torch.arange(len(rows.ids)).split(batch_size):
        inputs = start[None]
        cache = None
        while True:
            output = model(input_ids=inputs, use_cache=True, **cache_argument(model, cache))
            going = rows.extend(alive, output.logits[:, -1])
            if not going.any():
                break
            # Ended rows leave the batch and the cache; the start's one row of the cache is repeated for each.
            if cache is None:
                cache_of(output).reorder_cache(torch.zeros(int(going.sum()), dtype=torch.long))
            elif not going.all():
                cache_of(output).reorder_cache(going.nonzero()[:, 0])
            alive = alive[going]
            cache = cache_of(output)
            inputs = rows.last(alive, start.device)[:, None]
