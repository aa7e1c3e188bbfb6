"""FLOW on datasets: score rows under the original model, choose a temperature, fill `weight`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.flow_arithmetic import (
    FlowWeights,
    means_of,
    temperature_of,
    weigh,
)
from hf_ext.data.scoring import SCORE_COLUMNS, attach_scores, autocast_of, score_rows
from hf_ext.data.sft_rows import column_names, prepare_sft_rows
from hf_ext.guards.tokens import without_padding

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_original_losses(
    dataset: Dataset,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig | None = None,
    *,
    formatting_func: Callable[[dict], str] | None = None,
    batch_size: int = 8,
    show_progress: bool = True,
) -> Dataset:
    """
    Add each document's loss under the original model: what [`FlowSFTTrainer`] computes, for any trainer to use.

    | column out | type |
    |---|---|
    | `original_nll_sum` | float, nats, summed over the document's supervised tokens (a list where packed) |
    | `original_num_tokens` | int, the number of those tokens (a list where packed) |

    Args:
        dataset (`Dataset`):
            Raw rows of any TRL SFT data type (the columns are added to them, one document a row), or the output of
            [`prepare_sft_rows`] (packed rows get lists).
        model (`PreTrainedModel` or `PeftModel`):
            The original model; adapters are switched off. It runs in the precision and on the device it is in.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`SFTConfig`, *optional*):
            The training config: `max_length`, masks and autocast dtype must be the training's.
        formatting_func (`Callable`, *optional*):
            The training's: what is scored is what is trained on.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows a forward.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `Dataset`: the rows, with the two columns. Rows dropped under `on_bad_row="drop"` are left out.

    Raises:
        RowError: if a row is malformed.
        TypeError: if `dataset` is a stream, which has no median; [`FlowSFTTrainer`] takes one.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Algorithm 1, step 1. Costs one forward pass over the data, about
    a third of an epoch.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"add_original_losses needs a Dataset, got {type(dataset).__name__}: a temperature is a property of the "
            "whole set. Materialise the stream first, for example with Dataset.from_generator, or train on it with "
            "FlowSFTTrainer, which weighs a stream's rows as they come."
        )
    prepared = {"input_ids", "labels", ROW_INDEX} <= set(dataset.column_names)
    rows = without_padding(dataset) if prepared else dataset
    if not prepared:
        unpacked = None if args is None else _unpacked(args)
        # Numbered anew: the rows are picked by position below, and the numbers of an earlier check may be others.
        unnumbered = dataset.remove_columns([ROW_INDEX] if ROW_INDEX in dataset.column_names else [])
        rows = prepare_sft_rows(unnumbered, processing_class, unpacked, formatting_func=formatting_func)
    autocast = autocast_of(args, next(model.parameters()).device.type)
    pad = processing_class.pad_token_id
    scores = score_rows(
        model,
        rows,
        pad_token_id=(processing_class.eos_token_id or 0) if pad is None else pad,  # padding is not scored
        batch_size=batch_size,
        autocast=autocast,
        show_progress=show_progress,
    )
    if prepared:
        return attach_scores(rows, scores)
    order = np.argsort(rows[ROW_INDEX], kind="stable")
    scored_rows = dataset.select([rows[int(i)][ROW_INDEX] for i in order])
    return attach_scores(scored_rows, [scores[int(i)] for i in order])


def _unpacked(args: SFTConfig) -> SFTConfig:
    args = copy.copy(args)
    args.packing = False
    args.shuffle_dataset = False
    return args


def document_losses(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Mean loss and number of tokens of every document with supervised tokens, each of shape `(documents,)`.

    In the rows' order; losses in nats per token.

    Raises:
        ValueError: if the dataset has no scores, or one that is not finite.
    """
    missing = [name for name in SCORE_COLUMNS if name not in column_names(dataset)]
    if missing:
        raise ValueError(
            f"The dataset has no column {missing[0]!r} (it has {column_names(dataset)}). "
            "Run add_original_losses(dataset, model, tokenizer, args) first."
        )
    sums, counts = (dataset.with_format(None)[name] for name in SCORE_COLUMNS)
    if len(sums) and isinstance(sums[0], list):
        sums, counts = ([v for row in column for v in row] for column in (sums, counts))
        sums, counts = zip(*((s, n) for s, n in zip(sums, counts, strict=True) if n), strict=True)
    return means_of(sums, counts), np.asarray(counts, dtype=np.float64)


def flow_temperature(dataset: Dataset, rule: str = "median") -> float:
    r"""
    The FLOW temperature $\tau$ of a scored dataset, in nats per token.

    Args:
        dataset (`Dataset`):
            With `original_nll_sum` and `original_num_tokens` (see [`add_original_losses`]).
        rule (`str`, *optional*, defaults to `"median"`):
            `"median"` of the documents' mean losses (the paper's Remark 4.2), or `"ess:0.8"`: the $\tau$ at which the
            effective sample size $(\sum w)^2/\sum w^2$ is 0.8 of the number of documents. On language rows, whose
            losses are alike, the median rule is timid; the share moves along the trade-off.

    Returns:
        `float`: $\tau > 0$.

    Raises:
        ValueError: if there are no scores or no rows, the median is 0, or the share cannot be reached.
    """
    losses, _ = document_losses(dataset)
    return temperature_of(losses, rule)


def add_flow_weights(
    dataset: AnyDataset,
    tau: float | str = "median",
    *,
    weight_scale: str = "mean",
    flow_floor: float = 0.0,
    source_column: str | None = None,
) -> AnyDataset:
    r"""
    Fill `weight` by FLOW, from the scores [`add_original_losses`] added.

    Args:
        dataset (`Dataset`):
            Scored rows. A streamed dataset needs `tau` as a number and `weight_scale="none"`.
        tau (`float` or `str`, *optional*, defaults to `"median"`):
            A number of nats per token, or a rule of [`flow_temperature`].
        weight_scale (`str`, *optional*, defaults to `"mean"`):
            `"mean"`: weights are divided by their mean over the supervised tokens, so that a step under
            `normalize="tokens"` is as large as plain SFT's. `"none"`: the paper's letter, `exp(-nll / tau)`.
        flow_floor (`float`, *optional*, defaults to `0.0`):
            Least weight relative to the mean, at least 0 and below 1.
        source_column (`str`, *optional*):
            Column that names each row's source: each gets a temperature and a mean of its own, so that an easy source
            does not dominate. Every source then keeps its share of the loss.

    Returns:
        The dataset with `weight`; a column of that name is replaced. Rows below 1e-3 of the mean are counted in a
        warning.

    Raises:
        TypeError: if a stream is given what needs the whole set.
        ValueError: if `tau` is so small that every weight but the easiest document's vanishes (not checked on
            streams), or `source_column` is no column, or empty in a row.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Algorithm 1, step 2. After it train with `normalize="tokens"`.
    """
    if not isinstance(dataset, Dataset):
        if isinstance(tau, str) or weight_scale != "none" or flow_floor or source_column:
            raise TypeError(
                f"A median and a mean are of the whole set, and {type(dataset).__name__} has none in hand. Pass tau "
                "as a number and weight_scale='none', without flow_floor and source_column; or let FlowSFTTrainer, "
                "which looks at the stream's beginning, weigh its rows."
            )
        return dataset.map(FlowWeights(tau), batched=True)
    if len(dataset) == 0 and not isinstance(tau, str):
        return dataset.map(FlowWeights(tau), batched=True)
    losses, counts = document_losses(dataset)
    sources = None if source_column is None else sources_of(dataset, source_column)
    result = weigh(losses, counts, tau, sources=sources, weight_scale=weight_scale, floor=flow_floor)
    return with_document_weights(dataset, result.weights)


def sources_of(dataset: Dataset, source_column: str) -> list[Hashable]:
    """
    The source of each row.

    Raises:
        ValueError: if there is no such column, or rows are packed, or a row has no source.
    """
    if source_column not in dataset.column_names:
        is_packed = "seq_lengths" in dataset.column_names
        packed = " Packing has dropped it: weigh the rows before they are packed." if is_packed else ""
        raise ValueError(
            f"The dataset has no column {source_column!r} for source_column (it has {dataset.column_names}).{packed}"
        )
    sources: list[Any] = list(dataset.with_format(None)[source_column])
    for i, source in enumerate(sources):
        if source is None or not isinstance(source, Hashable):
            raise ValueError(
                f"row {i:,}, column {source_column!r}: expected a text or a number that names the source, got "
                f"{str(source)[:80]!r}. Fill it, or leave the row out."
            )
    return sources


def with_document_weights(dataset: Dataset, weights: NDArray[np.float64]) -> Dataset:
    """
    A scored dataset with the column `weight`: a number a row, or where packed a list with one a token.

    Args:
        dataset (`Dataset`):
            Scored rows.
        weights (`numpy.ndarray` of shape `(documents,)`):
            Of the documents with supervised tokens, in the rows' order.
    """
    column: list[Any] = weights.tolist()
    if "seq_lengths" in dataset.column_names:
        column = []
        start = 0
        plain = dataset.with_format(None)
        for counts, lengths in zip(plain["original_num_tokens"], plain["seq_lengths"], strict=True):
            # A fragment of a split document may hold prompt only: no token of it counts, whatever its weight.
            supervised = np.asarray(counts) > 0
            row_weights = np.zeros(len(counts))
            end = start + int(supervised.sum())
            row_weights[supervised] = weights[start:end]
            column.append(np.repeat(row_weights, lengths))
            start = end
    if "weight" in dataset.column_names:
        dataset = dataset.remove_columns("weight")
    return dataset.add_column("weight", column)


__all__ = [
    "FlowWeights",
    "add_flow_weights",
    "add_original_losses",
    "autocast_of",
    "flow_temperature",
    "prepare_sft_rows",
    "score_rows",
]
