"""The same rows elsewhere: ids and texts of randomised rows, looked up in tables that carry no ledger for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, TRUE_LABEL
from hf_ext.data.relabeling.privatize import SAMPLE

__all__ = ["Ledger", "SameRows", "Sample", "Tally", "hashes_of", "key_columns", "ledger_mask", "numbers_of"]

ID_NAME = re.compile(
    r"(.*[_.])?(u?u?id|guid|idx|index|key|hash|no|nr|number|row|row_index|name|path|file|filename|url)", re.IGNORECASE
)
DISTINCT = 0.9  # share of a column's values that must differ for it to tell rows apart
SHARE = 0.05  # of the rows of either table whose texts must be the same: a few equal texts are chance
FEW_TEXTS = 2
PROSE_ROWS = 8  # lines of a text in which ids must occur
CONTRADICTED = 0.9  # share of rows with the same number whose texts differ: two datasets numbered alike


class Sample:
    """At most twice `SAMPLE` rows of a stream of batches, spread over all of it, with a number for each."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.numbers: list[NDArray[np.int64]] = []
        self.rate = 1.0
        self.size = 0
        self.random = np.random.default_rng(0)

    def add(self, table: pa.Table, numbers: NDArray[np.int64]) -> None:
        """Take some rows of a batch."""
        chosen = np.flatnonzero(self.random.random(len(table)) < self.rate)
        if not len(chosen):
            return
        self.tables.append(table.take(pa.array(chosen)))
        self.numbers.append(numbers[chosen])
        self.size += len(chosen)
        if self.size > 2 * SAMPLE:
            self._thin()

    def _thin(self) -> None:
        # half of all so far: the sample stays spread evenly over the stream
        for i, table in enumerate(self.tables):
            chosen = np.flatnonzero(self.random.random(len(table)) < 0.5)
            self.tables[i] = table.take(pa.array(chosen))
            self.numbers[i] = self.numbers[i][chosen]
        self.size = sum(map(len, self.tables))
        self.rate /= 2

    def table(self) -> pa.Table:
        """The rows, columns that only some batches have filled up with nulls."""
        return pa.concat_tables(self.tables, promote_options="permissive")

    def all_numbers(self) -> NDArray[np.int64]:
        """Their numbers."""
        return np.concatenate(self.numbers) if self.numbers else np.empty(0, dtype=np.int64)


def ledger_mask(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows of a batch have randomised labels, by their ledger."""
    mask = np.zeros(len(table), dtype=bool)
    true = np.zeros(len(table), dtype=bool)
    if EPSILON in table.column_names:
        mask |= numbers_of(table.column(EPSILON), 0.0) > 0
    if CHANNEL in table.column_names:
        names = pc.fill_null(pc.cast(table.column(CHANNEL), pa.large_string()), "")
        mask |= np.asarray(pc.not_equal(names, ""))
        true = np.asarray(pc.equal(names, TRUE_LABEL))
    return mask & ~true


def numbers_of(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    """A column of numbers, or of texts that spell them."""
    values = [missing if value is None else value for value in column.to_pylist()]
    try:
        return np.array(values, dtype=np.float64)
    except (ValueError, TypeError):
        return np.array([_number(value, missing) for value in values], dtype=np.float64)


def _number(value: Any, missing: float) -> float:
    try:
        return float(value)
    except (ValueError, TypeError):
        return missing


@dataclass
class Ledger:
    """What is known of every randomised row of a push, batch by batch."""

    labels: list[NDArray[np.int32]] = field(default_factory=list)
    contrasts: list[NDArray[np.float32]] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    rows: list[NDArray[np.int32]] = field(default_factory=list)
    sources: list[NDArray[np.int16]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # names of the key columns; `sources` counts them
    size: int = 0

    def add(
        self, table: pa.Table, labels: NDArray[np.int64], contrasts: NDArray[np.float64], keys: Sequence[str]
    ) -> None:
        """Rows of a batch that are randomised."""
        numbers = np.arange(self.size, self.size + len(table), dtype=np.int32)
        self.size += len(table)
        self.labels.append(labels.astype(np.int32))
        self.contrasts.append(contrasts.astype(np.float32))
        for name in keys:
            if name not in self.columns:
                self.columns.append(name)
            hashes, filled = hashes_of(table.column(name))
            self.hashes.append(hashes[filled])
            self.rows.append(numbers[filled])
            self.sources.append(np.full(int(filled.sum()), self.columns.index(name), dtype=np.int16))

    def finish(self) -> SameRows:
        """Sorted, for look-ups."""
        hashes = np.concatenate(self.hashes) if self.hashes else np.empty(0, dtype=np.uint64)
        # stable: of equal hashes the first row is found
        order = np.argsort(hashes, kind="stable")
        return SameRows(
            hashes[order],
            np.concatenate(self.rows)[order] if self.rows else np.empty(0, dtype=np.int32),
            np.concatenate(self.sources)[order] if self.sources else np.empty(0, dtype=np.int16),
            tuple(self.columns),
            np.concatenate(self.labels).astype(np.int64) if self.labels else np.empty(0, dtype=np.int64),
            np.concatenate(self.contrasts).astype(np.float64) if self.contrasts else np.empty(0),
        )


def key_columns(table: pa.Table, without: Sequence[str]) -> list[str]:
    """Columns that tell rows apart: ids by name, and texts, numbers and file names that hardly ever come twice."""
    names = []
    for name in table.column_names:
        column = table.column(name)
        if name in without or not _is_key_type(column.type):
            continue
        distinct = pc.count_distinct(column).as_py() / max(len(column) - column.null_count, 1)
        if distinct >= DISTINCT and (len(table) > 1 or ID_NAME.fullmatch(name)):
            names.append(name)
    return names


def _is_key_type(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) or bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind)
    )


def hashes_of(column: pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """
    A 64-bit hash of each value as a text, without regard to case and blanks around it, and which rows have a value.

    The same number is hashed alike whether it is an integer, a real number or a text.
    """
    from pandas.util import hash_array

    kind = column.type
    filled = np.asarray(pc.is_valid(column))
    if pa.types.is_floating(kind):
        values = np.nan_to_num(np.asarray(column.to_pylist(), dtype=np.float64))
        # up to 1e15 a float64 holds every whole number; 7 digits are what float32 and float64 agree on
        is_whole = (values == np.rint(values)) & (np.abs(values) < 1e15)
        texts = np.where(is_whole, np.rint(values).astype(np.int64).astype(str), np.char.mod("%.7g", values)).astype(
            object
        )
    else:
        lower = pc.utf8_lower(pc.cast(column, pa.large_string()))
        texts = np.asarray(pc.fill_null(pc.utf8_trim_whitespace(lower), "").to_pylist(), dtype=object)
        texts = _same_reals(texts)
    return hash_array(texts, categorize=False), filled & (texts != "")


_REAL = re.compile(r"-?\d*\.\d+(e[+-]?\d+)?|-?\d+(\.\d*)?e[+-]?\d+|-?\d+\.")


def _same_reals(texts: NDArray[Any]) -> NDArray[Any]:
    """Texts that spell real numbers, as the numbers would be written."""
    if not len(texts) or _REAL.fullmatch(next((text for text in texts.tolist() if text), "")) is None:
        return texts
    return np.array([f"{float(text):.7g}" if _REAL.fullmatch(text) else text for text in texts.tolist()], dtype=object)


@dataclass
class SameRows:
    """Every randomised row of a push, to look up other rows in."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int32]
    sources: NDArray[np.int16]
    columns: tuple[str, ...]
    labels: NDArray[np.int64]
    contrasts: NDArray[np.float64]

    def look_up(self, table: pa.Table, tally: Tally) -> NDArray[np.int64]:
        """
        The randomised row that each row of a batch is, or -1.

        Args:
            table (`pyarrow.Table`):
                The batch.
            tally ([`Tally`]):
                Counts over the batches of one table.
        """
        by_id = np.full(len(table), -1, dtype=np.int64)
        by_text = np.full(len(table), -1, dtype=np.int64)
        texts: list[NDArray[np.int64]] = []  # of columns that both tables have
        for name in table.column_names:
            if not _is_key_type(table.column(name).type):
                continue
            row, source = self._rows_of(table.column(name))
            is_number = _spells_numbers(table.column(name), name)
            same_name = np.array([column == name for column in self.columns], dtype=bool)[source]
            source_is_id = np.array([bool(ID_NAME.fullmatch(column)) for column in self.columns], dtype=bool)[source]
            if name in self.columns and not is_number and not ID_NAME.fullmatch(name):
                texts.append(row)
            is_id = (row >= 0) & source_is_id
            if is_number:
                is_id &= bool(ID_NAME.fullmatch(name))
                tally.numbers += int(is_id.sum())
            else:
                tally.names += int(is_id.sum())
            by_id = np.where((by_id < 0) & is_id, row, by_id)
            same_text = (row >= 0) & ~source_is_id & (same_name | (not is_number))
            by_text = np.where((by_text < 0) & same_text, row, by_text)
        tally.rows += len(table)
        tally.ids += int((by_id >= 0).sum())
        tally.same_texts += int(((by_id < 0) & (by_text >= 0)).sum())
        for row in texts:
            tally.compared += int((by_id >= 0).sum())
            tally.contradicting += int(((by_id >= 0) & (row != by_id)).sum())
        return np.where(by_id >= 0, by_id, by_text)

    def key_of(self, rows: pa.Table, numbers: NDArray[np.int64]) -> str | None:
        """The column in which rows are the same as the randomised rows of these numbers."""
        for name in rows.column_names:
            if _is_key_type(rows.column(name).type) and (self._rows_of(rows.column(name))[0] == numbers).any():
                return str(name)
        return None

    def _rows_of(self, column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """For each value the row that has it, or -1, and the number of the column where that row has it."""
        nowhere = np.full(len(column), -1, dtype=np.int64)
        if not len(self.hashes):
            return nowhere, np.zeros(len(column), dtype=np.int16)
        hashes, filled = hashes_of(column)
        # a hash above all others would be looked for behind the end
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        hit = filled & (self.hashes[place] == hashes)
        return np.where(hit, self.rows[place].astype(np.int64), nowhere), self.sources[place]


def _spells_numbers(column: pa.ChunkedArray, name: str) -> bool:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return True
    # The first line of a file of cells is read as a row too, for it may be one: there the name of the column stands.
    values = [value for value in column.slice(0, 100).to_pylist() if value is not None and str(value).strip() != name]
    return all(_number(value, np.nan) == _number(value, np.nan) for value in values)


@dataclass
class Tally:
    """Counts of one table's rows that are randomised elsewhere."""

    rows: int = 0
    ids: int = 0
    same_texts: int = 0
    compared: int = 0
    contradicting: int = 0
    numbers: int = 0  # ids that are numbers, and ids that are not
    names: int = 0

    def is_the_same(self, randomised: int, is_text: bool) -> bool:
        """
        Whether the table holds randomised rows, rather than numbers or a few texts that occur by chance.

        Args:
            randomised (`int`):
                Randomised rows of the push.
            is_text (`bool`):
                Whether the table is a text, in which a word may be an id by chance.
        """
        numbered_alike = self.compared > 0 and self.contradicting >= CONTRADICTED * self.compared
        if self.ids and not (self.names == 0 and numbered_alike):
            return self.ids >= (PROSE_ROWS if is_text else 1)
        share = max(self.same_texts / max(self.rows, 1), self.same_texts / max(randomised, 1))
        return self.same_texts >= (PROSE_ROWS if is_text else FEW_TEXTS) and share >= SHARE
