"""Splits of one schema, as `push_to_hub` and `load_dataset` want them, after a method has changed one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def with_split(
    splits: Mapping[str, Dataset], name: str, rows: Dataset, neutral: Mapping[str, Any] | None = None
) -> DatasetDict:
    """
    The splits with `rows` in place of split `name`; the others get the columns that `rows` gained.

    Args:
        splits (`Mapping[str, Dataset]`):
            As they were.
        name (`str`):
            The split that changed.
        rows (`Dataset`):
            Its rows now.
        neutral (`Mapping[str, Any]`, *optional*):
            By column the value that says of a row that nothing was done to it; `None` by default.

    Returns:
        `DatasetDict`: in the same order.
    """
    from datasets import DatasetDict

    gained = [column for column in rows.column_names if column not in splits[name].column_names]
    result = DatasetDict()
    for split, others in splits.items():
        if split == name:
            result[split] = rows
            continue
        for column in gained:
            if column not in others.column_names:
                values = [(neutral or {}).get(column)] * len(others)
                others = others.add_column(column, values, feature=rows.features[column])
        result[split] = others
    return result
