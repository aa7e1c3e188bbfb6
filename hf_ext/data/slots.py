"""Slots for rows of different ages in one batch: a row that ends makes room for the next one at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from hf_ext._upstream.cache import cache_argument, cache_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

PROBED = 8  # sampled tokens of the rows on which a model shows whether it can be refilled


@dataclass
class _Window:
    """Where the rows are: `first[slot]` is a row's first column, `[low, end)` hold all rows alive."""

    first: list[int]
    low: int
    end: int
    num_columns: int


class SlotCache(Cache):
    """
    Keys and values of rows that began at different steps, as a left-padded batch over preallocated columns.

    Every row writes to the same column at a step. A row's columns are contiguous and end at the current one, so its
    position is its column less its first, and the mask is that of left padding. A row that enters gets the start's
    keys and values copied into the columns before the current one: those of a row that has ended.

    Args:
        started (`DynamicCache`):
            The model's cache after the start tokens, one row; see [`can_refill`] for what fits.
        num_slots (`int`):
            Rows in the batch.
        longest (`int`):
            Most tokens a row samples.
    """

    def __init__(self, started: DynamicCache, num_slots: int, longest: int) -> None:
        self.start_length = started.get_seq_length()
        # Columns to spare, so that the window moves back to the front only now and then.
        num_columns = self.start_length + longest + max(32, longest // 4)
        self.window = _Window([0] * num_slots, 0, self.start_length, num_columns)
        self.slot_layers = [_SlotLayer(self.window, layer.keys, layer.values) for layer in started.layers]
        super().__init__(layers=list(self.slot_layers))

    def step(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Feed one token `(slots,)` a row; return the logits after it `(slots, vocabulary)`."""
        first = torch.tensor(self.window.first, device=tokens.device)[:, None]  # (slots, 1)
        self.window.low = min(self.window.first)
        mask = None
        if max(self.window.first) > self.window.low:
            mask = (torch.arange(self.window.low, self.window.end + 1, device=tokens.device) >= first).long()
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=self.window.end - first,
            use_cache=True,
            **cache_argument(model, self),
        ).logits[:, -1]
        self.window.end += 1
        if self.window.end == self.window.num_columns:
            self._move_to_front()
        return logits

    def refill(self, slots: Sequence[int]) -> None:
        """Let new rows into `slots`, with nothing but the start behind them."""
        begin = self.window.end - self.start_length
        for slot in slots:
            self.window.first[slot] = begin
        index = torch.tensor(slots)
        for layer in self.slot_layers:
            layer.keys[index.to(layer.keys.device), :, begin : self.window.end] = layer.start_keys
            layer.values[index.to(layer.values.device), :, begin : self.window.end] = layer.start_values

    def remove(self, slot: int) -> None:
        """Take a slot out of the batch; the row of the last slot moves into it."""
        last = len(self.window.first) - 1
        columns = slice(self.window.first[-1], self.window.end)
        if slot < last:
            for layer in self.slot_layers:
                layer.keys[slot, :, columns] = layer.keys[last, :, columns]
                layer.values[slot, :, columns] = layer.values[last, :, columns]
        self.window.first[slot] = self.window.first[last]
        self.window.first.pop()

    def _move_to_front(self) -> None:
        low = min(self.window.first)
        width = self.window.end - low
        for layer in self.slot_layers:
            layer.keys[:, :, :width] = layer.keys[:, :, low : self.window.end].clone()
            layer.values[:, :, :width] = layer.values[:, :, low : self.window.end].clone()
        self.window.first = [first - low for first in self.window.first]
        self.window.low = 0
        self.window.end = width


class _SlotLayer(CacheLayerMixin):
    """One layer's columns; the window says which slots and columns are in use."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, window: _Window, start_keys: Tensor, start_values: Tensor) -> None:
        super().__init__()
        self.window = window
        self.start_keys = start_keys
        self.start_values = start_values
        self.keys = self._columns(start_keys)
        self.values = self._columns(start_values)
        self.is_initialized = True

    def _columns(self, start: Tensor) -> Tensor:
        _, heads, length, width = start.shape
        columns = start.new_zeros(len(self.window.first), heads, self.window.num_columns, width)
        columns[:, :, :length] = start
        return columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do: the start has shown shapes, dtype and device."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the step's column; return the columns in use, as views."""
        slots = len(self.window.first)
        low = self.window.low
        end = self.window.end
        self.keys[:slots, :, end] = key_states[:, :, 0]
        self.values[:slots, :, end] = value_states[:, :, 0]
        return self.keys[:slots, :, low : end + 1], self.values[:slots, :, low : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns the mask spans, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before the current one."""
        return self.window.end - self.window.low

    def get_max_length(self) -> int:
        """Columns there are."""
        return self.window.num_columns


@torch.no_grad()
def can_refill(model: nn.Module, start: Tensor, longest: int) -> bool:
    """
    Whether rows of different ages may share a batch of this model.

    Its cache must keep the keys and values of every token (no recurrent state, no window shorter than a row), and on
    two probed rows, one of which enters a used slot, the next-token distributions must be those of a plain forward
    without a cache. The gap is a mean total variation; the model's own cached steps show what rounding makes of it.

    Args:
        model (`PreTrainedModel`):
            In the state it samples in: evaluation mode, adapters off, inside the autocast region.
        start (`torch.Tensor` of shape `(start_length,)`):
            Ids every row begins with.
        longest (`int`):
            Most tokens a row samples.
    """
    try:
        started = model(input_ids=start[None], use_cache=True)
        if not _keeps_every_token(cache_of(started), len(start), len(start) + longest):
            return False
        likely = started.logits[0, -1].argsort(descending=True)[: 2 * PROBED].repeat(2 * PROBED)
        rows = likely[: 2 * PROBED].view(2, PROBED)
        gap, rounding = _probe(model, start, rows, cache_of(started))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model class answers to a mask, positions or cache it does not know
        return False
    return gap <= max(1e-5, torch.finfo(started.logits.dtype).eps) + 4 * rounding  # False for NaN


def _keeps_every_token(cache: Cache, start_length: int, row_length: int) -> bool:
    if type(cache) is not DynamicCache:
        return False
    for layer in cache.layers:
        sliding = isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window > row_length
        if not (type(layer) is DynamicLayer or sliding):
            return False
        for states in (layer.keys, layer.values):
            if states.dim() != 4 or states.shape[::2] != (1, start_length):  # (row, heads, tokens, width)
                return False
    return True


def _probe(model: nn.Module, start: Tensor, rows: Tensor, started: DynamicCache) -> tuple[float, float]:
    """Mean total variation to a plain forward: of the rows in slots, and of the model's own cached steps."""
    texts = torch.cat([start.expand(2, -1), rows], dim=1)
    plain = model(input_ids=texts, use_cache=False).logits[:, len(start) :].float().softmax(-1)  # after each sampled

    late = PROBED // 2  # the second row enters here; until then another row wears its slot
    cache = SlotCache(started, 2, 2 * PROBED)
    slot_distances = []
    for step in range(PROBED):
        if step == late:
            cache.refill([1])
        tokens = torch.stack([rows[0, step], rows[1, step - late]])
        probabilities = cache.step(model, tokens).float().softmax(-1)
        slot_distances.append(_total_variation(probabilities[0], plain[0, step]))
        if step >= late:
            slot_distances.append(_total_variation(probabilities[1], plain[1, step - late]))

    stock_cache = cache_of(model(input_ids=texts[:, : len(start)], use_cache=True))
    stock_distances = []
    for step in range(late):
        output = model(input_ids=rows[:, step : step + 1], use_cache=True, **cache_argument(model, stock_cache))
        stock_cache = cache_of(output)
        stock_distances.append(_total_variation(output.logits[:, -1].float().softmax(-1), plain[:, step]))
    return float(torch.stack(slot_distances).mean()), float(torch.stack(stock_distances).mean())


def _total_variation(p: Tensor, q: Tensor) -> Tensor:
    return 0.5 * (p - q).abs().sum(-1).mean()
