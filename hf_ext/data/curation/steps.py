"""
What a curation step is, whichever engine runs it.

A [`RowStep`] looks at one document at a time: it measures, rewrites, and its rules say which documents go. A
[`SetStep`] needs all of them: it takes features of each document by itself, then decides in one ordered pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.guards.numbers import SIZE
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.row_text import describe

if TYPE_CHECKING:
    import pyarrow as pa

Batch = Mapping[str, Sequence[Any]]
Values = npt.NDArray[np.float64]  # (rows,); NaN where a rule says nothing of a row
Notes = dict[str, float | str]  # figures of a whole step, for the report

DROP_REASON = "drop_reason"  # "step:rule"; empty for a row that stays
DROP_VALUE = "drop_value"
DROP_THRESHOLD = "drop_threshold"
_NUMBERS = (DROP_VALUE, DROP_THRESHOLD)


@dataclass(frozen=True)
class Rule:
    """
    A bound on something measured: a document goes where its value is beyond.

    Args:
        name (`str`):
            As the ledger has it, such as `"word_count"`.
        minimum, maximum (`float`, *optional*):
            Bounds that a document may just meet.
        exclusive (`bool`, *optional*, defaults to `False`):
            Whether a document goes at the bound, too.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive: bool = False

    def broken_bound(self, value: float) -> float | None:
        """The bound that `value` is beyond, `None` where it is within or NaN."""
        for bound, excess in ((self.minimum, -1.0), (self.maximum, 1.0)):
            if bound is not None and (excess * (value - bound) > 0 or (self.exclusive and value == bound)):
                return bound
        return None

    def broken_by(self, values: Values) -> npt.NDArray[np.bool_]:
        """Which values are beyond a bound; `(rows,)`."""
        is_beyond = np.zeros(len(values), dtype=bool)
        if self.minimum is not None:
            is_beyond |= (values <= self.minimum) if self.exclusive else (values < self.minimum)
        if self.maximum is not None:
            is_beyond |= (values >= self.maximum) if self.exclusive else (values > self.maximum)
        return is_beyond


class Drop(NamedTuple):
    """
    Why a document goes.

    Args:
        rule (`str`):
            Name of the rule.
        value, threshold (`float`, *optional*):
            What was measured and the bound it is beyond, where the rule measures.
        detail (`str`, *optional*):
            What it was compared with, such as the document that it repeats or the benchmark's row; none of its text.
    """

    rule: str
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None


class Judgement(NamedTuple):
    """
    What a step makes of a batch.

    Args:
        columns (`dict[str, list]`):
            Columns it rewrites or adds, each with a value for every row of the batch, dropped ones included.
        values (`dict[str, np.ndarray]`):
            What each of its rules measures, by the rule's name.
        drops (`list[Drop | None]`):
            The first reason, in the order of the rules, for which each row goes.
    """

    columns: dict[str, list[Any]]
    values: dict[str, Values]
    drops: list[Drop | None]


@dataclass(frozen=True, kw_only=True)
class _DocumentStep(ABC):
    """What every step knows of its documents: where they are, and which of them cannot be read."""

    text_column: str = "text"
    on_bad_row: str = "raise"
    max_chars: int = 50_000_000
    revision: str = field(default="1", repr=False)

    name: ClassVar[str]
    column_field: ClassVar[str] = "text_column"  # the field that names the column of what the step reads
    document_types: ClassVar[tuple[type, ...]] = (str,)

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("raise", "drop"):
            raise ValueError(f'on_bad_row must be "raise" or "drop", got {self.on_bad_row!r}.')
        problem = SIZE.problem_of(self.max_chars)  # places in a text are counted in 32 bits
        if problem is not None:
            raise ValueError(f"max_chars {problem}.")

    @property
    def read_column(self) -> str:
        """Column of what the step reads: the text, a page, an address."""
        return getattr(self, self.column_field)

    @property
    def consumed_columns(self) -> tuple[str, ...]:
        """Columns of no further use after it, which `curate` leaves out: raw pages, once there is their text."""
        return ()

    @property
    @abstractmethod
    def rules(self) -> tuple[Rule, ...]:
        """Its rules, in the order in which they are asked."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries, models and tables that decide its output, by name: part of a fingerprint."""
        return {}

    def problem_of(self, value: str | bytes) -> Drop | None:
        """What keeps a document from being read, besides its type: nothing is in it, or too much."""
        length = len(value)
        if length > self.max_chars:
            return Drop("too_long", float(length), float(self.max_chars))
        return None if length and not value.isspace() else Drop("empty")

    def unreadable(self, batch: Batch, indices: Sequence[int] | None = None) -> list[Drop | None]:
        """
        The reason for which each row of a batch goes unread, `None` where it can be read.

        Args:
            batch (`Mapping[str, Sequence]`):
                Columns of rows.
            indices (`Sequence[int]`, *optional*):
                Positions of the rows in the dataset, for errors.

        Raises:
            ValueError: if there is no column of documents.
            RowError: if a row is no document and `on_bad_row` is `"raise"`.
        """
        if self.read_column not in batch:
            raise ValueError(
                f"{type(self).__name__} needs a column {self.read_column!r}; this dataset has {sorted(batch)}. Rename "
                f"yours with dataset.rename_column, or pass {self.column_field}=."
            )
        drops: list[Drop | None] = []
        for position, document in enumerate(batch[self.read_column]):
            drops.append(self._unreadable(document, position if indices is None else indices[position]))
        return drops

    def _unreadable(self, document: object, row_index: int) -> Drop | None:
        if isinstance(document, str | bytes) and isinstance(document, self.document_types):
            return self.problem_of(document)
        if self.on_bad_row == "drop":
            return Drop(f"error:{type(document).__name__}")
        expected = "a string or bytes" if bytes in self.document_types else "a string"
        raise RowError(
            f"row {row_index:,}, column {self.read_column!r}: expected {expected}, found {describe(document)}.\n"
            '  Fix the row, drop it with dataset.filter, or pass on_bad_row="drop" (its reason is then written down).',
            row_index,
            self.read_column,
        )


@dataclass(frozen=True, kw_only=True)
class RowStep(_DocumentStep):
    """
    Base of the steps that judge each document by itself: `dataset.map(step, batched=True)`.

    A subclass sets `name`, lists its `rules` and overrides [`measure`]; a document goes at the first rule, in their
    order, that its value breaks. One that reads pages or addresses sets `column_field` and `document_types`. As a
    map-function it rewrites its columns and fills `drop_reason` (empty where a row stays), `drop_value` and
    `drop_threshold` (NaN where there is none); rows that already have a reason are left alone, so steps can follow
    each other. `curate` calls [`judge`], which needs no such columns. With `with_indices=True` errors name the row's
    position in the dataset.

    Args:
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the document.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at a row that is no document; `"drop"` gives it the reason `error:<type>`.
        max_chars (`int`, *optional*, defaults to 50 million):
            Longest document, in code points; longer ones go, as `too_long`, unread.
        revision (`str`):
            Changes whenever the output would: datasets hashes this object, not the code behind it.

    Raises:
        RowError: if a row is no document and `on_bad_row` is `"raise"`.
    """

    @abstractmethod
    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """
        Measure, and rewrite, documents that are strings of a sane length.

        Args:
            texts (`list[str]`):
                The documents.
            batch (`Mapping[str, Sequence]`):
                Their rows: every column, the same length.

        Returns:
            Columns rewritten or added, and the values of each rule, all of the length of `texts`.
        """

    def judge(self, batch: Batch, indices: Sequence[int] | None = None) -> Judgement:
        """
        What becomes of each row of a batch.

        Args:
            batch (`Mapping[str, Sequence]`):
                Columns of rows that are all still in.
            indices (`Sequence[int]`, *optional*):
                Positions of the rows in the dataset, for errors.
        """
        drops = self.unreadable(batch, indices)
        documents = batch[self.read_column]
        readable = [position for position, drop in enumerate(drops) if drop is None]
        nothing = [None] * len(documents)
        texts = [documents[position] for position in readable]
        if len(readable) == len(documents):
            columns, values = self.measure(texts, batch)
        else:
            rows = {name: [column[position] for position in readable] for name, column in batch.items()}
            read_columns, read_values = self.measure(texts, rows)
            columns = {name: _spread(c, readable, batch.get(name, nothing)) for name, c in read_columns.items()}
            values = {}
            for name, numbers in read_values.items():
                values[name] = np.full(len(documents), np.nan)
                values[name][readable] = numbers
        for rule in self.rules:
            for position in np.flatnonzero(rule.broken_by(values[rule.name])):
                if drops[position] is None:
                    value = float(values[rule.name][position])
                    drops[position] = Drop(rule.name, value, rule.broken_bound(value))
        return Judgement(columns, values, drops)

    def __call__(self, batch: Batch, indices: Sequence[int] | None = None) -> dict[str, list[Any]]:
        """The batch's rewritten columns and reasons, for `Dataset.map(step, batched=True)`."""
        num_rows = len(next(iter(batch.values()), ()))
        # Neither None nor null: `Dataset.map` types a column by its first batch, in which no row may go.
        reasons = [reason or "" for reason in batch.get(DROP_REASON, [""] * num_rows)]
        drop_values, thresholds = ([_number(v) for v in batch.get(name, [None] * num_rows)] for name in _NUMBERS)
        staying = [position for position in range(num_rows) if not reasons[position]]
        rows = {name: [column[position] for position in staying] for name, column in batch.items()}
        positions = staying if indices is None else [indices[position] for position in staying]
        judgement = self.judge(rows, positions)
        for position, drop in zip(staying, judgement.drops, strict=True):
            if drop is not None:
                reasons[position] = f"{self.name}:{drop.rule}"
                drop_values[position] = _number(drop.value)
                thresholds[position] = _number(drop.threshold)
        empty = [None] * num_rows
        columns = {name: _spread(c, staying, batch.get(name, empty)) for name, c in judgement.columns.items()}
        return columns | {DROP_REASON: reasons, DROP_VALUE: drop_values, DROP_THRESHOLD: thresholds}


class Decision(NamedTuple):
    """
    What a [`SetStep`] decides of a document.

    Args:
        drop (`Drop`, *optional*):
            Why it goes.
        kept_pieces (`tuple[int, ...]`, *optional*):
            Numbers of the pieces that stay, where only part of it goes; see [`SetStep.rewrite`].
        columns (`dict`):
            Further values of its row, such as a cluster's number.
    """

    drop: Drop | None = None
    kept_pieces: tuple[int, ...] | None = None
    columns: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class SetStep(_DocumentStep):
    """
    Base of the steps that need every document: duplicates, a share to keep.

    [`features`] reads documents one by one, so that processes can share them and a killed run resumes; their tables
    are kept on disk. [`decide`] then goes through the tables, in the order of the documents, in one process. Rows that
    are [`unreadable`] take part in neither.

    Args:
        text_column, on_bad_row, max_chars, revision:
            As of [`RowStep`].
    """

    @abstractmethod
    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        """What the decision needs of each document: a table with a row a document."""

    @abstractmethod
    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        """
        Decide of every document.

        Args:
            tables (`Sequence[pa.Table]`):
                The features, in the order of the documents; each is read from disk when it is asked for, so that it
                may be gone through more than once.
            notes (`dict`, *optional*):
                Filled with what the step has to say of the whole set, such as a filter's measured rate of errors;
                complete once the last decisions are out.

        Returns:
            The decisions on the documents of each table in turn.
        """

    def judge(self, batch: Batch, drops: Sequence[Drop | None], decisions: Iterable[Decision]) -> Judgement:
        """
        What becomes of each row of a batch.

        Args:
            batch (`Mapping[str, Sequence]`):
                Columns of rows.
            drops (`Sequence[Drop | None]`):
                What [`unreadable`] says of each.
            decisions (`Iterable[Decision]`):
                On those that take part, in their order.
        """
        remaining_decisions = iter(decisions)
        decisions = [next(remaining_decisions) if drop is None else Decision(drop) for drop in drops]
        names = dict.fromkeys(name for decision in decisions for name in decision.columns)
        columns = {name: [decision.columns.get(name) for decision in decisions] for name in names}
        if any(decision.kept_pieces is not None for decision in decisions):
            columns[self.read_column] = [
                text if drop is not None or pieces is None else self.rewrite(text, pieces)
                for text, (drop, pieces, _) in zip(batch[self.read_column], decisions, strict=True)
            ]
        drops = [decision.drop for decision in decisions]
        values = {}
        for rule in self.rules:  # what it measured is known of the documents that went by it
            numbers = [drop.value if drop is not None and drop.rule == rule.name else None for drop in drops]
            values[rule.name] = np.array(numbers, dtype=float)
        return Judgement(columns, values, drops)

    def rewrite(self, text: str, kept_pieces: tuple[int, ...]) -> str:
        """What is left of a document when only the pieces of these numbers stay; for steps that cut documents."""
        raise NotImplementedError(f"{type(self).__name__} does not cut documents")


Step = RowStep | SetStep


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # a bound may be a whole number


def _spread(column: Sequence[Any], positions: Sequence[int], base: Sequence[Any]) -> list[Any]:
    """`column` at its `positions`, `base` elsewhere."""
    full = list(base)
    for position, value in zip(positions, column, strict=True):
        full[position] = value
    return full
