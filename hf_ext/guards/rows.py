"""
Check the rows of a dataset before training, and name the bad ones.

TRL meets a bad row in the middle of `Dataset.map`, with `AttributeError: 'NoneType' object has no attribute
'endswith'` and neither row nor column; an empty string it trains on. The check here reads the raw rows first: on a
`Dataset` column by column through Arrow, on an `IterableDataset` as they pass.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.fingerprint import Hasher

from hf_ext._columns import ROW_INDEX
from hf_ext.guards import arrow_checks
from hf_ext.guards.bad_rows_file import append_lines, line_of, rank
from hf_ext.guards.row_errors import (
    RowError,
    RowProblem,
    check_choice,
    handle_bad_rows,
    remedy_of,
    row_error,
    row_number,
    warn_of_dropped,
)
from hf_ext.guards.row_rules import RowDefect, RowRules, rules_for
from hf_ext.guards.row_text import excerpt_of
from hf_ext.guards.weights import refuse_vanishing_weights

__all__ = ["RowError", "RowProblem", "check_by_rules", "check_sft_rows", "handle_bad_rows", "sft_rules"]

logger = logging.getLogger(__name__)

REVISION = "1"  # changes whenever the rows or columns that come out would: datasets hashes this, not the code
BATCH_SIZE = 10_000
ROWS_IN_MEMORY = 1000  # bad rows read at a time, whole
FIRST_ROWS = 100  # of a stream: enough to see whether turns are strings or messages


def check_sft_rows(
    dataset: Dataset | IterableDataset,
    *,
    dataset_text_field: str = "text",
    assistant_only_loss: bool = False,
    formatting_func: Callable[..., Any] | None = None,
    on_bad_row: str = "raise",
    bad_rows_path: str | os.PathLike[str] | None = None,
    dataset_name: str = "train",
) -> Dataset | IterableDataset:
    """
    Check raw rows for supervised fine-tuning and number them.

    | data type | columns checked |
    |---|---|
    | text | `dataset_text_field`: a non-empty string |
    | conversation | `messages` (role, content), or `conversations` (from, value; `human`, `gpt`, `system`...) |
    | prompt-completion | `prompt`, `completion`: both strings (an empty prompt is fine), or both lists of messages |
    | pretokenised | `input_ids`, `labels`, `completion_mask`, `assistant_masks`: lists of integers, equally long |
    | every type | `weight`, where there is one: a finite number >= 0 a row, or a list of them |

    Columns of several types: what counts is `input_ids`, else a column that `dataset_text_field` names (other than the
    default), else `prompt` with `completion`, `conversations` (from, value), `messages`, `text`, in this order.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of any type that TRL's `SFTTrainer` reads, before tokenising.
        dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column of the text.
        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Also require a message of the assistant in every conversation.
        formatting_func (`Callable`, *optional*):
            The trainer's function that makes the text. What it returns cannot be known here, so only `weight` is
            checked.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at the first bad row; `"drop"` leaves bad rows out and writes them to `bad_rows_path`.
        bad_rows_path (`str` or `os.PathLike`, *optional*):
            JSON-lines file to append dropped rows to. Required for `"drop"`. Reading a stream again (a second epoch)
            appends its bad rows again, and a process of rank `r > 0`, which may read other rows of a stream, writes
            them to `<name>.rank<r>.jsonl`.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Named in messages.

    Returns:
        `Dataset` or `IterableDataset`: the good rows in their order, with an int64 column `__hf_ext_row__`: their
        position in `dataset`. One that is already there, from an earlier call, is kept. In a stream read by several
        dataloader workers, each counts the rows it reads itself.

    Raises:
        [`RowError`]: if a row is bad and `on_bad_row="raise"` (a stream: when it is read), a column is missing,
        or a `__hf_ext_row__` that is there is no integer (the error's `row_index` is then -1).
        ValueError: if the dataset is empty, no row is good, or every weight is zero or vanishes (not checked on
            streams).
    """
    check_arguments(dataset, on_bad_row, bad_rows_path)
    rules = sft_rules(
        dataset, dataset_text_field, assistant_only_loss, formatted=formatting_func is not None, name=dataset_name
    )
    return check_by_rules(dataset, rules, on_bad_row, bad_rows_path, dataset_name)


def sft_rules(
    dataset: Dataset | IterableDataset, dataset_text_field: str, assistant_only_loss: bool, formatted: bool, name: str
) -> RowRules:
    """The rules for a dataset's rows, with the data type they are of; errors as in [`check_sft_rows`]."""
    first_rows = require_rows(dataset, name)
    columns = dataset.column_names if dataset.column_names is not None else list(first_rows[0])
    rules = rules_for(
        columns,
        first_rows,
        text_field=dataset_text_field,
        assistant_only_loss=assistant_only_loss,
        formatted=formatted,
    )
    if isinstance(rules, RowDefect):  # no row is good, so there is nothing that "drop" could keep
        excerpt = excerpt_of(first_rows[0], rules.column, dataset_text_field)
        index = row_number(first_rows[0]) if ROW_INDEX in first_rows[0] else 0
        problem = RowProblem(index, rules.column, rules.problem, excerpt)
        remedy = (
            "Rename your column with dataset.rename_column, name it with dataset_text_field "
            f"(now {dataset_text_field!r}), or remove the columns of another data type with dataset.remove_columns."
        )
        raise row_error(problem, 0, name, remedy)
    return rules


def check_by_rules(
    dataset: Dataset | IterableDataset,
    rules: RowRules,
    on_bad_row: str,
    bad_rows_path: str | os.PathLike[str] | None,
    dataset_name: str,
) -> Dataset | IterableDataset:
    """[`check_sft_rows`] by rules that are at hand."""
    if isinstance(dataset, Dataset):
        return _check_dataset(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
    return _check_stream(dataset, rules, on_bad_row, bad_rows_path, dataset_name)


@dataclass(frozen=True)
class AddRowIndex:
    """Number the rows of a stream, for `IterableDataset.map(..., with_indices=True)`: adds `__hf_ext_row__`."""

    revision: str = REVISION

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, int]:
        """Number one row."""
        return {ROW_INDEX: index}


@dataclass(frozen=True)
class IsGoodRow:
    """
    Check the rows of a stream as they pass, for `IterableDataset.filter`; each row must have its `__hf_ext_row__`.

    Args:
        rules ([`RowRules`]):
            The rules of the dataset.
        on_bad_row (`str`):
            `"raise"`, or `"drop"`: false for a bad row, after writing it to the file.
        bad_rows_path (`str`, *optional*):
            The file for `"drop"`.
        dataset_name (`str`):
            Named in messages.
    """

    rules: RowRules
    on_bad_row: str
    bad_rows_path: str | None
    dataset_name: str
    revision: str = REVISION

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether the row is good."""
        row_number(row)  # refuses a stranger's column of that name, in good rows too
        defect = self.rules(row)
        if defect is None:
            return True
        problem = _problem(row, defect, self.rules)
        path = self.bad_rows_path
        if self.on_bad_row == "drop" and rank() != 0:
            name = Path(str(path))  # ranks may read different rows of a stream: each writes its own
            own_name = name.with_name(f"{name.stem}.rank{rank()}{name.suffix}")
            append_lines([line_of(problem.row_index, problem.column, problem.problem, row)], own_name)
        else:
            handle_bad_rows([problem], lambda _: row, self.on_bad_row, path, self.dataset_name)
        return False


def check_arguments(dataset: object, on_bad_row: str, bad_rows_path: str | os.PathLike[str] | None) -> None:
    """Refuse what is no single dataset, and an `on_bad_row` that cannot be carried out."""
    check_choice(on_bad_row, bad_rows_path)
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise TypeError(
            "Expected one dataset, got a dict of splits. Pass one of them, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]."
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"Expected a datasets.Dataset or IterableDataset, got {type(dataset).__name__}. Make one with "
            "Dataset.from_list(rows)."
        )


def require_rows(dataset: Dataset | IterableDataset, dataset_name: str) -> list[dict[str, Any]]:
    """The first 100 rows, or a ValueError where there is none."""
    if rows := beginning_of(dataset):
        return rows
    raise ValueError(f"The {dataset_name} dataset is empty: there is no row to train on. Check its filters and split.")


def beginning_of(dataset: Dataset | IterableDataset) -> list[dict[str, Any]]:
    """The first 100 rows, as Python objects."""
    if isinstance(dataset, Dataset):
        return list(dataset.with_format(None).select(range(min(len(dataset), FIRST_ROWS))))
    return list(islice(dataset, FIRST_ROWS))


def _check_dataset(
    dataset: Dataset,
    rules: RowRules,
    on_bad_row: str,
    bad_rows_path: str | os.PathLike[str] | None,
    dataset_name: str,
) -> Dataset:
    dataset = _with_row_index(dataset)
    plain = dataset.with_format(None)
    if on_bad_row == "raise":
        bad = find_bad_rows(plain, rules, list(rules.roles()))
        first = next(bad, None)
        if first is not None:
            position, defect, _ = first
            more = sum(1 for _ in bad)
            raise row_error(_problem(plain[position], defect, rules), more, dataset_name, remedy_of(bad_rows_path))
    else:
        dropped_rows = _Dropped(plain, rules)
        dropped_rows.write(bad_rows_path, dataset_name)
        if len(dropped_rows.positions) == len(dataset):
            problem = dropped_rows.first
            raise ValueError(
                f"Every one of the {len(dataset):,} rows of the {dataset_name} dataset is bad; the first: row "
                f"{problem.row_index:,}, column {problem.column!r}: {problem.problem}. "
                f"Fix the rows in {bad_rows_path}."
            )
        if dropped_rows.positions:
            dataset = dataset.select(np.delete(np.arange(len(dataset)), dropped_rows.positions))
    if "weight" in rules.columns:
        refuse_vanishing_weights(dataset, dataset_name)
    return dataset


class _Dropped:
    """The bad rows of a dataset, each read once, and written while they are found: there may be millions."""

    def __init__(self, plain: Dataset, rules: RowRules) -> None:
        self.plain = plain
        self.rules = rules
        self.positions: list[int] = []

    def write(self, bad_rows_path: str | os.PathLike[str] | None, dataset_name: str) -> None:
        lines = self._lines()
        if rank() == 0:
            append_lines(lines, bad_rows_path)
        else:
            # other processes find the same rows, whose positions they need; the first one writes them
            for _ in lines:
                pass
        if self.positions and rank() == 0:
            warn_of_dropped(len(self.positions), self.first, bad_rows_path, dataset_name)

    def _lines(self) -> Iterator[str]:
        for position, defect, row in find_bad_rows(self.plain, self.rules, self.plain.column_names):
            if not self.positions:
                self.first = _problem(row, defect, self.rules)
            self.positions.append(position)
            yield line_of(row_number(row), defect.column, defect.problem, row)


def _with_row_index(dataset: Dataset) -> Dataset:
    if ROW_INDEX in dataset.column_names:
        if str(dataset.data.schema.field(ROW_INDEX).type) != "int64" or dataset.data.column(ROW_INDEX).null_count:
            for row in dataset.with_format(None).select_columns(ROW_INDEX):
                row_number(row)
        return dataset
    # named from its input, so that the same rows give the same fingerprint and later maps find their cache
    fingerprint = Hasher.hash([dataset._fingerprint, __name__, REVISION])
    return dataset.add_column(ROW_INDEX, np.arange(len(dataset), dtype=np.int64), new_fingerprint=fingerprint)


def _tables(dataset: Dataset, columns: list[str]) -> Iterator[Any]:
    """Batches of some columns as Arrow tables; an indices mapping is followed."""
    return dataset.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_SIZE)


def find_bad_rows(
    dataset: Dataset, rules: RowRules, read_columns: list[str]
) -> Iterator[tuple[int, RowDefect, dict[str, Any]]]:
    """Position and defect of every bad row, in order, and the columns that are to be read of it."""
    roles = rules.roles()
    columns = list(roles)
    if not columns:
        return
    selected = dataset.select_columns(read_columns).with_format("arrow")
    types = {column: _column_type(column, dataset, rules) for column in columns}
    offset = 0
    for table in _tables(dataset, columns):
        suspects = (offset + np.flatnonzero(arrow_checks.suspects(table, rules))).tolist()
        for start in range(0, len(suspects), ROWS_IN_MEMORY):
            positions = suspects[start : start + ROWS_IN_MEMORY]
            values = _values_at(selected, positions)
            for position, row_values in zip(positions, zip(*values.values(), strict=True), strict=True):
                row = dict(zip(values, row_values, strict=True))
                defect = rules(row, roles)
                if defect is not None:
                    kind = types[defect.column]
                    yield position, RowDefect(defect.column, defect.problem + kind) if kind else defect, row
        offset += table.num_rows


def _values_at(dataset: Dataset, positions: list[int]) -> dict[str, list[Any]]:
    """Some rows of a dataset formatted as Arrow, in one read."""
    # a slice of Arrow copies nothing; a list of positions does
    is_run = positions[-1] - positions[0] + 1 == len(positions)
    place = slice(positions[0], positions[-1] + 1) if is_run else positions
    table = dataset[place].combine_chunks()  # a gather has a chunk a row: each takes as long as a thousand rows
    return Dataset(table, info=dataset.info, fingerprint="rows")[:]


def _check_stream(
    dataset: IterableDataset,
    rules: RowRules,
    on_bad_row: str,
    bad_rows_path: str | os.PathLike[str] | None,
    dataset_name: str,
) -> IterableDataset:
    if ROW_INDEX not in rules.columns:
        features = dataset.features and Features({**dataset.features, ROW_INDEX: Value("int64")})
        dataset = dataset.map(AddRowIndex(), with_indices=True, features=features)
    path = None if bad_rows_path is None else os.fspath(bad_rows_path)
    return dataset.filter(IsGoodRow(rules, on_bad_row, path, dataset_name))


def _column_type(column: str, dataset: Dataset, rules: RowRules) -> str:
    """The column's type for the message, where the type itself is the defect, for then it is every row's."""
    kind = dataset.data.schema.field(column).type if column in dataset.column_names else None
    if kind is None or hasattr(kind, "extension_name") or arrow_checks.suits(kind, rules.roles()[column], rules.keys):
        return ""
    return f" (the column's type is {kind})"


def _problem(row: Mapping[str, Any], defect: RowDefect, rules: RowRules) -> RowProblem:
    excerpt = excerpt_of(row, defect.column, rules.text_field)
    return RowProblem(row_number(row), defect.column, defect.problem, excerpt)
