"""What an engine that samples rows is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hf_ext.guards.engines import BackendError


@dataclass(frozen=True)
class RowRequest:
    """
    A row to sample.

    Args:
        prompt (`tuple[int, ...]`):
            Token ids it begins with: the engine must add none.
        max_new_tokens (`int`):
            Longest continuation.
        seed (`int`):
            Of this row, below 2**31. An engine without a seed for each row may combine those of a call.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class SampledRow:
    """
    A row that an engine has sampled.

    Args:
        ids (`tuple[int, ...]`):
            Sampled ids, the end token among them where the row ended by one.
        logps (`tuple[float, ...]`, *optional*):
            Log-probability of each in nats, as the engine reports it; `None` where it reports none.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...] | None = None


class SamplingBackend(Protocol):
    """
    An engine. Any object with these three members may be passed as `backend`; a probe judges what it samples.

    Sampling must be ancestral: no top-k, no top-p, no penalty, nothing of the checkpoint's generation config.
    """

    @property
    def description(self) -> dict[str, Any]:
        """What the manifest of a store says of the parts sampled here: a `name`, and what tells versions apart."""
        ...

    def sample(self, rows: Sequence[RowRequest], temperature: float, eos_ids: Sequence[int]) -> list[SampledRow]:
        """
        Sample the rows, in their order.

        Raises:
            BackendError: if the engine cannot, after whatever retries make sense.
        """
        ...

    def close(self) -> None:
        """Let go of what the engine holds; it is not asked again."""
        ...


def row_seed(*parts: int) -> int:
    """A seed below 2**31 from numbers such as a store's seed and a row's number."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] % 2**31)


def sample_checked(
    backend: SamplingBackend,
    rows: Sequence[RowRequest],
    temperature: float,
    eos_ids: Sequence[int],
    vocab_size: int,
) -> list[SampledRow]:
    """
    Rows of a backend, each checked for its form.

    Raises:
        BackendError: if a row is missing, empty, too long, cut early, goes on after an end token, holds ids outside of
            the vocabulary, or has log-probabilities that are none.
    """
    sampled = list(backend.sample(rows, temperature, eos_ids))
    name = backend.description["name"]
    if len(sampled) != len(rows):
        raise BackendError(f"The backend {name} gave {len(sampled)} rows for {len(rows)}: it is not usable.")
    for number, (request, row) in enumerate(zip(rows, sampled, strict=True)):
        problem = problem_of(row, request, eos_ids, vocab_size)
        if problem is not None:
            raise BackendError(f"The backend {name}, row {number:,} of {len(rows):,}: {problem}.")
    return sampled


def problem_of(row: SampledRow, request: RowRequest, eos_ids: Sequence[int], vocab_size: int) -> str | None:
    """What is wrong with the form of a row, in words; `None` if nothing is."""
    ids = row.ids
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if not ids:
        return "no token was sampled"
    if len(ids) > request.max_new_tokens:
        return f"{len(ids):,} tokens were sampled, where {request.max_new_tokens:,} were asked for"
    if outside:
        return f"token {outside[0]} is outside of the model's vocabulary of {vocab_size:,}; is it another tokenizer's?"
    if any(token in eos_ids for token in ids[:-1]):
        return f"the row goes on after an end token (end tokens are {list(eos_ids)})"
    if len(ids) < request.max_new_tokens and ids[-1] not in eos_ids:
        return (
            f"the row stopped after {len(ids):,} of {request.max_new_tokens:,} tokens, with token {ids[-1]}, which is "
            f"no end token of the model ({list(eos_ids)}). Switch the engine's stop words and length limits off"
        )
    if row.logps is not None:
        if len(row.logps) != len(ids):
            return f"there are {len(row.logps):,} log-probabilities for {len(ids):,} tokens"
        if not all(logp <= 1e-3 for logp in row.logps):  # False for NaN
            return "a log-probability is above 0 or not a number"
    return None
