"""Check the rows of a retrieval dataset before training, texts beside texts and their label, and name the bad ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from hf_ext.guards.matches import MOST_GRADE, MatchRule, match_rule
from hf_ext.guards.row_errors import RowError, RowProblem, row_error
from hf_ext.guards.row_rules import Role, RowRules
from hf_ext.guards.row_text import excerpt_of, plain
from hf_ext.guards.rows import check_arguments, check_by_rules, find_bad_rows, require_rows


@dataclass(frozen=True)
class RetrievalRules(RowRules):
    """
    The rules for the rows of one retrieval dataset: columns of texts, and a label that says that they match.

    Args:
        texts (`tuple[str, ...]`): columns of texts, the query's first.
        matches ([`MatchRule`], *optional*): of the label, where it is checked.
        data_type, conversational, text_field, assistant_only_loss, columns: as in [`RowRules`].
    """

    texts: tuple[str, ...] = ()
    matches: MatchRule | None = None

    def roles(self) -> dict[str, Role]:
        """Columns to check and the role each plays, in the order of checking."""
        texts: dict[str, Role] = dict.fromkeys(self.texts, "string")
        return texts | ({self.matches.column: "match"} if self.matches is not None else {})

    def wrong_matches(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which labels say that a pair does not match."""
        return np.zeros(len(labels), dtype=bool) if self.matches is None else self.matches.wrong(labels)

    def _column_problem(self, row: Mapping[str, Any], column: str, role: Role) -> str | None:
        if role == "match" and self.matches is not None:
            return self.matches.problem(plain(row.get(column)))
        return super()._column_problem(row, column, role)


def rules_of(columns: Sequence[str], texts: Sequence[str] = (), matches: MatchRule | None = None) -> RetrievalRules:
    """The rules for a dataset with these columns, texts and labels."""
    return RetrievalRules(
        data_type="retrieval", conversational=False, text_field=texts[0] if texts else "query",
        assistant_only_loss=False, columns=tuple(columns), texts=tuple(texts), matches=matches,
    )  # fmt: skip


def match_rule_of(dataset: Dataset | IterableDataset, has_negatives: bool) -> MatchRule | None:
    """[`match_rule`] of a dataset, whose values tell too: integers beyond any grade say nothing of a match."""
    rule = match_rule(dataset.features or {}, has_negatives)
    if rule is None or rule.kind != "integer" or not isinstance(dataset, Dataset) or not len(dataset):
        return rule
    labels = dataset.select_columns([rule.column]).with_format("arrow")[:].column(rule.column)
    largest = pc.max(labels).as_py()
    return None if largest is not None and largest > MOST_GRADE else rule


def check_matches(dataset: Dataset, matches: MatchRule) -> None:
    """
    Refuse a dataset with a pair that does not match.

    Raises:
        [`RowError`]: if there is one; it names the first.
    """
    bad = _no_matches(dataset, matches)
    if len(bad):
        raise _error(dataset, matches, int(bad[0]), len(bad) - 1)


def only_matches(dataset: Dataset, matches: MatchRule) -> Dataset:
    """
    The rows that match, where the loss reads the labels of the others.

    Raises:
        [`RowError`]: if a label says neither that its pair matches nor that it does not, such as a degree of likeness.
        ValueError: if no row matches.
    """
    bad = _no_matches(dataset, matches)
    labels = dataset.with_format(None).select(bad)[matches.column][:]
    unclear = [row for row, label in zip(bad, labels, strict=True) if matches.kind == "float" and label != 0]
    store = "pass those that do as exemplars=ExemplarStore(...)."
    if unclear:
        remedy = f"The loss reads it, but it does not tell which pairs are exemplars: {store}"
        raise _error(dataset, matches, int(unclear[0]), len(unclear) - 1, remedy)
    if len(bad) == len(dataset):
        raise ValueError(f"No label in {matches.column!r} says that its pair matches, so none is an exemplar: {store}")
    return dataset.select(np.delete(np.arange(len(dataset)), bad)) if len(bad) else dataset


def _no_matches(dataset: Dataset, matches: MatchRule) -> npt.NDArray[np.int64]:
    """Positions of the rows that do not match."""
    rules = rules_of(dataset.column_names, matches=matches)
    bad = find_bad_rows(dataset.with_format(None), rules, [matches.column])
    return np.fromiter((position for position, _, _ in bad), dtype=np.int64)


def _error(dataset: Dataset, matches: MatchRule, position: int, more: int, remedy: str = "") -> RowError:
    row = dataset.with_format(None)[position]
    problem = matches.problem(row[matches.column]) or ""
    row_problem = RowProblem(position, matches.column, problem, excerpt_of(row, matches.column, "query"))
    return row_error(
        row_problem, more, "train", remedy or "It would be shown as an example of a query and its document."
    )


def check_retrieval_rows(
    dataset: Dataset | IterableDataset,
    texts: Sequence[str],
    *,
    matches: MatchRule | None = None,
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
        matches ([`MatchRule`], *optional*):
            The rule of the label, where neither loss nor pool reads a label that says "no match".
        on_bad_row (`str`), bad_rows_path (`str` or `os.PathLike`), dataset_name (`str`):
            As in [`check_sft_rows`].

    Returns:
        `Dataset` or `IterableDataset`: the good rows in their order, with an int64 column `__hf_ext_row__`: their
        position in `dataset`. One that is already there, from an earlier call, is kept.

    Raises:
        [`RowError`]: if a row is bad and `on_bad_row="raise"`.
        ValueError: if the dataset is empty or no row is good.
    """
    check_arguments(dataset, on_bad_row, bad_rows_path)
    first_rows = require_rows(dataset, dataset_name)
    columns = tuple(dataset.column_names or first_rows[0])
    rules = rules_of(columns, texts, matches)
    return check_by_rules(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
