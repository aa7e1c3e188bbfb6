"""Documents of a dataset, one after the other, and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hf_ext.guards.row_errors import RowError
from hf_ext.guards.row_text import describe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def texts_of(documents: Any, column: str, name: str, kind: type = str) -> Iterator[Any]:
    """
    The values of a column of a dataset, or of a sequence of texts, one after the other.

    Args:
        documents (`Dataset`, `IterableDataset` or `Sequence`):
            The rows.
        column (`str`):
            Name of the column.
        name (`str`):
            What messages call the rows.
        kind (`type`, *optional*, defaults to `str`):
            What the values must be.

    Raises:
        ValueError: if there is no such column.
        RowError: if a value is something else.
    """
    rows: Iterable[Any] = documents
    if hasattr(documents, "column_names"):
        if documents.column_names is not None and column not in documents.column_names:
            raise ValueError(f"{name} has no column {column!r}, but {sorted(documents.column_names)}. Name another.")
        rows = (row[column] for row in documents.select_columns([column]))
    for row_index, value in enumerate(rows):
        require_kind(value, row_index, column, name, kind)
        yield value


def require_kind(value: object, row_index: int, column: str, name: str, kind: type = str) -> None:
    """
    Refuse a value of the wrong type.

    Raises:
        RowError: if it is none of `kind`; the message names the row, the column and the set.
    """
    if not isinstance(value, kind):
        raise RowError(
            f"row {row_index:,} of {name}, column {column!r}: expected a string, found {describe(value)}.\n"
            "  Fix the row, or drop it with dataset.filter.",
            row_index,
            column,
        )


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each text, without any at its beginning or end; names of special tokens in it are text like other."""
    # lone surrogates, which have no UTF-8, would be refused without a word of the row
    sound = [text.encode("utf-8", "replace").decode() for text in texts]
    return tokenizer(
        sound, add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip
