"""Names of columns: ours, and those by which the host libraries tell the type of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NO_ROW = "The dataset gave no row: look at its filters, its split and the rows that were dropped."
OUR_PREFIX = "__hf_ext_"
# Positions of rows in the dataset as it was given. Many datasets have a `row_index` of their own, none has this.
ROW_INDEX = f"{OUR_PREFIX}row__"

# TRL (1.16) reads these by name, whatever type the rows are of: `is_conversational` takes one of the first five in the
# order of a set, so that the end token came and went with PYTHONHASHSEED; a user's class column `labels` is taken for
# token labels, a `seq_lengths` for packed rows.
HOST_COLUMNS = (
    "prompt", "chosen", "rejected", "completion", "messages", "conversations", "text", "input_ids", "labels",
    "completion_mask", "assistant_masks", "seq_lengths", "tools", "chat_template_kwargs",
)  # fmt: skip


def columns_of_other_types(names: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """Those of the columns `names` that a host would read though the rows are of a type made of `chosen` alone."""
    chosen_names = set(chosen)
    return [name for name in names if name in HOST_COLUMNS and name not in chosen_names]


def column_names(dataset: Any) -> list[str]:
    """
    Column names of a `Dataset` or `IterableDataset`, read off the first row where a stream does not know them.

    Raises:
        ValueError: a stream of unknown columns gives no row.
    """
    names = dataset.column_names
    first = next(iter(dataset), None) if names is None else names
    if first is None:
        raise ValueError(NO_ROW)
    return list(first)
