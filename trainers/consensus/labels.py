"""Whether labels of training and evaluation rows are classes of the model: checked before it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, IterableDataset
from torch import nn

from hf_ext.data.relabeling.class_names import ALIGN, class_label_of, names_of_column, same_order
from hf_ext.data.relabeling.columns import are_classes, class_column, label_columns
from hf_ext.data.relabeling.heads import LABEL_COLUMNS, check_head, check_width, outputs_of, same_names
from hf_ext.guards.row_text import plain
from hf_ext.guards.rows import RowError

__all__ = ["CheckLabels", "check_model", "checked_rows", "class_bound", "same_eval_names", "sets_of"]


def sets_of(rows: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Rows with their name for messages, or those of a mapping, each with its own; none of `None`."""
    if isinstance(rows, Mapping):
        yield from ((f"{name} {key!r}", part) for key, part in rows.items())
    elif rows is not None:
        yield name, rows


def class_bound(num_classes: int | None, features: Features | None, label: str) -> int | None:
    """Number of classes: as it is known, or that of the label column's `ClassLabel`."""
    if num_classes is not None:
        return num_classes
    feature = class_label_of((features or {}).get(label))
    return None if feature is None else feature.num_classes


def checked_rows(
    rows: Any,
    num_classes: int | None,
    name: str,
    columns: tuple[str, ...] = LABEL_COLUMNS,
    *,
    integers: bool = False,
) -> Any:
    """
    The same rows, of which every label is a class; or a stream that is checked as it is read.

    Args:
        rows (`Dataset`, `IterableDataset`, a mapping of them, or anything else, which is not looked at):
            Rows with labels, one each or a list of them.
        num_classes (`int`, *optional*):
            Bound of the classes; that of the column's `ClassLabel` by default.
        name (`str`):
            Named in messages, such as `evaluation`.
        columns (`tuple[str, ...]`, *optional*):
            Names of the label column; the first that is there counts.
        integers (`bool`, *optional*, defaults to `False`):
            Whether labels must be integers. Otherwise those of another type are their collator's affair.

    Raises:
        RowError: if a label is no class (-100 of a token is allowed); of a stream when it is read.
    """
    if isinstance(rows, Mapping):
        return {
            key: checked_rows(part, num_classes, f"{name} {key!r}", columns, integers=integers)
            for key, part in rows.items()
        }
    if isinstance(rows, IterableDataset):
        label = next((column for column in columns if column in (rows.features or {})), None)
        bound = num_classes if label is None else class_bound(num_classes, rows.features, label)
        return rows.filter(CheckLabels(columns, bound, name, integers), with_indices=True)
    label = next((column for column in columns if isinstance(rows, Dataset) and column in rows.column_names), None)
    if label is not None:
        _check(rows, label, class_bound(num_classes, rows.features, label), name, integers)
    return rows


def _check(rows: Dataset, label: str, num_classes: int | None, name: str, integers: bool) -> None:
    text_columns = [column for column in ("id", "text") if column in rows.column_names and column != label]
    for start, column in label_columns(rows, label):
        is_good = are_classes(column, num_classes)  # None: of another type than integers
        if is_good or (is_good is None and not integers):
            continue
        excerpts = {}
        if text_columns:
            excerpts = rows.with_format(None).select_columns(text_columns)[start : start + len(column)]
        with _named(name):
            class_column({**excerpts, label: column.to_pylist()}, label, num_classes, offset=start)


@dataclass(frozen=True)
class CheckLabels:
    """
    Check the labels of a stream as its rows pass, for `IterableDataset.filter(..., with_indices=True)`; all pass.

    Args:
        columns (`tuple[str, ...]`):
            Names of the label column; the first that a row has counts.
        num_classes (`int`, *optional*):
            Bound of the classes.
        name (`str`):
            Of the rows, for messages.
        integers (`bool`):
            Whether labels must be integers.
    """

    columns: tuple[str, ...]
    num_classes: int | None
    name: str
    integers: bool
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, row: Mapping[str, Any], index: int) -> bool:
        """Pass one row, or raise."""
        label = next((column for column in self.columns if column in row), None)
        if label is not None and (self.integers or not isinstance(plain(row[label]), str | float | bool | dict)):
            with _named(self.name):
                class_column({name: [value] for name, value in row.items()}, label, self.num_classes, offset=index)
        return True


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of rows say of which set they are."""
    try:
        yield
    except RowError as error:
        if name == "training":
            raise
        raise RowError(f"{name} dataset, {error}", error.row_index, error.column) from None


def check_model(model: nn.Module, rows: Dataset, label: str, num_classes: int | None) -> None:
    """
    Refuse a model whose outputs are not the classes of the rows it is trained on.

    Raises:
        ValueError: if they are no distribution, of another number than the channel's classes, or named otherwise.
        RowError: if a label lies beyond them.
    """
    check_head(model)
    width = outputs_of(model)
    if width is not None:
        if num_classes not in (None, width):
            raise ValueError(
                f"the model has {width} outputs, but the labels have {num_classes} classes. Make it with "
                f"num_labels={num_classes}."
            )
        check_width(width, rows, label)
        same_names(model, names_of_column(rows.features, label))


def same_eval_names(train: Any, held_out: Any, columns: tuple[str, ...] = LABEL_COLUMNS) -> None:
    """
    Refuse evaluation rows whose `ClassLabel` has other names than that of the training rows, or another order.

    Raises:
        ValueError: if they differ; both are shown.
    """
    names = names_of_column(getattr(train, "features", None), *columns)
    for name, part in sets_of(held_out, "the evaluation rows"):
        part_names = names_of_column(getattr(part, "features", None), *columns)
        same_order(part_names, names, name, "the training rows", f"Give both the same classes: {ALIGN}.")
