"""Engines for tests, on a model of the test's own: an exact one, and such as are off in a known way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from hf_ext._upstream.cache import cache_argument, cache_of
from hf_ext.data.backends.protocol import RowRequest, SampledRow


class PlainEngine:
    """
    Draws with `torch.multinomial` from the model's own forward: nothing of the code under test.

    Args:
        model: a causal model.
        change: what the engine does to the logits `(rows, vocabulary)` before it draws.
        reports: "raw" (of the unchanged logits), "processed" (of the changed ones) or None.
        shift: added to every id that comes out.
        history: what it does to them in view of the texts so far.
        doubles: whether the first token of a prompt is put before it once more.
    """

    def __init__(
        self,
        model: Any,
        change: Callable[[Tensor], Tensor] = lambda logits: logits,
        reports: str | None = "raw",
        shift: int = 0,
        doubles: bool = False,
        history: Callable[[Tensor, Tensor], Tensor] = lambda logits, texts: logits,
        name: str = "plain",
    ) -> None:
        self.model = model
        self.change = change
        self.reports = reports
        self.shift = shift
        self.doubles = doubles
        self.history = history
        self.description = {"name": name}
        self.calls = 0
        self.is_closed = False

    @torch.no_grad()
    def sample(self, rows: Sequence[RowRequest], temperature: float, eos_ids: Sequence[int]) -> list[SampledRow]:
        self.calls += 1
        generator = torch.Generator().manual_seed(rows[0].seed)
        lengths = {len(row.prompt) for row in rows}
        sampled: dict[int, SampledRow] = {}
        for length in lengths:
            numbers = [number for number, row in enumerate(rows) if len(row.prompt) == length]
            of_length = self._of_one_length([rows[n] for n in numbers], temperature, eos_ids, generator)
            sampled |= dict(zip(numbers, of_length, strict=True))
        return [sampled[number] for number in range(len(rows))]

    def _of_one_length(self, rows, temperature, eos_ids, generator):
        prompts = torch.tensor([row.prompt for row in rows])
        texts = torch.cat([prompts[:, :1], prompts], dim=1) if self.doubles else prompts
        width = texts.shape[1]
        longest = max(row.max_new_tokens for row in rows)
        logps = torch.zeros(len(rows), longest)
        cache = None
        for step in range(longest):
            inputs = texts if cache is None else texts[:, -1:]
            output = self.model(input_ids=inputs, use_cache=True, **cache_argument(self.model, cache))
            cache = cache_of(output)
            logits = output.logits[:, -1].float()
            scores = self.change(self.history(logits, texts) / temperature)
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
            source = logits if self.reports == "raw" else scores
            logps[:, step] = source.log_softmax(-1).gather(1, drawn)[:, 0]
            texts = torch.cat([texts, drawn], dim=1)
        result = []
        for number, row in enumerate(rows):
            ids = texts[number, width:].tolist()
            ends = [place for place, token in enumerate(ids) if token in eos_ids]
            length = min([row.max_new_tokens, *(place + 1 for place in ends)])
            shifted = tuple((token + self.shift) % self.model.config.vocab_size for token in ids[:length])
            reported = None if self.reports is None else tuple(logps[number, :length].tolist())
            result.append(SampledRow(shifted, reported))
        return result

    def close(self) -> None:
        self.is_closed = True


def top_k(k: int) -> Callable[[Tensor], Tensor]:
    def change(logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)

    return change


def keep(chosen: Callable[[Tensor], Tensor], ordered: bool = False) -> Callable[[Tensor], Tensor]:
    """Only tokens of which `chosen` says so, given the probabilities; `ordered`: from the likeliest to the rarest."""

    def change(logits: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        if not ordered:
            return logits.masked_fill(~chosen(probs), -torch.inf)
        values, index = probs.sort(dim=-1, descending=True)
        return logits.masked_fill(
            ~torch.empty_like(probs, dtype=torch.bool).scatter(1, index, chosen(values)), -torch.inf
        )

    return change


def penalise(penalty: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The repetition penalty as transformers applies it."""
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    return lambda logits, texts: processor(texts, logits.clone())
