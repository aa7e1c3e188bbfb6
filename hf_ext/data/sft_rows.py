"""Prepared SFT rows that keep their `weight` and their `__hf_ext_row__`: truncation, packing, collation.

TRL's own preparation drops every column but two when it packs. The functions here do the last steps of the
preparation (truncate, filter, pack, shuffle) the way TRL does, in the same order and with the same random states, so
that without weights the rows are those of `SFTTrainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from trl import SFTConfig, pack_dataset

from hf_ext._columns import ROW_INDEX, column_names
from hf_ext._upstream.rows import AnyDataset, unformatted
from hf_ext._upstream.sft import tokenise_rows, training_template, with_end_token
from hf_ext.data.chat_columns import warn_of_unread_parts
from hf_ext.data.host_rows import host_rows
from hf_ext.data.problem_rows import PROBLEM, drop_problem_rows
from hf_ext.guards.tokens import tokenise_checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def is_per_token(value: object) -> bool:
    """Whether a value is a list or, from a formatted dataset, an array or tensor of one number a token."""
    return isinstance(value, list) or getattr(value, "ndim", 0) > 0


@dataclass(frozen=True)
class TruncateRows:
    """
    Cut rows to `max_length` tokens and name what is wrong with each, batched.

    | column in | type | column out | type |
    |---|---|---|---|
    | `input_ids`, `labels` | list of int | the same, cut | |
    | `weight` (optional) | float, or list of float per token | the same, cut | |
    | | | `__hf_ext_problem__` | str, empty where the row is good |
    """

    max_length: int | None
    keep_end: bool = False
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Cut one batch."""
        if self.max_length is None:
            cut = slice(None)
        else:
            cut = slice(-self.max_length, None) if self.keep_end else slice(None, self.max_length)
        weights = batch.get("weight")
        out: dict[str, list] = {"input_ids": [], "labels": [], PROBLEM: []}
        for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
            weight: Any = weights[i] if weights is not None else None
            short = labels[cut]
            if is_per_token(weight) and len(weight) != len(ids):
                problem = f"weight: has {len(weight)} entries, the tokenised row has {len(ids)} tokens"
            elif all(label == -100 for label in short[1:]):  # the first token has nothing before it to predict it from
                problem = "labels: no supervised token after the first"
                if self.max_length is not None and len(ids) > self.max_length:
                    problem = (
                        f"labels: no supervised token is left of {len(ids)} after truncation to {self.max_length}"
                    )
            else:
                problem = ""
            out["input_ids"].append(ids[cut])
            out["labels"].append(short)
            out[PROBLEM].append(problem)
        if weights is not None:
            out["weight"] = [weight[cut] if is_per_token(weight) else weight for weight in weights]
        return out


@dataclass(frozen=True)
class SpreadOverTokens:
    """Turn `weight` and `__hf_ext_row__` into lists as long as `input_ids`, so that they can be packed with it."""

    revision: str = "1"

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Spread one batch."""
        lengths = [len(ids) for ids in batch["input_ids"]]
        out = {ROW_INDEX: [[i] * n for i, n in zip(batch[ROW_INDEX], lengths, strict=True)]}
        if "weight" in batch:
            out["weight"] = [
                w if is_per_token(w) else [float(w)] * n for w, n in zip(batch["weight"], lengths, strict=True)
            ]
        return out


@dataclass(frozen=True)
class RowIndexOfDocuments:
    """After packing, keep one `__hf_ext_row__` a document instead of one a token."""

    revision: str = "1"

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Shorten one batch."""
        out = []
        for index, lengths in zip(batch[ROW_INDEX], batch["seq_lengths"], strict=True):
            ends = torch.as_tensor(lengths).cumsum(0).tolist()
            out.append([index[end - 1] for end in ends])
        return {ROW_INDEX: out}


def finish_rows(
    dataset: AnyDataset,
    args: SFTConfig,
    packing: bool,
    dataset_name: str = "train",
    *,
    on_bad_row: str = "raise",
    bad_rows_path: str | None = None,
) -> AnyDataset:
    """
    Truncate, check, pack and shuffle tokenised rows as `SFTTrainer` does, keeping `weight` and `__hf_ext_row__`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `input_ids`, `labels`, `__hf_ext_row__` and, if there are weights, `weight`. Rows that are packed
            already (a `seq_lengths` column, from [`prepare_sft_rows`]) pass unchanged.
        args (`SFTConfig`):
            Gives `max_length`, `truncation_mode`, `packing_strategy`, `shuffle_dataset`, `seed`, `dataset_num_proc`.
        packing (`bool`):
            Whether to pack. Packed rows have `seq_lengths` (documents), `weight` (tokens) and `__hf_ext_row__`
            (documents).
        dataset_name (`str`):
            Used in messages.
        on_bad_row (`str`), bad_rows_path (`str`, *optional*):
            What to do with rows that have no supervised token left, or weights that do not fit their tokens.

    Raises:
        RowError: with `on_bad_row="raise"`, for the first such row.
        ValueError: if no row is left, or `packing` comes without `max_length`.
    """
    names = column_names(dataset)
    if "seq_lengths" in names:
        return dataset
    if packing and args.max_length is None:
        raise ValueError("When packing is enabled, `max_length` can't be `None`.")
    kwargs: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    split = packing and args.packing_strategy == "bfd_split"
    truncate = TruncateRows(
        max_length=None if split else args.max_length,
        keep_end=args.truncation_mode == "keep_end" and not packing,
    )
    desc = {"desc": f"Truncating {dataset_name} dataset"} if kwargs else {}
    dataset = dataset.map(truncate, batched=True, **desc, **kwargs)
    dataset = drop_problem_rows(
        dataset, on_bad_row, bad_rows_path, dataset_name, "has no row left with a supervised token. Raise max_length."
    )
    if packing:
        dataset = _pack(dataset, args, names, dataset_name, kwargs)
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    return dataset


def _pack(
    dataset: AnyDataset, args: SFTConfig, names: list[str], dataset_name: str, kwargs: dict[str, Any]
) -> AnyDataset:
    # The order matters: TRL measures lengths on the first column.
    keep = ["input_ids", "labels", *(["weight"] if "weight" in names else []), ROW_INDEX]
    dataset = dataset.select_columns(keep)
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    if isinstance(dataset, Dataset):
        kwargs = {**kwargs, "desc": f"Packing {dataset_name} dataset"}
        spread = Features({name: List(Value("int64")) for name in keep})
        spread.update({name: dataset.features[name] for name in ("input_ids", "labels")})
        if "weight" in names:
            spread["weight"] = List(Value("float64"))
        dataset = dataset.map(SpreadOverTokens(), batched=True, features=spread, **kwargs)
    else:
        dataset = dataset.map(SpreadOverTokens(), batched=True)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, kwargs)
    return dataset.map(RowIndexOfDocuments(), batched=True, **kwargs)


def prepare_sft_rows(
    dataset: AnyDataset,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig | None = None,
    *,
    formatting_func: Callable[[dict], str] | None = None,
    dataset_name: str = "train",
) -> AnyDataset:
    """
    The rows a weighted trainer would train on, without the trainer: checked, tokenised, labelled, cut and packed.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of any TRL SFT data type, with or without a `weight` column.
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer the trainer gets.
        args (`SFTConfig`, *optional*):
            The trainer's config (`SFTConfig()` if not given): `max_length`, `packing`, `assistant_only_loss`...
        formatting_func (`Callable`, *optional*):
            As in `SFTTrainer`.
        dataset_name (`str`):
            Used in messages.

    Returns:
        The same kind of dataset with `input_ids`, `labels`, `__hf_ext_row__` (position in `dataset`), `weight` if it
        was there, and `seq_lengths` if packed. A trainer takes it as it is.

    Raises:
        RowError: if a row is malformed and `args.on_bad_row` is not `"drop"`.
    """
    if args is None:
        args = SFTConfig(report_to="none", bf16=False)
    on_bad_row = getattr(args, "on_bad_row", "raise")
    path = getattr(args, "bad_rows_path", None)
    dataset = host_rows(
        unformatted(dataset), args, formatting_func, dataset_name, on_bad_row=on_bad_row, bad_rows_path=path
    )
    tokenizer = with_end_token(processing_class, args)
    template = training_template(tokenizer, args)
    warn_of_unread_parts(dataset, template or tokenizer.chat_template, dataset_name)
    dataset = tokenise_checked(
        dataset, lambda rows: tokenise_rows(rows, tokenizer, args, dataset_name), tokenizer, args,
        chat_template=template, dataset_name=dataset_name,
    )  # fmt: skip
    return finish_rows(dataset, args, args.packing, dataset_name, on_bad_row=on_bad_row, bad_rows_path=path)


# --- from rows to a batch --------------------------------------------------------------------------------------------


def documents_of_batch(rows: list[dict[str, Any]], labels: Tensor, flat: bool) -> Tensor:
    """
    Which document of the batch each position belongs to.

    Args:
        rows (`list[dict]`): the rows of the batch, with `input_ids` and, where packed, `seq_lengths`.
        labels (`torch.Tensor` of shape `(batch, seq_len)`): the collated labels.
        flat (`bool`): whether the rows were flattened into one sequence (padding-free).

    Returns:
        `torch.Tensor` of shape `(batch, seq_len)`: document numbers from 0 in the rows' order, -1 on padding.
    """
    lengths = [row.get("seq_lengths") or [len(row["input_ids"])] for row in rows]
    documents = torch.full_like(labels, -1)
    if flat:
        flattened = torch.tensor([n for row in lengths for n in row])
        documents[0, : int(flattened.sum())] = torch.repeat_interleave(torch.arange(len(flattened)), flattened)
    else:
        start = 0
        for i, row in enumerate(lengths):
            documents[i, : sum(row)] = torch.repeat_interleave(
                torch.arange(start, start + len(row)), torch.tensor(row)
            )
            start += len(row)
    return documents


def spread_column(rows: list[dict[str, Any]], column: str, like: Tensor, flat: bool, fill: float) -> Tensor:
    """
    A per-row or per-token column as a tensor shaped like the labels.

    Args:
        rows (`list[dict]`): the rows of the batch; a missing column or `None` counts as `fill`.
        column (`str`): name of a column of scalars, or of lists as long as `input_ids`.
        like (`torch.Tensor` of shape `(batch, seq_len)`): the collated labels.
        flat (`bool`): whether the rows were flattened into one sequence (padding-free).
        fill (`float`): the value of rows without the column; padding gets 0.

    Returns:
        `torch.Tensor` of shape `(batch, seq_len)`, float32.
    """
    out = torch.zeros(like.shape, dtype=torch.float32)
    start = 0
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        value = row.get(column)
        value = fill if value is None else value
        place = (0, slice(start, start + n)) if flat else (i, slice(0, n))
        out[place] = torch.as_tensor(value, dtype=torch.float32)
        start += n
    return out


@dataclass
class WeightedCollator:
    """
    Wraps TRL's collator and adds what the weighted loss needs, each shaped like `labels` unless said otherwise.

    Adds `weight` (the multiplier of each token's loss; under `reduction="row"` divided by its document's supervised
    tokens), `__hf_ext_row__` (dataset row of each token, -1 on padding), `num_items` (shape `(1,)`: this micro-batch's
    share of the denominator) and each of `extra_columns` (0 where a row has none).

    Args:
        inner (`Callable`): collator of `input_ids`, `labels` and `seq_lengths`.
        normalize (`str`): `"weights"` divides the loss by the sum of weights, `"tokens"` by their number.
        reduction (`str`): `"token"`: every token counts alike; `"row"`: every document's mean counts alike.
        extra_columns (`tuple[str, ...]`): further per-token columns.
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]
    normalize: str = "weights"
    reduction: str = "token"
    extra_columns: tuple[str, ...] = ()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows into a batch."""
        our_columns = ("weight", ROW_INDEX, *self.extra_columns)
        batch = self.inner([{k: v for k, v in row.items() if k not in our_columns} for row in rows])
        labels = batch["labels"]
        flat = "attention_mask" not in batch
        column = partial(spread_column, rows, like=labels, flat=flat)
        weight = column("weight", fill=1.0)
        documents = documents_of_batch(rows, labels, flat)
        supervised = torch.zeros_like(labels, dtype=torch.bool)
        supervised[:, 1:] = labels[:, 1:] != -100
        present = documents[supervised]
        if self.reduction == "row":
            counts = torch.bincount(present, minlength=int(documents.max()) + 1).clamp(min=1)
            weight = weight / counts[documents.clamp(min=0)]
        if self.normalize == "weights":
            num_items = weight[supervised].sum(dtype=torch.float64)
        else:
            num_items = torch.tensor(len(present) if self.reduction == "token" else len(present.unique()))
        batch["weight"] = weight
        batch[ROW_INDEX] = self._row_index(rows, documents)
        batch["num_items"] = num_items.to(torch.float32).reshape(1)
        for name in self.extra_columns:
            batch[name] = column(name, fill=0.0)
        return batch

    @staticmethod
    def _row_index(rows: list[dict[str, Any]], documents: Tensor) -> Tensor:
        of_document: list[int] = []
        for row in rows:
            index = row.get(ROW_INDEX, -1)
            of_document += index if isinstance(index, list) else [index] * len(row.get("seq_lengths") or [0])
        return torch.where(documents >= 0, torch.tensor(of_document)[documents.clamp(min=0)], -1)
