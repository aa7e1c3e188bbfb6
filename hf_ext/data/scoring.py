"""Losses of prepared rows under the original model, a document or a token each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from trl import SFTConfig

from hf_ext._upstream.fused_head import fused_lm_head, label_log_probs
from hf_ext._upstream.sft import DataCollatorForLanguageModeling
from hf_ext.data.original_cache import Scores
from hf_ext.data.provenance import as_adapted, as_original
from hf_ext.data.sft_rows import documents_of_batch
from hf_ext.guards.vocabulary import require_embedded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORE_COLUMNS = ("original_nll_sum", "original_num_tokens")


class ScoredBatch(NamedTuple):
    """Rows of one forward: their positions, examples, and per token `(batch, seq_len - 1)` document, mask and loss."""

    indices: list[int]
    examples: list[dict[str, Any]]
    documents: Tensor
    mask: Tensor
    losses: Tensor


def score_rows(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    pad_token_id: int,
    batch_size: int = 8,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    indices: list[int] | None = None,
    adapters: bool = False,
    show_progress: bool = True,
) -> Scores:
    """
    Negative log-likelihood of each document's supervised tokens under `model`, dropout off.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            Everything in it is as before afterwards.
        dataset (`Dataset`):
            Prepared rows: `input_ids`, `labels`, and `seq_lengths` where packed.
        pad_token_id (`int`):
            Any valid token; padding is not scored.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows a forward. Rows of like length go together; the order of the result is that of `indices`.
        autocast (`Callable`, *optional*):
            The context of the training forward, so that scores have its precision.
        indices (`list[int]`, *optional*):
            Rows to score; all by default.
        adapters (`bool`, *optional*, defaults to `False`):
            Whether adapters stay on; else the original model scores.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[tuple[list[float], list[int]]]`: per row, the nats and the number of supervised tokens of each document.
    """
    indices = list(range(len(dataset))) if indices is None else indices
    packed = "seq_lengths" in dataset.column_names
    scores: dict[int, tuple[list[float], list[int]]] = {}
    for batch in _scored_batches(model, dataset, pad_token_id, batch_size, autocast, indices, adapters, show_progress):
        counts = [len(row["seq_lengths"]) if packed else 1 for row in batch.examples]
        documents = batch.documents[batch.mask]
        sums = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, documents, batch.losses[batch.mask])
        tokens = torch.bincount(documents, minlength=sum(counts))
        ends = np.cumsum(counts)
        for i, n, end in zip(batch.indices, counts, ends, strict=True):
            scores[i] = (sums[end - n : end].tolist(), tokens[end - n : end].tolist())
    return [scores[i] for i in indices]


def score_tokens(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    pad_token_id: int,
    batch_size: int = 8,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    indices: list[int] | None = None,
    show_progress: bool = True,
) -> Scores:
    """
    Negative log-likelihood of each supervised token under the original model, dropout off.

    Args:
        model, dataset, pad_token_id, batch_size, autocast, indices, show_progress:
            As in [`score_rows`].

    Returns:
        `list[tuple[list[float], list[int]]]`: per row and token of its `input_ids`, the nats and 1, or 0 and 0 where
        the token is not supervised.
    """
    indices = list(range(len(dataset))) if indices is None else indices
    packed = "seq_lengths" in dataset.column_names
    scores: dict[int, tuple[list[float], list[int]]] = {}
    for batch in _scored_batches(model, dataset, pad_token_id, batch_size, autocast, indices, False, show_progress):
        # the first token of a batch's row has nothing before it
        losses = torch.nn.functional.pad(batch.losses.masked_fill(~batch.mask, 0), (1, 0))
        mask = torch.nn.functional.pad(batch.mask.long(), (1, 0))
        start = 0
        for place, (i, row) in enumerate(zip(batch.indices, batch.examples, strict=True)):
            length = len(row["input_ids"])
            part = (0, slice(start, start + length)) if packed else (place, slice(0, length))
            scores[i] = (losses[part].tolist(), mask[part].tolist())
            start += length
    return [scores[i] for i in indices]


@torch.no_grad()
def _scored_batches(
    model: PreTrainedModel,
    dataset: Dataset,
    pad_token_id: int,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
    indices: list[int],
    adapters: bool,
    show_progress: bool,
) -> Iterator[ScoredBatch]:
    require_embedded(dataset, model)
    packed = "seq_lengths" in dataset.column_names
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=packed)
    rows = dataset.with_format(None)
    order = sorted(indices, key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    device = next(model.parameters()).device
    scorer = "adapter" if adapters else "original model"
    bar = tqdm(total=len(order), desc=f"Scoring rows under the {scorer}", unit="row", disable=not show_progress)
    state = as_adapted if adapters else as_original
    # in this order: PEFT's switch for virtual tokens keeps the forward that it finds (peft 0.21)
    with fused_lm_head(model), state(model), bar:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            examples = [rows[i] for i in chunk]
            batch = collate(examples)
            documents = documents_of_batch(examples, batch["labels"], flat=packed)[:, 1:]
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            with autocast():
                values = label_log_probs(model, inputs)
            mask = (batch["labels"][:, 1:] != -100) & (documents >= 0)
            yield ScoredBatch(chunk, examples, documents, mask, -values[:, -mask.shape[1] :].double().cpu())
            bar.update(len(chunk))


def attach_scores(dataset: Dataset, scores: Scores) -> Dataset:
    """Add `original_nll_sum` and `original_num_tokens`: a number a row, or a list with one per document if packed."""
    for part, column in enumerate(SCORE_COLUMNS):
        values: list[Any] = [score[part] for score in scores]
        if column in dataset.column_names:
            dataset = dataset.remove_columns(column)
        flat = values if "seq_lengths" in dataset.column_names else [v[0] for v in values]
        dataset = dataset.add_column(column, flat)
    return dataset


def documents_of_tokens(dataset: Dataset, scores: Scores) -> Scores:
    """Scores of documents from those of tokens."""
    rows = dataset.with_format(None)
    packed = "seq_lengths" in dataset.column_names
    lengths = rows["seq_lengths"] if packed else [[len(losses)] for losses, _ in scores]
    document_scores = []
    for (losses, counts), row_lengths in zip(scores, lengths, strict=True):
        starts = np.cumsum([0, *row_lengths[:-1]])
        sums = np.add.reduceat(np.array(losses), starts)
        tokens = np.add.reduceat(np.array(counts), starts)
        document_scores.append((sums.tolist(), tokens.tolist()))
    return document_scores


def autocast_of(args: SFTConfig | None, device_type: str) -> Callable[[], AbstractContextManager]:
    """The context in which training under these arguments runs its forward."""
    dtype = None if args is None else torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return contextlib.nullcontext if dtype is None else lambda: torch.autocast(device_type, dtype=dtype)
