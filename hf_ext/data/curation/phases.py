"""The phases of a curation: runs of steps that judge each document by itself, and steps over the whole set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_ext.data.curation.chunks import (
    ChunkEnd,
    ChunkStore,
    ColumnError,
    commit,
    end_if_written,
    numbered,
    read_end,
    read_rows,
)
from hf_ext.data.curation.running import (
    ChunkResult,
    Reading,
    Rows,
    decided_chunk,
    num_tokens,
    read_counts,
    readable_rows,
    run_chunk,
)
from hf_ext.data.curation.sources import Chunk, Shard
from hf_ext.data.curation.steps import Decision, Notes, RowStep, SetStep, Step
from hf_ext.data.curation.workers import Task, peak_bytes
from hf_ext.guards.disk import parquet_sink, replacing

_SECONDS = b"hf_ext_seconds"


@dataclass(frozen=True)
class RowPhase:
    """
    Consecutive steps that judge each document by itself.

    Args:
        steps (`tuple[RowStep, ...]`):
            The steps; none where the first step of all is one over the whole set.
        names (`tuple[str, ...]`):
            Of the steps.
        reading ([`Reading`]):
            How documents are named and counted.
    """

    steps: tuple[RowStep, ...]
    names: tuple[str, ...]
    reading: Reading

    def read(self, chunk: Chunk, shard: str, target: Path, is_last: bool, seconds: float) -> int:
        """Do with documents as they were read, and write them; `seconds` is what the reading took."""
        rows = numbered(chunk.rows, chunk.row_numbers)
        result = self._run(rows, shard)
        steps = result.counts.steps
        # counted already where there is a step; a page has none before it is extracted
        tokens = steps[0].tokens_in if steps else num_tokens(rows, self.reading)
        first = read_counts(rows, chunk.unread, shard, self.reading, tokens)
        first.counts.steps[0].seconds = seconds
        first.counts.merge(result.counts)
        drops = first.drops + result.drops
        _commit(target, rows, result._replace(counts=first.counts, drops=drops), shard, ChunkEnd(chunk.end, is_last))
        return len(chunk.row_numbers) + len(chunk.unread)

    def go_on(self, source: Path, shard: str, target: Path) -> int:
        """Do with documents that an earlier phase has left."""
        rows = read_rows(source)
        _commit(target, rows, self._run(rows, shard), shard, read_end(source))
        return len(rows)

    def _run(self, rows: Rows, shard: str) -> ChunkResult:
        return run_chunk(rows, self.steps, shard=shard, names=self.names, reading=self.reading)


@dataclass(frozen=True)
class SetPhase:
    """
    A step over the whole set: features chunk by chunk, one pass of decisions, and what follows from them.

    Args:
        step ([`SetStep`]):
            The step.
        name (`str`):
            Its name.
        reading ([`Reading`]):
            How documents are named and counted.
    """

    step: SetStep
    name: str
    reading: Reading

    def write_features(self, source: Path, shard: str, target: Path) -> int:
        """Write what the decision needs of a chunk."""
        rows = read_rows(source)
        begin = time.perf_counter()
        batch, _ = readable_rows(rows, self.step, shard)
        texts = list(batch[self.step.read_column])
        table = self.step.features(texts, batch)
        if len(table) != len(texts):
            raise ValueError(f"{type(self.step).__name__}.features gave {len(table)} rows for {len(texts)} documents.")
        seconds = time.perf_counter() - begin
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SECONDS: str(seconds)})
        with replacing(target) as temporary, parquet_sink(temporary) as sink:
            pq.write_table(table, sink)
        return len(rows)

    def apply(self, source: Path, shard: str, target: Path, decisions: list[Decision], seconds: float) -> int:
        """Do with a chunk what was decided."""
        rows = read_rows(source)
        result = decided_chunk(
            rows, self.step, decisions, name=self.name, shard=shard, seconds=seconds, reading=self.reading
        )
        _commit(target, rows, result, shard, read_end(source))
        return len(rows)


class FeatureTables(Sequence[pa.Table]):
    """Tables of features, each read from the disk when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return FeatureTables(self.paths[index])
        return pq.read_table(self.paths[index], partitioning=None)


def phases_of(steps: Sequence[Step], names: Sequence[str], reading: Reading) -> list[RowPhase | SetPhase]:
    """The phases of a chain; the first is always one of row steps, for it reads."""
    phases: list[RowPhase | SetPhase] = [RowPhase((), (), reading)]
    for step, name in zip(steps, names, strict=True):
        last = phases[-1]
        if isinstance(step, SetStep):
            phases.append(SetPhase(step, name, reading))
        elif isinstance(last, RowPhase):
            phases[-1] = RowPhase((*last.steps, step), (*last.names, name), reading)
        else:
            phases.append(RowPhase((step,), (name,), reading))
    return phases


def reading_tasks(shard: Shard, store: ChunkStore) -> Iterator[Task]:
    """Tasks of [`RowPhase.read`] for the chunks of a shard that are not on the disk yet."""
    number = row = 0
    chunks: Iterator[Chunk] | None = None
    following: Chunk | None = None
    while True:
        end = end_if_written(store.path(number))
        if end is not None:
            if end.is_last:
                return
            number, row, chunks = number + 1, end.end, None
            continue
        begin = time.perf_counter()
        if chunks is None:
            chunks = shard.chunks(row)
            following = next(chunks, None)
        chunk = following or Chunk({}, [], [], row)  # a shard without documents has one chunk, too
        following = next(chunks, None)
        yield chunk, store.shard, store.path(number), following is None, time.perf_counter() - begin
        if following is None:
            return
        number, row = number + 1, chunk.end


ChunkPair = tuple[Path, str, Path]  # a chunk, its shard, and the same chunk after the next phase


def pairs_of(former: Sequence[ChunkStore], stores: Sequence[ChunkStore]) -> Iterator[ChunkPair]:
    """Every chunk of a phase beside that of the next, written or not."""
    for former_store, store in zip(former, stores, strict=True):
        for source in former_store.paths():
            yield source, store.shard, store.folder / source.name


def decision_tasks(
    step: SetStep, features: Sequence[Path], pairs: Sequence[ChunkPair], notes: Notes
) -> Iterator[Task]:
    """
    Tasks of [`SetPhase.apply`]; the decisions are made in the order of the documents, while tasks are taken.

    Args:
        step ([`SetStep`]):
            The step.
        features (`Sequence[Path]`):
            Its tables, in order.
        pairs (`Sequence[ChunkPair]`):
            The chunks that they are of.
        notes (`dict`):
            Filled with what the step has to say of the whole set, by the time that the last task was taken.
    """
    begin = time.perf_counter()
    decisions = step.decide(FeatureTables(features), notes)
    for path, (source, shard, target) in zip(features, pairs, strict=True):
        chunk_decisions = next(decisions)
        seconds = time.perf_counter() - begin + _feature_seconds(path)
        if end_if_written(target) is None:
            yield source, shard, target, chunk_decisions, seconds
        begin = time.perf_counter()
    if next(decisions, None) is not None:  # goes through to the end of its code, where notes are complete
        raise ValueError(f"{type(step).__name__}.decide gave decisions on more than {len(features)} tables.")


def _commit(path: Path, rows: Rows, result: ChunkResult, shard: str, end: ChunkEnd) -> None:
    result.counts.peak_bytes = peak_bytes()
    try:
        commit(path, rows, result, end)
    except ColumnError as error:
        raise ColumnError(f"shard {shard!r}, {error}") from error


def _feature_seconds(path: Path) -> float:
    return float((pq.read_schema(path).metadata or {}).get(_SECONDS, b"0"))
