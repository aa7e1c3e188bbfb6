"""Check the rows of a retrieval dataset before training, texts beside texts, and name the bad ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from hf_ext.guards._row_rules import Role, RowRules
from hf_ext.guards.rows import _check_arguments, _check_dataset, _check_stream, _first_rows


@dataclass(frozen=True)
class RetrievalRules(RowRules):
    """
    The rules for the rows of one retrieval dataset: every column that is checked holds a text.

    Args:
        texts (`tuple[str, ...]`): columns of texts, the query's first.
        data_type, conversational, text_field, assistant_only_loss, columns: as in [`RowRules`].
    """

    texts: tuple[str, ...] = ()

    def roles(self) -> dict[str, Role]:
        """Columns to check and the role each plays, in the order of checking."""
        return dict.fromkeys(self.texts, "string")


def check_retrieval_rows(
    dataset: Dataset | IterableDataset,
    texts: Sequence[str],
    *,
    on_bad_row: str = "raise",
    bad_rows_path: str | os.PathLike[str] | None = None,
    dataset_name: str = "train",
) -> Dataset | IterableDataset:
    """
    Check raw rows of a query, its document and perhaps further ones, and number them.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of texts.
        texts (`Sequence[str]`):
            Columns that must hold a non-empty string in every row, the query's first.
        on_bad_row (`str`), bad_rows_path (`str` or `os.PathLike`), dataset_name (`str`):
            As in [`check_sft_rows`].

    Returns:
        `Dataset` or `IterableDataset`: the good rows in their order, with an int64 column `row_index`: their position
        in `dataset`. A `row_index` that is already there is kept.

    Raises:
        [`RowError`]: at a bad row with `on_bad_row="raise"`.
        ValueError: for an empty dataset, or one with no good row.
    """
    _check_arguments(dataset, on_bad_row, bad_rows_path)
    first_rows = _first_rows(dataset)
    if not first_rows:
        raise ValueError(
            f"The {dataset_name} dataset is empty: there is no row to train on. Check its filters and split."
        )
    columns = tuple(dataset.column_names or first_rows[0])
    rules = RetrievalRules(
        data_type="retrieval", conversational=False, text_field=texts[0], assistant_only_loss=False, columns=columns,
        texts=tuple(texts),
    )  # fmt: skip
    if isinstance(dataset, Dataset):
        return _check_dataset(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
    return _check_stream(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
