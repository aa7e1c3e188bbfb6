"""Check preference rows before training, pairs or single labelled responses, and name the bad ones."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from numbers import Real
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from hf_ext._columns import ROW_INDEX, columns_of_other_types
from hf_ext.guards.row_errors import RowProblem, row_error, row_number
from hf_ext.guards.row_rules import DataType, Role, RowDefect, RowRules, number_problem, string_problem
from hf_ext.guards.row_text import describe, excerpt_of, plain, shorten
from hf_ext.guards.rows import check_arguments, check_by_rules, require_rows

PAIRS = ("chosen", "rejected")
SINGLE = ("prompt", "completion", "label")
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps")


@dataclass(frozen=True)
class PreferenceRules(RowRules):
    """
    The rules for the rows of one preference dataset; call it with a row to get its first defect, or `None`.

    Args:
        data_type (`str`):
            `"preference"` (pairs) or `"unpaired_preference"` (single labelled responses).
        conversational (`bool`), text_field (`str`), assistant_only_loss (`bool`), columns (`tuple[str, ...]`):
            As in [`RowRules`].
    """

    def roles(self) -> dict[str, Role]:
        """Columns to check and the role each plays, in the order of checking."""
        turn: Role = "messages" if self.conversational else "string"
        roles: dict[str, Role] = {"prompt": turn} if "prompt" in self.columns else {}
        roles |= dict.fromkeys(PAIRS if self.data_type == "preference" else ("completion",), turn)
        if self.data_type == "unpaired_preference":
            roles["label"] = "label"
        optional: dict[str, Role] = {"weight": "row_weight"}
        if self.conversational:  # both are for the chat template
            optional |= {"tools": "free", "chat_template_kwargs": "free"}
        optional |= dict.fromkeys(REFERENCE_COLUMNS, "number")
        return roles | {name: role for name, role in optional.items() if name in self.columns}

    def _column_problem(self, row: Mapping[str, Any], column: str, role: Role) -> str | None:
        value = plain(row.get(column))
        if role == "string":
            return string_problem(value, may_be_empty=column == "prompt")
        if role == "label":
            if isinstance(value, bool | np.bool_):
                return None
            cast = "; of 0 and 1 dataset.cast_column('label', Value('bool')) makes them" if value in (0, 1) else ""
            return f"expected true or false, found {describe(value)}{cast}"
        if role == "row_weight":
            return number_problem(value)
        if role == "number":
            if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
                return f"expected a finite number of nats, found {describe(value)}"
            return None if math.isfinite(value) else f"expected a finite number of nats, found {float(value)}"
        if role == "messages" and isinstance(value, str):
            remedy = ""
            if column == "prompt" and self.data_type == "preference":
                remedy = "; if 'chosen' and 'rejected' begin with it, remove the column: what they share is the prompt"
            return f"expected a list of messages as in the other turns, found {describe(value)}{remedy}"
        return super()._column_problem(row, column, role)

    def _turns_problem(self, row: Mapping[str, Any]) -> RowDefect | None:
        """Two equal responses have nothing to prefer; two conversations that share nothing have no prompt."""
        if self.data_type != "preference":
            return None
        chosen, rejected = plain(row["chosen"]), plain(row["rejected"])
        if chosen == rejected:
            problem = f"the same as 'chosen', so there is nothing to prefer: {shorten(row['rejected'], 60)}"
            return RowDefect("rejected", problem)
        if self.needs_shared_message() and chosen[0] != rejected[0]:
            return RowDefect(
                "rejected",
                "'chosen' and 'rejected' share no beginning, and there is no 'prompt': their first messages are "
                f"{shorten(chosen[0], 60)} and {shorten(rejected[0], 60)}",
            )
        return None

    def needs_shared_message(self) -> bool:
        """Whether the prompt is what two conversations begin with."""
        return self.data_type == "preference" and self.conversational and "prompt" not in self.columns


def check_preference_rows(
    dataset: Dataset | IterableDataset,
    *,
    on_bad_row: str = "raise",
    bad_rows_path: str | os.PathLike[str] | None = None,
    dataset_name: str = "train",
) -> Dataset | IterableDataset:
    """
    Check raw preference pairs and number them.

    | column | what it must hold |
    |---|---|
    | `chosen`, `rejected` | both a non-empty string, or both a list of messages; not the same |
    | `prompt`, where there is one | a string (it may be empty), or a list of messages |
    | `weight`, where there is one | a finite number >= 0 |
    | `ref_chosen_logps`, `ref_rejected_logps`, where there are | a finite number, nats per sequence |

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Pairs of TRL's preference type, standard or conversational, with or without a `prompt`.
        on_bad_row (`str`), bad_rows_path (`str` or `os.PathLike`), dataset_name (`str`):
            As in [`check_sft_rows`].

    Returns:
        `Dataset` or `IterableDataset`: the good rows in their order, with an int64 column `__hf_ext_row__`: their
        position in `dataset`. One that is already there, from an earlier call, is kept. Columns of another data type
        (`messages`, `completion`, `text`..., and a text `prompt` beside whole dialogues that hold it) are left out,
        because the host would read them.

    Raises:
        [`RowError`]: if a row is bad and `on_bad_row="raise"`, or a column is missing.
        ValueError: if the dataset is empty, no row is good, or every weight is zero or vanishes.
    """
    return _check(dataset, "preference", PAIRS, on_bad_row, bad_rows_path, dataset_name)


def check_unpaired_rows(
    dataset: Dataset | IterableDataset,
    *,
    on_bad_row: str = "raise",
    bad_rows_path: str | os.PathLike[str] | None = None,
    dataset_name: str = "train",
) -> Dataset | IterableDataset:
    """
    Check raw responses with a label, and number them.

    | column | what it must hold |
    |---|---|
    | `prompt`, `completion` | both a string (the prompt's may be empty), or both a list of messages |
    | `label` | true where the response is good, false where it is bad; the train dataset needs both |
    | `weight`, `ref_logps`, where there are | a finite number >= 0; a finite number, nats per sequence |

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of TRL's unpaired preference type, or pairs, which are checked by [`check_preference_rows`].
        on_bad_row (`str`), bad_rows_path (`str` or `os.PathLike`), dataset_name (`str`):
            As in [`check_sft_rows`].

    Returns:
        `Dataset` or `IterableDataset`: as [`check_preference_rows`].

    Raises:
        [`RowError`]: if a row is bad and `on_bad_row="raise"`, or a column is missing.
        ValueError: if the dataset is empty, no row is good, or a train dataset has one class only (not checked on
            streams).
    """
    first: dict[str, Any] = next(iter(dataset), {})
    if set(PAIRS) <= set(first) and "completion" not in first:
        checked = check_preference_rows(
            dataset, on_bad_row=on_bad_row, bad_rows_path=bad_rows_path, dataset_name=dataset_name
        )
        # the host would put a column of that name in the place of the labels that it makes (trl 1.16)
        return checked.remove_columns("label") if "label" in first else checked
    checked = _check(dataset, "unpaired_preference", SINGLE, on_bad_row, bad_rows_path, dataset_name)
    if dataset_name == "train" and isinstance(checked, Dataset):
        _refuse_one_class(checked)
    return checked


def prompt_stands_in_dialogues(rows: Iterable[Mapping[str, Any]]) -> bool:
    """
    Whether `prompt` is a text and stands in the messages that both responses, whole dialogues, share: UltraFeedback.

    Args:
        rows (`Iterable[Mapping]`): pairs; one that is malformed, or whose responses share nothing, says nothing.
    """
    is_repeated = False
    for row in rows:
        prompt = row.get("prompt")
        shared = _shared_texts(row)
        if not isinstance(prompt, str) or not shared:
            continue
        is_repeated = any(prompt.strip() in text for text in shared)
        if not is_repeated:
            return False
    return is_repeated


def _shared_texts(row: Mapping[str, Any]) -> list[str]:
    """Contents of the messages that both responses of a pair begin with."""
    chosen, rejected = (plain(row.get(name)) for name in PAIRS)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return []
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    contents = [message.get("content") for message, _ in pairs if isinstance(message, Mapping)]
    return [content for content in contents if isinstance(content, str)]


def _check(
    dataset: Dataset | IterableDataset,
    data_type: DataType,
    required_columns: tuple[str, ...],
    on_bad_row: str,
    bad_rows_path: str | os.PathLike[str] | None,
    dataset_name: str,
) -> Dataset | IterableDataset:
    check_arguments(dataset, on_bad_row, bad_rows_path)
    first_rows = require_rows(dataset, dataset_name)
    columns = tuple(dataset.column_names if dataset.column_names is not None else first_rows[0])
    for name in required_columns:
        if name not in columns:
            raise _missing(name, columns, required_columns, first_rows[0], dataset_name)
    # the prompt may be a text beside whole dialogues, so the response says whether rows are messages
    response = next(name for name in required_columns if name != "prompt")
    first = next((row[response] for row in first_rows if isinstance(row.get(response), str | list)), None)
    # like columns of another type: the host would take it for the prompt of conversations (trl 1.16), and it is a text
    is_told_twice = data_type == "preference" and prompt_stands_in_dialogues(first_rows)
    checked_columns = tuple(name for name in columns if name != "prompt") if is_told_twice else columns
    rules = PreferenceRules(data_type, isinstance(first, list), response, False, checked_columns)
    checked = check_by_rules(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
    foreign = columns_of_other_types(columns, rules.roles())
    return checked.remove_columns(foreign) if foreign else checked


def _missing(
    name: str, columns: tuple[str, ...], required_columns: tuple[str, ...], row: dict[str, Any], dataset_name: str
) -> Exception:
    """No row is good, so there is nothing that "drop" could keep."""
    listing = ", ".join(map(repr, columns)) or "none"
    expected = ", ".join(map(repr, required_columns))
    text = f"this column is missing. The columns are {listing}; expected {expected}"
    problem = RowProblem(row_number(row) if ROW_INDEX in row else 0, name, text, excerpt_of(row, name, "prompt"))
    return row_error(problem, 0, dataset_name, "Rename your column with dataset.rename_column.")


def _refuse_one_class(dataset: Dataset) -> None:
    good = sum(
        int(pc.sum(table.column("label")).as_py() or 0)
        for table in dataset.select_columns("label").with_format("arrow").iter(batch_size=10_000)
    )
    if good in (0, len(dataset)):
        kind = "good" if good else "bad"
        raise ValueError(
            f"Every one of the {len(dataset):,} rows of the train dataset is {kind} (label={bool(good)}): with one "
            "class the bound on mutual information has no maximum. Add rows of the other class"
            + (", or train on these with SFTTrainer." if good else ".")
        )
