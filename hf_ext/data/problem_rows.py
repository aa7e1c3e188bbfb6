"""Rows that a map has marked as bad: raised, or left out and written down, in datasets and streams alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from hf_ext._columns import OUR_PREFIX, ROW_INDEX
from hf_ext._upstream.rows import AnyDataset
from hf_ext.guards.row_text import excerpt_of
from hf_ext.guards.rows import RowProblem, handle_bad_rows

PROBLEM = "__hf_ext_problem__"  # "column: what is wrong", empty where the row is good


@dataclass(frozen=True)
class _StreamedGoodRow:
    """Filter of a streamed dataset: raises, or writes the row down and drops it."""

    on_bad_row: str
    bad_rows_path: str | None
    dataset_name: str
    revision: str = "1"

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether to keep the row."""
        if not row[PROBLEM]:
            return True
        _report([row], self.on_bad_row, self.bad_rows_path, self.dataset_name)
        return False


def _report(rows: list[dict[str, Any]], on_bad_row: str, bad_rows_path: str | None, dataset_name: str) -> None:
    problems = []
    for row in rows:
        column, _, text = row[PROBLEM].partition(": ")
        visible = {name: value for name, value in row.items() if not name.startswith(OUR_PREFIX)}
        problems.append(RowProblem(row[ROW_INDEX], column, text, excerpt_of(visible, column, "text")))
    by_index = {row[ROW_INDEX]: row for row in rows}
    handle_bad_rows(problems, by_index.__getitem__, on_bad_row, bad_rows_path, dataset_name)


def drop_problem_rows(
    dataset: AnyDataset, on_bad_row: str, bad_rows_path: str | None, dataset_name: str, none_left: str
) -> AnyDataset:
    """
    Raise at the first row with a text in its column `__hf_ext_problem__`, or leave such rows out; the column goes.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with that column and `__hf_ext_row__`.
        on_bad_row (`str`), bad_rows_path (`str`, *optional*), dataset_name (`str`):
            As in [`check_sft_rows`].
        none_left (`str`):
            What to say where no row is left: `has no row left ...`.

    Raises:
        RowError: with `on_bad_row="raise"`, for the first such row.
        ValueError: if no row is left.
    """
    if not isinstance(dataset, Dataset):
        dataset = dataset.filter(_StreamedGoodRow(on_bad_row, bad_rows_path, dataset_name))
        return dataset.remove_columns(PROBLEM)
    flags = dataset.with_format(None)[PROBLEM]
    bad = [i for i, problem in enumerate(flags) if problem]
    if bad:
        _report([dataset[i] for i in bad], on_bad_row, bad_rows_path, dataset_name)
        dataset = dataset.select([i for i, problem in enumerate(flags) if not problem])
        if len(dataset) == 0:
            raise ValueError(f"The {dataset_name} dataset {none_left}")
    return dataset.remove_columns(PROBLEM)
