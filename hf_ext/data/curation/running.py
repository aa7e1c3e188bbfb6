"""What steps make of one chunk of documents: pure functions, the same under `curate` and under any other engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from hf_ext._columns import ROW_INDEX
from hf_ext.data.curation.counts import CurationCounts, RuleCounts, SourceCounts, StepCounts
from hf_ext.data.curation.drop_ledger import DropRecord
from hf_ext.data.curation.steps import Batch, Decision, Drop, Judgement, RowStep, Rule, SetStep, Step
from hf_ext.guards.markdown import well_formed
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows: TypeAlias = "pa.Table | Mapping[str, Sequence[Any]]"


@dataclass(frozen=True)
class Reading:
    """
    How documents are named and counted, whatever the steps do.

    Args:
        id_column (`str`, *optional*):
            Column of their ids; `shard:row` without one.
        source_column (`str`, *optional*):
            Column by which drops are counted.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column whose tokens are counted.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            What counts them; without one words between white space are counted.
    """

    id_column: str | None = None
    source_column: str | None = None
    text_column: str = "text"
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def unit(self) -> str:
        """What is counted."""
        return "words" if self.tokenizer is None else "tokens"

    def count(self, texts: Sequence[object] | None) -> list[int] | None:
        """Tokens, or words, of each text, none of what is no text; `None` where there are no texts yet."""
        if texts is None:
            return None
        if self.tokenizer is None:
            return [len(text.split()) if isinstance(text, str) else 0 for text in texts]
        strings = [text if isinstance(text, str) else "" for text in texts]
        encoded = self.tokenizer(strings, add_special_tokens=False)["input_ids"] if strings else []
        return [len(ids) for ids in encoded]


class ChunkResult(NamedTuple):
    """
    What is left of a chunk.

    Args:
        positions (`list[int]`):
            Of the rows that are still in.
        columns (`dict[str, list]`):
            Columns that were rewritten or added, of those rows.
        drops (`list[DropRecord]`):
            The others, step by step.
        counts ([`CurationCounts`]):
            Of this chunk.
        consumed (`frozenset[str]`):
            Columns that are left out.
    """

    positions: list[int]
    columns: dict[str, list[Any]]
    drops: list[DropRecord]
    counts: CurationCounts
    consumed: frozenset[str] = frozenset()


class _Columns(Mapping[str, list[Any]]):
    """Rows of a chunk that are still in, a column made into a list when it is asked for."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        num_rows = rows.num_rows if isinstance(rows, pa.Table) else len(next(iter(rows.values()), ()))
        self.positions = list(range(num_rows))
        self.written: dict[str, list[Any]] = {}
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name in self.written:
            return self.written[name]
        if name not in self._lists:
            column = self._rows[name]
            values = column.to_pylist() if isinstance(column, pa.ChunkedArray) else column
            self._lists[name] = [values[position] for position in self.positions]
        return self._lists[name]

    def __iter__(self) -> Iterator[str]:
        names = self._rows.column_names if isinstance(self._rows, pa.Table) else self._rows
        # no message lists the column of the positions; it can be looked up
        return iter(dict.fromkeys(name for name in (*names, *self.written) if name != ROW_INDEX))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def row_numbers(self) -> list[int]:
        """Positions in the shard."""
        return self[ROW_INDEX] if ROW_INDEX in self else list(self.positions)

    def keep(self, staying: Sequence[int], columns: Mapping[str, list[Any]]) -> None:
        """Go on with rewritten columns, and of the rows with those at these positions."""
        self.written |= columns
        if len(staying) < len(self.positions):
            self.positions = [self.positions[index] for index in staying]
            self.written = {name: [values[index] for index in staying] for name, values in self.written.items()}
            self._lists = {name: [values[index] for index in staying] for name, values in self._lists.items()}


def step_names(steps: Sequence[Step]) -> list[str]:
    """A name for each step that no other has: `gopher_quality`, and `gopher_quality_2` of the next."""
    names: list[str] = []
    for position, step in enumerate(steps):
        earlier = sum(other.name == step.name for other in steps[:position])
        names.append(f"{step.name}_{earlier + 1}" if earlier else step.name)
    return names


def run_chunk(
    rows: Rows,
    steps: Sequence[RowStep],
    *,
    shard: str = "rows",
    names: Sequence[str] | None = None,
    reading: Reading = Reading(),
) -> ChunkResult:
    """
    Send documents through steps that judge each by itself.

    Args:
        rows (`pa.Table` or `Mapping[str, Sequence]`):
            The documents, with their positions in the shard in the column `__hf_ext_row__` where they are not simply
            counted from 0.
        steps (`Sequence[RowStep]`):
            The steps; a document that one of them drops does not come to the next.
        shard (`str`, *optional*, defaults to `"rows"`):
            Where the documents are from.
        names (`Sequence[str]`, *optional*):
            Of the steps, by [`step_names`] where they are but a part of the chain.
        reading ([`Reading`], *optional*):
            How documents are named and counted.

    Raises:
        RowError: if a row is no document and the step was not told to drop such.
    """
    columns = _Columns(rows)
    chunk = _ChunkCounts(columns, shard, reading)
    for step, name in zip(steps, names or step_names(steps), strict=True):
        if not columns.positions:  # without rows a table may lack the columns that a step needs
            chunk.counts.steps.append(StepCounts(name, rules={rule.name: RuleCounts(rule) for rule in step.rules}))
            continue
        begin = time.perf_counter()
        with _naming(shard):
            judgement = step.judge(columns, columns.row_numbers)
        seconds = time.perf_counter() - begin
        chunk.step(name, step.rules, judgement, seconds)
    consumed = frozenset(column for step in steps for column in step.consumed_columns)
    return chunk.result()._replace(consumed=consumed)


def decided_chunk(
    rows: Rows,
    step: SetStep,
    decisions: Sequence[Decision],
    *,
    name: str,
    shard: str = "rows",
    seconds: float = 0.0,
    reading: Reading = Reading(),
) -> ChunkResult:
    """
    Do with documents what a step over the whole set has decided of them.

    Args:
        rows, shard, reading:
            As for [`run_chunk`].
        step ([`SetStep`]):
            The step.
        decisions (`Sequence[Decision]`):
            One a document that takes part, in the order of the rows.
        name (`str`):
            Of the step.
        seconds (`float`, *optional*):
            What the features and the decisions took.
    """
    begin = time.perf_counter()
    columns = _Columns(rows)
    chunk = _ChunkCounts(columns, shard, reading)
    judgement = step.judge(columns, readable_rows(rows, step, shard)[1], decisions)
    chunk.step(name, step.rules, judgement, seconds + time.perf_counter() - begin)
    return chunk.result()


def readable_rows(rows: Rows, step: SetStep, shard: str) -> tuple[Batch, list[Drop | None]]:
    """
    The rows that take part in a step over the whole set, and for every row the reason why it does not, or `None`.

    Raises:
        ValueError: if there is no such column.
        RowError: if a row is no document and the step was not told to drop such.
    """
    columns = _Columns(rows)
    if not columns.positions:  # a chunk of which nothing is left may lack the column
        return {step.read_column: []}, []
    with _naming(shard):
        drops = step.unreadable(columns, columns.row_numbers)
    columns.keep([index for index, drop in enumerate(drops) if drop is None], {})
    return columns, drops


class _ChunkCounts:
    """The documents of a chunk on their way through steps, and what is counted meanwhile."""

    def __init__(self, columns: _Columns, shard: str, reading: Reading) -> None:
        self.columns = columns
        self.shard = shard
        self.reading = reading
        self.counts = CurationCounts(reading.unit)
        self.drops: list[DropRecord] = []
        for setting in ("id_column", "source_column"):
            name = getattr(reading, setting)
            if columns.positions and name is not None and name not in columns:
                raise ValueError(f"{setting}={name!r} is no column of shard {shard!r}; it has {sorted(columns)}.")
        self.tokens = reading.count(columns.get(reading.text_column))

    def step(self, name: str, rules: Sequence[Rule], judgement: Judgement, seconds: float) -> None:
        """Count what a step has judged, and go on with what it left."""
        counts = StepCounts(name, rows_in=len(judgement.drops), tokens_in=_total(self.tokens), seconds=seconds)
        num_broken = np.zeros(len(judgement.drops), dtype=int)
        for rule in rules:
            counts.rules[rule.name] = RuleCounts(rule)
            counts.rules[rule.name].values.add(judgement.values[rule.name])
            num_broken += rule.broken_by(judgement.values[rule.name])
        self._write_down(name, judgement.drops, counts, num_broken)
        staying = [index for index, drop in enumerate(judgement.drops) if drop is None]
        former_texts = self.columns.get(self.reading.text_column)
        former_tokens = self.tokens
        self.columns.keep(staying, judgement.columns)
        if self.reading.text_column in judgement.columns:
            self.tokens = self._recount(staying, former_texts, former_tokens)
        elif former_tokens is not None:
            self.tokens = [former_tokens[index] for index in staying]
        counts.rows_out = len(staying)
        counts.tokens_out = _total(self.tokens)
        self.counts.steps.append(counts)

    def result(self) -> ChunkResult:
        """What is left."""
        return ChunkResult(self.columns.positions, self.columns.written, self.drops, self.counts)

    def _write_down(self, name: str, drops: Sequence[Drop | None], counts: StepCounts, num_broken: np.ndarray) -> None:
        if not any(drops):
            return
        row_numbers = self.columns.row_numbers
        ids = self.columns[self.reading.id_column] if self.reading.id_column is not None else None
        sources = self.columns[self.reading.source_column] if self.reading.source_column is not None else None
        for index, drop in enumerate(drops):
            if drop is None:
                continue
            row = row_numbers[index]
            document_id = document_name(self.shard, row, None if ids is None else ids[index])
            self.drops.append(DropRecord(document_id, self.shard, row, name, *drop))
            rule_counts = counts.rules.setdefault(drop.rule, RuleCounts(Rule(drop.rule)))
            rule_counts.num_dropped += 1
            rule_counts.num_dropped_alone += int(num_broken[index] <= 1)
            if sources is not None:
                source = self.counts.sources.setdefault(well_formed(str(sources[index])), SourceCounts())
                source.drops_by_step[name] = source.drops_by_step.get(name, 0) + 1

    def _recount(
        self, staying: Sequence[int], former_texts: Sequence[object] | None, former_tokens: list[int] | None
    ) -> list[int] | None:
        """Tokens now; those of texts that a step left as they were are not counted again."""
        texts = self.columns[self.reading.text_column]
        if former_texts is None or former_tokens is None:
            return self.reading.count(texts)
        changes = [i for i, index in enumerate(staying) if texts[i] != former_texts[index]]
        tokens = [former_tokens[index] for index in staying]
        for i, count in zip(changes, self.reading.count([texts[i] for i in changes]) or [], strict=True):
            tokens[i] = count
        return tokens


@contextmanager
def _naming(shard: str) -> Iterator[None]:
    """Name the shard in the error of a bad row."""
    try:
        yield
    except RowError as error:
        raise RowError(f"shard {shard!r}, {error}", error.row_index, error.column) from error


def document_name(shard: str, row: int, document_id: object = None) -> str:
    """The id of a document in the drop ledger: its own, or where it stands."""
    return f"{shard}:{row}" if document_id is None else well_formed(str(document_id))


class Unread(NamedTuple):
    """
    A record that could not be read.

    Args:
        row (`int`):
            Its position in the shard.
        drop ([`Drop`]):
            Why.
        facts (`Mapping`):
            What is known of it, such as its id.
    """

    row: int
    drop: Drop
    facts: Mapping[str, Any] = {}


def num_tokens(rows: Rows, reading: Reading) -> int | None:
    """Tokens of the rows; `None` where there is no text yet."""
    return _total(reading.count(_Columns(rows).get(reading.text_column)))


def read_counts(rows: Rows, unread: Sequence[Unread], shard: str, reading: Reading, tokens: int | None) -> ChunkResult:
    """What the reading of a chunk counts: rows of each source, and the records that could not be read."""
    columns = _Columns(rows)
    num_rows = len(columns.positions)
    counts = StepCounts("read", num_rows + len(unread), num_rows, tokens, tokens)
    sources: dict[str, SourceCounts] = {}
    records = []
    for row, drop, facts in unread:
        document_id = document_name(shard, row, None if reading.id_column is None else facts.get(reading.id_column))
        records.append(DropRecord(document_id, shard, row, "read", *drop))
        rule_counts = counts.rules.setdefault(drop.rule, RuleCounts(Rule(drop.rule)))
        rule_counts.num_dropped += 1
        rule_counts.num_dropped_alone += 1
    if reading.source_column is not None:
        for source in columns[reading.source_column] if num_rows else []:
            sources.setdefault(well_formed(str(source)), SourceCounts()).rows_read += 1
        for _, _, facts in unread:
            source_counts = sources.setdefault(well_formed(str(facts.get(reading.source_column))), SourceCounts())
            source_counts.merge(SourceCounts(1, {"read": 1}))
    return ChunkResult(columns.positions, {}, records, CurationCounts(reading.unit, [counts], sources))


def _total(tokens: list[int] | None) -> int | None:
    return None if tokens is None else sum(tokens)
