"""What rows a mixture can draw from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["checked_rows", "checked_sources", "require_same_columns"]


def checked_sources(sources: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Sources by name, as they were given; `ValueError` where one cannot be drawn from, or has columns of its own."""
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError("sources must map the name of each source to its rows, and name at least one.")
    source_rows = {}
    for name, rows in sources.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a source must be a text, got {name!r}.")
        source_rows[name] = checked_rows(f"source {name!r}", rows)
    first = next(iter(source_rows))
    for name, rows in source_rows.items():
        require_same_columns(first, source_rows[first], f"source {name!r}", rows)
    return source_rows


def checked_rows(title: str, rows: Dataset) -> Dataset:
    """Rows as they were given; `ValueError` where they are a stream, or there is none."""
    if not (hasattr(rows, "select") and hasattr(rows, "column_names") and hasattr(rows, "__len__")):
        raise ValueError(
            f"{title} is a {type(rows).__name__}, and must be a datasets.Dataset: rows are drawn from it in any order "
            "and a resumed run draws them again, which a stream cannot give. Materialise it, for instance with "
            "datasets.Dataset.from_list(list(stream.take(n)))."
        )
    if len(rows) == 0:
        raise ValueError(f"{title} is empty: there is no row to draw. Check its filters and split.")
    return rows


def require_same_columns(first: str, first_rows: Dataset, title: str, rows: Dataset) -> None:
    """`ValueError` where rows have other columns than the source `first`; the message names them."""
    names, other_names = set(first_rows.column_names), set(rows.column_names)
    if names != other_names:
        raise ValueError(
            f"{title} and source {first!r} have unlike columns: {sorted(other_names - names)} in the former alone, "
            f"{sorted(names - other_names)} in the latter alone. Rename or remove columns until all have the same."
        )
