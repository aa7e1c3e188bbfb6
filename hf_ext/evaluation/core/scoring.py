"""Losses of answers under a model: a shared context is read once, and logits are had only where answers stand."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from hf_ext._upstream.cache import cache_argument, cache_of
from hf_ext.evaluation.core.tokens import TokenPrompt, common_length
from hf_ext.evaluation.models import Model

__all__ = ["AnswerScorer", "OptionLosses"]

SHARED_TOKENS = 64
"""A context is read on its own where that saves so many tokens: a second forward costs about as much time."""

LOGIT_BYTES = 512 * 2**20
"""Upper bound of a batch's logits, in bytes of float32; one row is always allowed."""


@dataclass(frozen=True)
class OptionLosses:
    """
    What a model makes of the options of a row.

    Args:
        losses (`list[float]`):
            Cross-entropy of each option's answer in nats, summed over its tokens.
        tokens (`list[int]`):
            Tokens of each answer; 0 where there is nothing to score.
        is_greedy (`list[bool]`):
            Whether every token of the answer is the likeliest one.
    """

    losses: list[float]
    tokens: list[int]
    is_greedy: list[bool]


@dataclass(frozen=True)
class _Reading:
    """An input that the model reads: a row's options with the same tokens before their last one have one together."""

    ids: list[int]
    options: list[int]  # positions of the row's options
    first: int  # position of the first logits that an answer needs


class AnswerScorer:
    """
    Scores the answers of prompts, in batches.

    Args:
        model (model):
            A causal language model or `PeftModel`, in evaluation mode.
        batch_tokens (`int`):
            Tokens of a batch, padding included; one row is always allowed.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward.

    Requirements: a row's result depends on the batch by rounding only. Inputs are padded on the right, where a causal
    model does not see it, and need neither a padding token nor a mask.
    """

    def __init__(self, model: Model, batch_tokens: int, autocast_dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.autocast_dtype = autocast_dtype
        self.device = model.get_input_embeddings().weight.device
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        config = getattr(model, "active_peft_config", None)
        has_virtual_tokens = bool(getattr(config, "is_prompt_learning", False))
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Virtual tokens stand before the others, so a position counted from the beginning would be another one.
        self.keeps_logits = not has_virtual_tokens and "logits_to_keep" in inspect.signature(base.forward).parameters
        self.shares = not has_virtual_tokens and self._has_plain_cache()

    @torch.no_grad()
    def _has_plain_cache(self) -> bool:
        """Whether the model's cache is one of keys and values, which can be repeated for the options of a row."""
        with self._autocast():
            output = self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=True)
        cache = cache_of(output)
        return type(cache) is DynamicCache and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
        )

    def _autocast(self) -> AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    # --- which rows are read together ---

    def plan(self, prompts: Sequence[TokenPrompt]) -> list[list[int]]:
        """
        Positions of the prompts that are read together: the same for the same prompts, whatever is scored of them.

        A row whose context is worth reading once is on its own. The others go by length, longest first.

        Args:
            prompts (`Sequence[TokenPrompt]`):
                Of one task.
        """
        alone = []
        together: list[tuple[int, list[_Reading]]] = []
        for position, prompt in enumerate(prompts):
            readings = _readings(prompt)
            if self._prefix(readings):
                alone.append([position])
            else:
                together.append((position, readings))
        together.sort(key=lambda entry: -_width(entry[1]))  # stable: rows of one width stay in order
        return [*alone, *self._joined(together)]

    def _joined(self, together: list[tuple[int, list[_Reading]]]) -> Iterator[list[int]]:
        rows: list[int] = []
        batch: list[_Reading] = []
        for position, readings in together:
            grown = [*batch, *readings]
            if rows and not self._fits(grown):
                yield rows
                rows = []
                grown = readings
            rows.append(position)
            batch = grown
        if rows:
            yield rows

    def _fits(self, readings: list[_Reading]) -> bool:
        width = _width(readings)
        num_columns = width - min((reading.first for reading in readings), default=0) if self.keeps_logits else width
        logit_bytes = 4 * self.vocabulary * num_columns * len(readings)
        return width * len(readings) <= self.batch_tokens and logit_bytes <= LOGIT_BYTES

    # --- reading them ---

    def _prefix(self, readings: list[_Reading]) -> int:
        """Tokens to read once: of the common beginning, up to the first needed position, where that saves enough."""
        if len(readings) < 2 or not self.shares:
            return 0
        first = min(reading.first for reading in readings)
        common = common_length([reading.ids[:first] for reading in readings])
        return common if common * (len(readings) - 1) >= SHARED_TOKENS else 0

    @torch.no_grad()
    def __call__(self, rows: Sequence[TokenPrompt]) -> list[OptionLosses]:
        """Score rows that were planned to be read together, or some of them, in this order."""
        readings = [_readings(row) for row in rows]
        flat = [reading for of_row in readings for reading in of_row]
        prefix = self._prefix(flat) if len(rows) == 1 else 0
        pieces = self._after_prefix(flat, prefix) if prefix else self._read(flat, 0)
        results = []
        for row, of_row in zip(rows, readings, strict=True):
            losses = [0.0] * len(row.sequences)
            tokens = [len(ids) - start for ids, start in zip(row.sequences, row.starts, strict=True)]
            is_greedy = [False] * len(row.sequences)
            for reading in of_row:
                log_probs, likeliest = next(pieces)
                for option in reading.options:
                    start = row.starts[option]
                    answer = torch.tensor(row.sequences[option][start:], device=log_probs.device)
                    # logits at t predict the token at t + 1
                    where = torch.arange(start - 1, start - 1 + len(answer), device=log_probs.device) - reading.first
                    # summed in float64, which not every accelerator has
                    losses[option] = -float(log_probs[where, answer].cpu().double().sum())
                    is_greedy[option] = bool((likeliest[where] == answer).all())
            results.append(OptionLosses(losses, tokens, is_greedy))
        return results

    def _after_prefix(self, readings: list[_Reading], prefix: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the common beginning once, and then every reading's rest behind it."""
        ids = torch.tensor([readings[0].ids[:prefix]], device=self.device)  # (1, prefix)
        with self._autocast():
            # logits of one position, which nobody needs: there is no way to ask for none
            output = self.model(input_ids=ids, use_cache=True, **({"logits_to_keep": 1} if self.keeps_logits else {}))
        cache = cache_of(output)
        cache.batch_repeat_interleave(len(readings))
        return self._read(readings, prefix, cache)

    def _read(
        self, readings: list[_Reading], prefix: int, cache: DynamicCache | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-probabilities of each reading from its first needed position on, `(positions, vocab)`, and argmax."""
        if not readings:
            return
        width = _width(readings) - prefix
        # Filled up with the last token: any would do, and a padding token may be missing or make the host warn.
        rows = [(reading.ids[prefix:] + reading.ids[-1:] * width)[:width] for reading in readings]
        positions = sorted(
            {t for reading in readings for t in range(reading.first - prefix, len(reading.ids) - prefix)}
        )
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            mask = torch.ones((len(rows), prefix + width), dtype=torch.long, device=self.device)
            options = {"use_cache": True, "attention_mask": mask, **cache_argument(self.model, cache)}
        if self.keeps_logits:
            options["logits_to_keep"] = torch.tensor(positions, device=self.device)
        with self._autocast():
            logits = self.model(input_ids=torch.tensor(rows, device=self.device), **options).logits
        if not self.keeps_logits:
            logits = logits[:, -width:][:, positions]  # virtual tokens stand in front
        column_of = {position: i for i, position in enumerate(positions)}
        for reading, of_reading in zip(readings, logits, strict=True):
            begin = column_of[reading.first - prefix]
            end = column_of[len(reading.ids) - 1 - prefix] + 1
            of_answer = of_reading[begin:end].float()
            yield F.log_softmax(of_answer, dim=-1), of_answer.argmax(dim=-1)


def _readings(prompt: TokenPrompt) -> list[_Reading]:
    """The inputs of a row: the last token of an answer is predicted, never read."""
    options_of: dict[tuple[int, ...], list[int]] = {}
    for option, (ids, start) in enumerate(zip(prompt.sequences, prompt.starts, strict=True)):
        if len(ids) > start:
            options_of.setdefault(tuple(ids[:-1]), []).append(option)
    return [
        _Reading(list(ids), options, min(prompt.starts[option] for option in options) - 1)
        for ids, options in options_of.items()
    ]


def _width(readings: list[_Reading]) -> int:
    return max((len(reading.ids) for reading in readings), default=0)
