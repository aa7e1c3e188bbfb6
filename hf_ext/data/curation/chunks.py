"""Chunks on the disk: each written whole or not at all, put together to shards at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hf_ext._columns import ROW_INDEX
from hf_ext.data.curation.counts import CurationCounts
from hf_ext.data.curation.drop_ledger import drop_table
from hf_ext.data.curation.running import ChunkResult, Rows
from hf_ext.guards.disk import flush_folder, parquet_sink, replacing
from hf_ext.guards.runs import remove_leftovers

SHARD_BYTES = 500_000_000  # of the tables in memory, as `datasets` cuts its own
_ROWS = "rows.parquet"
_DROPS = "drops.parquet"
_COUNTS = "counts.json"


class ColumnError(ValueError):
    """Values of a column are of types that do not go together."""


class ChunkEnd(NamedTuple):
    """Position in the shard at which the chunk after this one begins, and whether there is none."""

    end: int
    is_last: bool


def read_end(path: Path) -> ChunkEnd:
    """Where a chunk ends that is on the disk."""
    values = json.loads((path / _COUNTS).read_text(encoding="utf-8"))
    return ChunkEnd(values["end"], values["is_last"])


def end_if_written(path: Path) -> ChunkEnd | None:
    """Where a chunk ends, `None` where it is still to write, or damaged."""
    try:
        return read_end(path)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


class ChunkStore:
    """
    The chunks of one shard after one phase, in a folder that is named by all that they depend on.

    Args:
        folder (`Path`):
            The place; made where it is missing. What killed processes left of chunks is removed.
        shard (`str`):
            Name of the shard.
    """

    def __init__(self, folder: Path, shard: str) -> None:
        self.folder = folder
        self.shard = shard
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, "*")

    def path(self, number: int) -> Path:
        """Of a chunk, written or not."""
        return self.folder / f"{number:07d}"

    def is_whole(self) -> bool:
        """Whether every chunk is there, up to the last."""
        number = 0
        while (end := end_if_written(self.path(number))) is not None and not end.is_last:
            number += 1
        return end is not None

    def num_read(self) -> int:
        """Documents of a shard whose chunks are there, up to the first that is not."""
        end = number = 0
        while (chunk_end := end_if_written(self.path(number))) is not None:
            end, number = chunk_end.end, number + 1
        return end

    def paths(self) -> Iterator[Path]:
        """Every chunk of a shard that is whole, in order."""
        for number in count():
            end = end_if_written(self.path(number))
            if end is None:
                raise FileNotFoundError(f"{self.path(number)} is missing: run the curation again.")
            yield self.path(number)
            if end.is_last:
                return


def commit(path: Path, rows: Rows, result: ChunkResult, end: ChunkEnd) -> None:
    """
    Write a chunk.

    Args:
        path (`Path`):
            Its folder.
        rows (`pa.Table` or `Mapping[str, Sequence]`):
            The rows that the steps were given.
        result ([`ChunkResult`]):
            What they made of them.
        end ([`ChunkEnd`]):
            Where it ends.
    """
    with replacing(path, overwrite=True) as temporary:
        temporary.mkdir()
        _write_table(temporary / _ROWS, assembled(rows, result))
        _write_table(temporary / _DROPS, drop_table(result.drops))
        content = {**end._asdict(), "counts": result.counts.to_dict()}
        (temporary / _COUNTS).write_text(json.dumps(content), encoding="utf-8")


def read_rows(path: Path) -> pa.Table:
    """The rows that a chunk still has."""
    with _naming_damage(path):
        return pq.read_table(path / _ROWS, partitioning=None)


def count_rows(path: Path) -> int:
    """How many rows a chunk still has."""
    with _naming_damage(path):
        return pq.read_metadata(path / _ROWS).num_rows


def read_drops(path: Path) -> pa.Table:
    """The documents that went in a chunk."""
    with _naming_damage(path):
        return pq.read_table(path / _DROPS, partitioning=None)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Name the chunk whose file cannot be read, and what to do."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: delete that folder and run again.") from error


def read_counts(path: Path) -> CurationCounts:
    """What was counted in a chunk."""
    return CurationCounts.from_dict(json.loads((path / _COUNTS).read_text(encoding="utf-8"))["counts"])


def numbered(rows: Rows, row_numbers: Sequence[int]) -> Rows:
    """The rows with their positions in the shard beside them."""
    if isinstance(rows, pa.Table):
        others = rows.drop_columns([ROW_INDEX]) if ROW_INDEX in rows.column_names else rows
        return others.append_column(ROW_INDEX, pa.array(row_numbers, pa.int64()))
    return {**rows, ROW_INDEX: list(row_numbers)}


def schema_of(paths: Iterable[Path]) -> pa.Schema:
    """
    The schema that all chunks fit into, without the positions.

    Raises:
        ValueError: if a column has values of types that do not go together.
    """
    schema: pa.Schema | None = None
    widest: pa.Schema | None = None
    for path in paths:
        with _naming_damage(path):
            metadata = pq.read_metadata(path / _ROWS)
        other = metadata.schema.to_arrow_schema()
        widest = other if widest is None else widest
        if metadata.num_rows == 0:  # its columns are those of the rows before the last went
            continue
        try:
            schema = other if schema is None else pa.unify_schemas([schema, other], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"The documents have columns whose types do not go together: {str(error).splitlines()[0]}. Give the "
                "column one type in every shard."
            ) from error
    schema = schema or widest or pa.schema([])
    if ROW_INDEX in schema.names:
        schema = schema.remove(schema.get_field_index(ROW_INDEX))
    features = (schema.metadata or {}).get(b"huggingface")  # pandas' would name columns of its own
    return schema.with_metadata({b"huggingface": features} if features else None)


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, with nulls in those that the table lacks."""
    missing = [schema.field(name) for name in schema.names if name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def write_shards(folder: Path, pattern: str, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """
    Write tables to Parquet files of about 500 MB.

    Args:
        folder (`Path`):
            The place.
        pattern (`str`):
            Of the names: `train-{number:05d}-of-{total:05d}.parquet`.
        tables (`Iterable[pa.Table]`):
            Each becomes a row group.
        schema (`pa.Schema`):
            Of all of them.

    Returns:
        `int`: rows written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_rows = 0
    files: list[Path] = []
    tables = iter(tables)
    for table in _or_empty(tables, schema):
        files.append(folder / f"{len(files)}.part")
        with parquet_sink(files[-1]) as sink, ExitStack() as stack:
            writer = stack.enter_context(pq.ParquetWriter(sink, schema, compression="zstd"))
            num_bytes = 0
            while True:
                if len(table):  # `datasets` (5.2) cannot read a row group without rows
                    writer.write_table(table)
                num_rows += len(table)
                num_bytes += table.nbytes
                following = next(tables, None) if num_bytes < SHARD_BYTES else None
                if following is None:
                    break
                table = following
    for number, file in enumerate(files):
        file.rename(folder / pattern.format(number=number, total=len(files)))
    flush_folder(folder)
    return num_rows


def _or_empty(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The tables; one without rows where there is none, so that there is a file with the columns."""
    first = next(tables, None)
    yield schema.empty_table() if first is None else first
    yield from tables


def _write_table(path: Path, table: pa.Table) -> None:
    with parquet_sink(path) as sink:
        pq.write_table(table, sink)


def assembled(rows: Rows, result: ChunkResult) -> pa.Table:
    """The rows that are left of these, with columns rewritten, added and left out."""
    positions = result.positions
    columns = {name: values for name, values in result.columns.items() if name not in result.consumed}
    if isinstance(rows, pa.Table):
        table = rows.drop_columns([name for name in rows.column_names if name in result.consumed])
        table = table if len(positions) == len(rows) else table.take(pa.array(positions, pa.int64()))
    else:
        unchanged = {name: v for name, v in rows.items() if name not in columns and name not in result.consumed}
        table = pa.table({name: _array(name, [v[p] for p in positions]) for name, v in unchanged.items()})
    for name, values in columns.items():
        if name not in table.column_names:
            table = table.append_column(name, _array(name, values))
            continue
        index = table.column_names.index(name)
        table = table.set_column(index, name, _array(name, values, table.schema.field(index).type))
    return table


def _array(name: str, values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
    """
    Values of a column, of its former type where they fit into it.

    Raises:
        ColumnError: if they are of types that do not go together.
    """
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # halves of a pair of surrogates, as JSON may have them, are no Unicode text
        return _array(name, [_mended(value) for value in values], kind)
    except (pa.ArrowException, OverflowError) as error:
        if kind is not None:
            return _array(name, values)
        reason = str(error).splitlines()[0]
        raise ColumnError(f"column {name!r}: values of types that do not go together: {reason}.") from error


def _mended(value: object) -> object:
    """Text with U+FFFD in place of each lone surrogate, at any depth of lists and mappings."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value
