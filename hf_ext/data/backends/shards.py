"""Rows of a store from an engine: probed once, then asked for shard after shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_ext.data.backends.probe import PROBED_ROWS, ProbeReport, probe_backend
from hf_ext.data.backends.protocol import RowRequest, SamplingBackend, row_seed, sample_checked
from hf_ext.data.backends.scoring import logps_of_rows
from hf_ext.data.provenance import original_model

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from hf_ext.data.context_free_store import Shard
    from hf_ext.data.starts import Start


class ProbedBackend:
    """
    An engine that has passed the probe.

    Args:
        backend ([`SamplingBackend`]):
            The engine.
        model (`PreTrainedModel` or `PeftModel`):
            The model whose rows are wanted.
        prompts (`Sequence[Sequence[int]]`):
            What the probe's rows begin with.
        eos_ids (`Sequence[int]`):
            Ids that end a row.
        max_new_tokens (`int`):
            Longest row.
        temperature (`float`):
            Of sampling.
        seed (`int`):
            Of the rows.
        autocast_dtype (`torch.dtype`, *optional*):
            Of the model's forward.

    Raises:
        BackendError: if the engine is refused.
    """

    def __init__(
        self,
        backend: SamplingBackend,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        self.backend = backend
        self.model = model
        self.eos_ids = list(eos_ids)
        self.longest = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self.autocast_dtype = autocast_dtype
        self.vocab_size: int = original_model(model).config.get_text_config().vocab_size
        self.report: ProbeReport = probe_backend(
            backend,
            model,
            prompts,
            eos_ids=self.eos_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            autocast_dtype=autocast_dtype,
        )

    def sample(
        self,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        ends: Sequence[int],
        on_tokens: Callable[[int], Any] = lambda count: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Sample a row after each prompt.

        Args:
            numbers (`Sequence[int]`):
                Of the rows in the store: each has a seed from its number.
            prompts (`Sequence[Sequence[int]]`):
                Ids they begin with.
            ends (`Sequence[int]`):
                End tokens after which each is over: a chat goes on after its first.
            on_tokens (callable):
                Told the number of tokens sampled, now and then.

        Returns:
            as [`sample_rows`]: ids and log-probabilities `(rows, max_new_tokens)`, and lengths `(rows,)`.

        Raises:
            BackendError: if the engine cannot sample, or answers nonsense.
        """
        sampled: list[list[int]] = [[] for _ in prompts]
        reported: list[list[float]] = [[] for _ in prompts]
        reports_all = self.report.reports_model
        going = list(range(len(prompts)))
        turn = 0
        while going:
            requests = [
                RowRequest(
                    (*prompts[row], *sampled[row]),
                    self.longest - len(sampled[row]),
                    row_seed(self.seed, numbers[row], turn),
                )
                for row in going
            ]
            rows = sample_checked(self.backend, requests, self.temperature, self.eos_ids, self.vocab_size)
            on_tokens(sum(len(row.ids) for row in rows))
            for row, answer in zip(going, rows, strict=True):
                sampled[row] += answer.ids
                reported[row] += answer.logps or ()
                reports_all = reports_all and answer.logps is not None
            going = [row for row in going if self._goes_on(sampled[row], ends[row])]
            turn += 1
        if not reports_all:
            pairs = list(zip(prompts, sampled, strict=True))
            reported = [list(logps) for logps in logps_of_rows(self.model, pairs, self.autocast_dtype)]
        return (
            self._padded(sampled, torch.long),
            self._padded(reported, torch.float32),
            torch.tensor([len(ids) for ids in sampled]),
        )

    def _goes_on(self, ids: Sequence[int], ends: int) -> bool:
        return len(ids) < self.longest and sum(token in self.eos_ids for token in ids) < ends

    def _padded(self, rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (self.longest - len(row))] for row in rows], dtype=dtype)


def shards_of(
    backend: SamplingBackend,
    model: nn.Module,
    settings: dict[str, Any],
    starts_of_rows: Callable[[range], list[Start]],
    table_of: Callable[[dict[str, Any], Sequence[Start], Tensor, Tensor, Tensor], pa.Table],
) -> Shard:
    """
    Return what has an engine sample the shard of a number, once it has passed the probe.

    Args:
        backend ([`SamplingBackend`]):
            The engine.
        model (`PreTrainedModel` or `PeftModel`):
            The model before tuning.
        settings (`dict`):
            Of the store: its manifest.
        starts_of_rows (callable):
            Tells what rows of a range of numbers begin with.
        table_of (callable):
            Makes a table of settings, starts, ids, log-probabilities and lengths.

    Raises:
        BackendError: if the engine is refused.
    """
    autocast_name = settings["autocast_dtype"]
    probed = ProbedBackend(
        backend,
        model,
        [start.ids for start in starts_of_rows(range(PROBED_ROWS))],
        eos_ids=settings["eos_ids"],
        max_new_tokens=settings["max_new_tokens"],
        temperature=settings.get("temperature", 1.0),
        seed=settings["seed"],
        autocast_dtype=None if autocast_name is None else getattr(torch, autocast_name),
    )
    num_rows = settings["rows_per_shard"]

    def sample(number: int, on_tokens: Callable[[int], Any]) -> pa.Table:
        numbers = range(number * num_rows, (number + 1) * num_rows)
        starts = starts_of_rows(numbers)
        sampled = probed.sample(numbers, [start.ids for start in starts], [start.ends for start in starts], on_tokens)
        return table_of(settings, starts, *sampled)

    return sample
