"""The error of a bad row, and what is done with such rows: raised, or written down and left out."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.bad_rows_file import append_lines, line_of, rank
from hf_ext.guards.row_text import describe

logger = logging.getLogger("hf_ext.guards.rows")

DEFAULT_FILE_NAME = "bad_rows.jsonl"


class RowError(ValueError):
    """
    A row that cannot be trained on.

    Attributes:
        row_index (`int`):
            Position of the row in the dataset as it was given, from 0.
        column (`str`):
            Column with the defect.
    """

    def __init__(self, message: str, row_index: int, column: str) -> None:
        super().__init__(message)
        self.row_index = row_index
        self.column = column

    def __reduce__(self) -> tuple[type[RowError], tuple[str, int, str]]:
        # the default passes the message alone, so the error would not survive the way back from a worker process
        return type(self), (str(self), self.row_index, self.column)


@dataclass(frozen=True)
class RowProblem:
    """
    One bad row.

    Args:
        row_index (`int`):
            Position of the row in the dataset as it was given, from 0.
        column (`str`):
            Column with the defect.
        problem (`str`):
            What was expected and what was found.
        excerpt (`str`):
            `column: 'beginning of its content'`, which shows a reader what row it is; the content is cut at 80
            characters.
    """

    row_index: int
    column: str
    problem: str
    excerpt: str


def handle_bad_rows(
    problems: list[RowProblem],
    row_of: Callable[[int], dict[str, Any]],
    on_bad_row: str,
    bad_rows_path: str | os.PathLike[str] | None,
    dataset_name: str,
) -> None:
    """
    Raise at the first bad row, or log and write all of them.

    Args:
        problems (`list[RowProblem]`):
            Bad rows in their order; with none, nothing happens.
        row_of (`Callable[[int], dict]`):
            Gives the row of a position.
        on_bad_row (`str`):
            `"raise"` or `"drop"`.
        bad_rows_path (`str` or `os.PathLike`, *optional*):
            File to which `"drop"` appends one JSON object a row: `row_index`, `column`, `problem`, `row`. Only the
            process whose environment has no `RANK`, or `RANK=0`, writes it.
        dataset_name (`str`):
            Named in messages.

    Raises:
        [`RowError`]: if there is a problem and `on_bad_row="raise"`; it names the first and counts the others.
        ValueError: if `on_bad_row` is another word, or `"drop"` comes without `bad_rows_path`.
    """
    check_choice(on_bad_row, bad_rows_path)
    if not problems:
        return
    if on_bad_row == "raise":
        raise row_error(problems[0], len(problems) - 1, dataset_name, remedy_of(bad_rows_path))
    if rank() != 0:
        return
    lines = (line_of(bad.row_index, bad.column, bad.problem, row_of(bad.row_index)) for bad in problems)
    append_lines(lines, bad_rows_path)
    warn_of_dropped(len(problems), problems[0], bad_rows_path, dataset_name)


def warn_of_dropped(
    count: int, first: RowProblem, bad_rows_path: str | os.PathLike[str] | None, dataset_name: str
) -> None:
    """Log how many rows were dropped, where they are written, and the first of them."""
    logger.warning(
        "Dropped %s bad row(s) of the %s dataset and wrote them to %s. The first: row %s, column %r: %s. Fix them, or "
        'pass on_bad_row="raise" to stop instead.',
        f"{count:,}", dataset_name, bad_rows_path, f"{first.row_index:,}", first.column, first.problem,
    )  # fmt: skip


def check_choice(on_bad_row: str, bad_rows_path: str | os.PathLike[str] | None) -> None:
    """Refuse an `on_bad_row` that is neither "raise" nor "drop", and "drop" without a file."""
    if on_bad_row not in ("raise", "drop"):
        raise ValueError(f'on_bad_row must be "raise" or "drop", got {on_bad_row!r}.')
    if on_bad_row == "drop" and bad_rows_path is None:
        raise ValueError(
            'on_bad_row="drop" needs a file for the dropped rows, so that none is lost silently. Pass '
            f'bad_rows_path="{DEFAULT_FILE_NAME}" (or a path of your own).'
        )


def row_error(problem: RowProblem, more: int, dataset_name: str, remedy: str) -> RowError:
    """The error for a bad row, with the number of `more` bad ones and a `remedy`."""
    location = "" if dataset_name == "train" else f"{dataset_name} dataset, "
    message = (
        f"{location}row {problem.row_index:,}, column {problem.column!r}: {problem.problem}.\n  {problem.excerpt}\n"
    )
    if more:
        message += f"  {more:,} more bad row{'s' if more > 1 else ''} in this dataset.\n"
    return RowError(f"{message}  {remedy}", problem.row_index, problem.column)


def remedy_of(bad_rows_path: str | os.PathLike[str] | None) -> str:
    """What to do about a bad row."""
    return (
        'Fix the row, drop it with dataset.filter, or pass on_bad_row="drop" '
        f"(dropped rows are written to {Path(bad_rows_path or DEFAULT_FILE_NAME).name})."
    )


def row_number(row: Mapping[str, Any]) -> int:
    """The row's position, of the first document where packed; a [`RowError`] where that column is something else."""
    value = row.get(ROW_INDEX)
    try:
        return operator.index(value[0] if isinstance(value, list) and value else value)  # type: ignore[arg-type]
    except TypeError:
        raise RowError(
            f"column {ROW_INDEX!r}: expected the row's position as an integer, found {describe(value)}.\n  hf-ext "
            "numbers rows in this column; rename yours with dataset.rename_column, or remove it.",
            row_index=-1,
            column=ROW_INDEX,
        ) from None
