"""Packed sequences on their way into the model: checked, numbered, cut into inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from hf_ext._columns import ROW_INDEX, column_names
from hf_ext.guards.row_errors import RowError

COLUMN = "input_ids"
_BATCH_ROWS = 10_000


def checked_sequences(
    dataset: Dataset | IterableDataset, sequence_length: int, name: str = "train"
) -> Dataset | IterableDataset:
    """
    The column of tokens alone; rows of a `Dataset` numbered, so that errors name them.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Packed sequences.
        sequence_length (`int`):
            Tokens to predict in each.
        name (`str`, *optional*, defaults to `"train"`):
            Of the set, for messages.

    Raises:
        ValueError: if there is no such column, or no row.
        RowError: if a row has another number of tokens; of a stream, when it is read.
    """
    if COLUMN not in column_names(dataset):
        raise ValueError(
            f"The {name} dataset is no set of packed sequences: it has no column {COLUMN!r}, but "
            f"{column_names(dataset)}. `pack` makes one of documents."
        )
    dataset = dataset.select_columns(COLUMN)
    if not isinstance(dataset, Dataset):
        return dataset
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has no row.")
    position = 0
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        lengths = np.asarray(pc.list_value_length(table.column(COLUMN)).fill_null(0))
        wrong = np.flatnonzero(lengths != sequence_length + 1)
        if len(wrong):
            raise _wrong_length(position + int(wrong[0]), int(lengths[wrong[0]]), sequence_length, name)
        position += len(lengths)
    return dataset.add_column(ROW_INDEX, np.arange(len(dataset)))


def _wrong_length(row_index: int, length: int, sequence_length: int, name: str) -> RowError:
    place = "a row of the stream" if row_index < 0 else f"row {row_index:,}"
    return RowError(
        f"{name} dataset, {place}, column {COLUMN!r}: {length:,} tokens, and sequence_length={sequence_length:,} "
        f"needs {sequence_length + 1:,}: those to predict and the one before them. Set sequence_length to that of the "
        "shards, or pack them anew.",
        row_index=row_index,
        column=COLUMN,
    )


@dataclass(frozen=True)
class NextTokens:
    """
    A collator of packed sequences.

    | column in | type | entry out | shape |
    |---|---|---|---|
    | `input_ids` | list of int | `input_ids`, all tokens but the last | `(batch, sequence_length)` |
    | | | `labels`, the token after each of them | `(batch, sequence_length)` |

    Args:
        sequence_length (`int`):
            Tokens to predict in a row.
        vocab_size (`int`):
            Tokens of the model.
    """

    sequence_length: int
    vocab_size: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Collate rows.

        Raises:
            RowError: if a row of a stream has another length, or a token that the model has no embedding for.
        """
        for row in rows:
            if len(row[COLUMN]) != self.sequence_length + 1:
                raise _wrong_length(-1, len(row[COLUMN]), self.sequence_length, "train")
        ids = torch.as_tensor(np.array([row[COLUMN] for row in rows], dtype=np.int64))
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= self.vocab_size:
            raise RowError(
                f"column {COLUMN!r}: the token {least if least < 0 else most:,} is none of the model's "
                f"{self.vocab_size:,}: these sequences were packed with another tokenizer.",
                row_index=-1,
                column=COLUMN,
            )
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
