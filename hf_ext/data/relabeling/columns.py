"""Columns of labels, predictions and ids as arrays; what is no label is named by its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from hf_ext.guards.row_rules import IGNORED_LABEL
from hf_ext.guards.row_text import describe, excerpt_of, plain
from hf_ext.guards.rows import RowError

IntArray = NDArray[np.int64]
Column = Sequence[Any] | NDArray[Any]  # a list, array or column of a dataset
BATCH_ROWS = 100_000  # labels of tokens are many


class ClassColumn(NamedTuple):
    """
    Classes of a column, one after another: one a row, or, for token classification, `lengths[i]` of row `i`.

    `IGNORED_LABEL` (-100) stands at tokens that have none.
    """

    flat: IntArray
    lengths: IntArray | None

    @property
    def counts(self) -> IntArray:
        """Labelled entries of each row, shape `(rows,)`."""
        labelled = (self.flat != IGNORED_LABEL).astype(np.int64)
        return labelled if self.lengths is None else per_row(labelled, self.lengths)

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over each row of values of the labelled entries, shape `(rows,)`."""
        if self.lengths is None:
            return values
        entries = np.zeros(len(self.flat), dtype=values.dtype)
        entries[self.flat != IGNORED_LABEL] = values
        return per_row(entries, self.lengths)

    def numbered(self, order: IntArray | None) -> ClassColumn:
        """The same classes under other numbers: class `order[k]` becomes `k`; as it is for `None`."""
        if order is None:
            return self
        labelled = self.flat != IGNORED_LABEL
        new_numbers = np.argsort(order)[np.where(labelled, self.flat, 0)]
        return ClassColumn(np.where(labelled, new_numbers, self.flat), self.lengths)

    def row_of(self, entry: int) -> int:
        """Number of the row that an entry of `flat` belongs to."""
        return entry if self.lengths is None else int(np.searchsorted(np.cumsum(self.lengths), entry, side="right"))

    def rows(self, values: NDArray[Any]) -> Any:
        """Values of shape `(entries, ...)` back in rows: an array, or for tokens a list of arrays."""
        return values if self.lengths is None else np.split(values, np.cumsum(self.lengths)[:-1])


def per_row(values: NDArray[Any], lengths: IntArray) -> NDArray[Any]:
    """Sums of consecutive runs of the given lengths, of which some may be 0."""
    ends = np.concatenate([[0], np.cumsum(values)])
    stops = np.cumsum(lengths)
    return ends[stops] - ends[stops - lengths]


def row_error(
    batch: Mapping[str, Any], index: int, column: str, problem: str, remedy: str, offset: int | None = 0
) -> RowError:
    """The error of a row, with what its other columns hold, and a remedy; `offset` as for [`class_column`]."""
    row = {name: plain(values[index]) for name, values in batch.items() if len(values) > index}
    excerpt = excerpt_of(row, column, "text")
    number = index + (offset or 0)
    hint = " (its number is that in its batch)" if offset is None and len(batch[column]) > 1 else ""
    message = f"row {number:,}, column {column!r}: {problem}{hint}.\n  {excerpt}\n  {remedy}"
    return RowError(message, number, column)


def class_column(
    batch: Mapping[str, Any], column: str, num_classes: int | None = None, *, offset: int | None = 0
) -> ClassColumn:
    """
    Read a column of class numbers, or of lists of them.

    Args:
        batch (`Mapping`):
            Columns; a list, array or tensor each.
        column (`str`):
            The column.
        num_classes (`int`, *optional*):
            Bound of the classes; without it any number from 0 is a class.
        offset (`int`, *optional*, defaults to 0):
            Number of the batch's first row, for messages; `None` where it is not known.

    Raises:
        ValueError: if there is no such column.
        RowError: if a row has no integer class from 0 to K-1; -100 is one only inside a list.
    """
    if column not in batch:
        raise ValueError(f"no column {column!r}; the rows have {', '.join(map(repr, batch))}.")
    values = batch[column]
    if not len(values):
        return ClassColumn(np.empty(0, dtype=np.int64), None)
    first = next((value for value in map(plain, values) if value is not None), None)
    if not isinstance(first, list):
        return ClassColumn(_integers(values, batch, column, num_classes, offset), None)
    rows = [plain(value) for value in values]
    for i, row in enumerate(rows):
        problem = _tokens_problem(row, num_classes)
        if problem:
            raise row_error(batch, i, column, problem, _remedy(column, num_classes, tokens=True), offset)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.fromiter((int(label) for row in rows for label in row), dtype=np.int64, count=int(lengths.sum()))
    return ClassColumn(flat, lengths)


def _integers(
    values: Column, batch: Mapping[str, Any], column: str, num_classes: int | None, offset: int | None
) -> IntArray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        array = np.empty(0, dtype=object)
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        numbers = array.astype(np.int64)
        bad = (numbers < 0) if num_classes is None else (numbers < 0) | (numbers >= num_classes)
        if not bad.any():
            return numbers
    for i, value in enumerate(values):
        problem = _label_problem(plain(value), num_classes)
        if problem:
            raise row_error(batch, i, column, problem, _remedy(column, num_classes), offset)
    return np.array([int(plain(value)) for value in values], dtype=np.int64)


def _label_problem(value: object, num_classes: int | None, tokens: bool = False) -> str | None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return f"expected an integer class, found {describe(value)}"
    if int(value) < 0 or (num_classes is not None and int(value) >= num_classes):
        if value == IGNORED_LABEL and tokens:
            return None
        bounds = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}"
        hint = "; -100 is allowed for tokens only" if value == IGNORED_LABEL else ""
        return f"expected a class {bounds}, found {value}{hint}"
    return None


def _tokens_problem(row: object, num_classes: int | None) -> str | None:
    if not isinstance(row, list):
        return f"expected a list of token labels, as in the rows before, found {describe(row)}"
    return next(
        (f"token {i}: {p}" for i, value in enumerate(row) if (p := _label_problem(value, num_classes, True))), None
    )


def _remedy(column: str, num_classes: int | None, tokens: bool = False) -> str:
    subject = "tokens' labels are" if tokens else "labels are"
    most = "and up" if num_classes is None or num_classes == 1 else f"to {num_classes - 1}"
    return (
        f"Such {subject} the numbers of a ClassLabel, 0 {most}: dataset.class_encode_column({column!r}) makes them "
        "from names. Drop rows without a label with dataset.filter."
    )


def probability_rows(
    batch: Mapping[str, Any], column: str, classes: ClassColumn, num_classes: int | None, *, offset: int | None = 0
) -> NDArray[np.float64]:
    """
    A column of predicted distributions, one for each entry of `classes`, shape `(entries, num_classes)`.

    Raises:
        ValueError: if there is no such column.
        RowError: if a length is another, a number is no probability, or a sum is not one.
    """
    if column not in batch:
        raise ValueError(
            f"no column {column!r}: predict_column writes it. The rows have {', '.join(map(repr, batch))}."
        )
    values: Sequence[Any] = batch[column]
    rows = [_numbers(plain(value)) for value in values]
    width = num_classes or next((row.shape[-1] for row in rows if row.size and row.ndim), 0)
    for i, row in enumerate(rows):
        shape = (width,) if classes.lengths is None else (int(classes.lengths[i]), width)
        if row.shape != shape and not (row.size == 0 and shape[0] == 0):
            expected = f"probabilities of shape {shape}" if width else "probabilities"
            problem = f"expected {expected}, found {row.shape if row.ndim else describe(plain(values[i]))}"
        elif width == 0 and classes.lengths is None:
            problem = "expected probabilities, found an empty list"
        elif row.size and not (np.isfinite(row).all() and row.min() >= 0 and np.abs(row.sum(-1) - 1).max() < 1e-3):
            problem = "expected non-negative probabilities that sum to one"
        elif row.size and width == 1:
            problem = "one probability is no distribution over classes"
        else:
            continue
        raise row_error(batch, i, column, problem, "predict_column writes them; apply a softmax to logits.", offset)
    return np.concatenate([row.reshape(-1, width) for row in rows]) if rows else np.empty((0, width))


def _numbers(value: ArrayLike) -> NDArray[np.float64]:
    """A row's probabilities; an array without a dimension for what holds none, such as a text or uneven lists."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        return np.array(np.nan)


def refuse_beyond(
    batch: Mapping[str, Any], column: str, classes: ClassColumn, width: int, of: str, *, offset: int | None = 0
) -> None:
    """
    Refuse classes that a predicted distribution does not have.

    Args:
        batch (`Mapping`), column (`str`), offset (`int`, *optional*):
            As for [`class_column`].
        classes ([`ClassColumn`]):
            Of that column.
        width (`int`):
            Classes of the distribution.
        of (`str`):
            What the distribution is, for the message.

    Raises:
        RowError: if a class is none of 0 to `width - 1`.
    """
    labelled = classes.flat != IGNORED_LABEL
    beyond = np.flatnonzero(labelled & ((classes.flat < 0) | (classes.flat >= width)))
    if len(beyond):
        entry = int(beyond[0])
        problem = f"class {classes.flat[entry]}, but {of} has {width} classes"
        remedy = "Predict with a model of all the classes, or drop rows of the others with dataset.filter."
        raise row_error(batch, classes.row_of(entry), column, problem, remedy, offset)


def label_columns(rows: Dataset, column: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """A column as Arrow arrays, each with the number of its first row."""
    table = rows.select_columns(column).with_format("arrow")
    for start in range(0, len(rows), BATCH_ROWS):
        yield start, table[start : start + BATCH_ROWS].column(column)


def are_classes(column: pa.ChunkedArray, num_classes: int | None) -> bool | None:
    """
    Whether an Arrow column of integers, or of lists of them, holds classes only, and -100 in lists.

    Returns:
        `bool`, or `None` of a column of another type.
    """
    tokens = False
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        if column.null_count:
            return False
        tokens = True
        column = pc.list_flatten(column)
    if not pa.types.is_integer(column.type):
        return None
    if column.null_count:
        return False
    values = column.to_numpy()
    bad = (values < 0) if num_classes is None else (values < 0) | (values >= num_classes)
    return not (bad & (values != IGNORED_LABEL) if tokens else bad).any()
