"""The rows a report scores: token ids and labels of held-out target rows, context-free samples and general text."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_ext._columns import ROW_INDEX
from hf_ext.evaluation.models import Model
from hf_ext.guards.tokens import count_doubled, without_padding
from hf_ext.guards.vocabulary import require_embedded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

    from hf_ext.data.context_free import ContextFreeStore

__all__ = ["Rows", "group_names", "rows_to_score"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """
    Token ids, and labels with -100 where not supervised; one list a row. `index` is its position in the dataset.

    `start` names what sampled rows began with, where there are several seeds.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    index: list[int]
    start: list[str] | None = None

    @property
    def num_tokens(self) -> NDArray[np.float64]:
        """Supervised tokens of each row, shape `(rows,)`; the first token has nothing before it to predict it from."""
        return np.array([_count(labels) for labels in self.labels], dtype=np.float64)


def rows_to_score(
    original: Model,
    tokenizer: PreTrainedTokenizerBase,
    target: Dataset | None,
    context_free: ContextFreeStore | Dataset | str | Path | None,
    general_text: Dataset | Sequence[str] | None,
    args: SFTConfig | None,
    max_length: int,
) -> dict[str, Rows]:
    """Rows to score by measure: `target`, `kl`, `general`, those that were given."""
    rows = {}
    if target is not None:
        prepared = _prepared_target(target, tokenizer, args, max_length)
        require_embedded(prepared, original, tokenizer, "target")
        rows["target"] = _token_rows(prepared, "target", max_length)
    if context_free is not None:
        samples = _context_free_dataset(context_free, original)
        rows["kl"] = _token_rows(samples, "context_free", max_length)
        if "start" in samples.column_names:
            names = samples.with_format(None)["start"][:]
            rows["kl"] = replace(rows["kl"], start=[names[i] for i in rows["kl"].index])
    if general_text is not None:
        if isinstance(general_text, Dataset):
            require_columns(general_text, ["text"], "general_text")
        texts = list(general_text["text"] if isinstance(general_text, Dataset) else general_text)
        ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        general = count_doubled(Dataset.from_dict({"input_ids": ids, "labels": ids}), tokenizer, "general_text")
        require_embedded(general, original, tokenizer, "general_text")
        rows["general"] = _token_rows(general, "general_text", max_length)
    return rows


def _prepared_target(
    target: Dataset, tokenizer: PreTrainedTokenizerBase, args: SFTConfig | None, max_length: int
) -> Dataset:
    if not isinstance(target, Dataset):
        raise TypeError(f"target must be a datasets.Dataset, got {type(target).__name__}; take(n) and load it first.")
    if "seq_lengths" in target.column_names:
        raise ValueError("target is packed; give the unpacked rows, an interval over rows needs rows.")
    if ROW_INDEX in target.column_names:  # positions in an earlier dataset, and groups are looked up in this one
        target = target.remove_columns(ROW_INDEX)
    if {"input_ids", "labels"} <= set(target.column_names):
        return without_padding(target, "target")
    from trl import SFTConfig

    from hf_ext.data.weighting import prepare_sft_rows

    args = copy.copy(args) if args is not None else SFTConfig(report_to="none", bf16=False, max_length=max_length)
    # An interval over rows needs rows, and groups are looked up by their positions.
    args.packing = False
    args.shuffle_dataset = False
    return prepare_sft_rows(target, tokenizer, args, dataset_name="target")


def _context_free_dataset(context_free: ContextFreeStore | Dataset | str | Path, original: Model) -> Dataset:
    if isinstance(context_free, Dataset):
        return context_free
    from hf_ext.data.context_free import ContextFreeStore

    store = context_free if isinstance(context_free, ContextFreeStore) else ContextFreeStore(context_free)
    store.check_model(original)
    return store.to_dataset()


def _token_rows(dataset: Dataset, name: str, max_length: int) -> Rows:
    require_columns(dataset, ["input_ids", "labels"], name)
    plain = dataset.with_format(None)
    positions = plain[ROW_INDEX] if ROW_INDEX in plain.column_names else range(len(plain))
    columns = zip(plain["input_ids"], plain["labels"], positions, strict=True)
    cut = [(list(ids[:max_length]), list(labels[:max_length]), int(i)) for ids, labels, i in columns]
    scorable_rows = [row for row in cut if _count(row[1]) > 0]
    if not scorable_rows:
        raise ValueError(
            f"{name}: none of {len(cut)} rows has a supervised token within max_length={max_length}. "
            "Give rows whose labels are not all -100, or raise max_length."
        )
    if len(scorable_rows) < len(cut):
        is_cut = any(len(ids) > max_length for ids in plain["input_ids"])
        logger.warning(
            "%s: %d of %d rows have no supervised token within max_length=%d and are left out of the report%s",
            name,
            len(cut) - len(scorable_rows),
            len(cut),
            max_length,
            "; raise max_length to include those that have one beyond it." if is_cut else ".",
        )
    return Rows(*(list(column) for column in zip(*scorable_rows, strict=True)))


def group_names(target: Dataset | None, groups: str | None, rows: Rows | None) -> NDArray[np.str_] | None:
    """The group of each scored target row, as `column=value`."""
    if groups is None:
        return None
    if target is None or rows is None:
        raise ValueError(f"groups={groups!r} names a column of target, but no target was given.")
    require_columns(target, [groups], "target")
    values = target.with_format(None)[groups]
    return np.array([f"{groups}={values[i]}" for i in rows.index])


def require_columns(dataset: Dataset, columns: list[str], name: str) -> None:
    """Refuse a dataset, called `name` in the message, that lacks one of `columns`."""
    for column in columns:
        if column not in dataset.column_names:
            raise ValueError(f"{name} has no column {column!r}; it has {dataset.column_names}.")


def _count(labels: list[int]) -> int:
    return sum(label != -100 for label in labels[1:])
