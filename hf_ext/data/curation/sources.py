"""What is curated, shard by shard, in pieces that memory holds: datasets, streams, and files of pages or documents."""

from __future__ import annotations

import glob
import gzip
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from hf_ext.data.curation.running import Unread
from hf_ext.data.curation.steps import DROP_REASON, DROP_THRESHOLD, DROP_VALUE, Drop
from hf_ext.data.row_digest import rows_digest
from hf_ext.guards.inside import require_file
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.unpacked import require_modest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

CHUNK_ROWS = 1000
CHUNK_BYTES = 8 * 2**20
DATASET_SHARD = "rows"  # the one shard of a dataset, as ids and the drop ledger name it
_READ_ROWS = 100  # of a file at a time: documents of a megabyte each must not fill the memory
_LONGEST_LINE = 256 * 2**20
_HEAD_BYTES = 2**16
KINDS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".warc", ".warc.gz")


class Chunk(NamedTuple):
    """
    Consecutive documents of a shard.

    Args:
        rows (`pa.Table` or `dict[str, list]`):
            Those that could be read.
        row_numbers (`list[int]`):
            Their positions in the shard.
        unread (`list[Unread]`):
            Those that could not.
        end (`int`):
            Position at which the next chunk begins.
    """

    rows: pa.Table | dict[str, list[Any]]
    row_numbers: list[int]
    unread: list[Unread]
    end: int


class Shard(ABC):
    """
    One file, or a dataset. Chunks depend on the content alone: the same wherever reading begins and whoever reads.

    Args:
        name (`str`):
            As the drop ledger has it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def identity(self) -> str:
        """What changes when the content does."""

    def num_rows(self) -> int | None:
        """How many documents it has, of a shard that says so and can be read from anywhere; `None` of others."""
        return None

    @abstractmethod
    def chunks(self, start: int) -> Iterator[Chunk]:
        """
        Its documents from position `start`, where a chunk begins.

        Raises:
            RowError: if one cannot be read and this shard was not told to drop such.
            ValueError: if the shard cannot be read any further.
        """


class DatasetShard(Shard):
    """A `Dataset` in its own Arrow tables: pictures and sound stay as they are stored."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(DATASET_SHARD)
        self.dataset = dataset

    def identity(self) -> str:
        """Digest of every row: a fingerprint of `datasets` differs between processes for the same rows."""
        digest = rows_digest(self.dataset)
        return _hash(json.dumps([digest["count"], digest["columns"]]).encode())

    def num_rows(self) -> int:
        """See [`Shard.num_rows`]."""
        return len(self.dataset)

    def chunks(self, start: int) -> Iterator[Chunk]:
        """See [`Shard.chunks`]."""
        rows = self.dataset.with_format("arrow")
        num_rows = len(self.dataset)
        firsts = range(start, max(num_rows, 1), _READ_ROWS)
        tables = (rows[first : first + _READ_ROWS] for first in firsts)
        return _cut_tables(tables, start)


class StreamShard(Shard):
    """An `IterableDataset`."""

    def __init__(self, dataset: IterableDataset) -> None:
        super().__init__(DATASET_SHARD)
        self.dataset = dataset

    def identity(self) -> str:
        """Digest of the first 1,000 rows: a stream is not read twice."""
        return _hash(json.dumps(rows_digest(self.dataset)["columns"]).encode())

    def chunks(self, start: int) -> Iterator[Chunk]:
        """See [`Shard.chunks`]; earlier rows are passed over."""
        return _cut_records(enumerate(self.dataset.skip(start), start), start)


class FileShard(Shard):
    """
    A file.

    Args:
        name (`str`):
            As the drop ledger has it.
        path (`Path`):
            The file.
        drops_bad (`bool`):
            Whether records that cannot be read are dropped and written down.
    """

    def __init__(self, name: str, path: Path, drops_bad: bool) -> None:
        super().__init__(name)
        self.path = path
        self.drops_bad = drops_bad

    def identity(self) -> str:
        """
        Of its size, its time of change, and its first and last 64 KiB.

        A hash of all of it would take a second reading of every shard before the first document is judged. A file
        that was changed in its middle alone, at the same size, with its time set back, is taken for the same.

        Raises:
            ValueError: if it is gone, or no file.
        """
        try:
            status = require_file(self.path).stat()
            with open(self.path, "rb") as file:
                head = file.read(_HEAD_BYTES)
                file.seek(max(0, status.st_size - _HEAD_BYTES))
                tail = file.read()
        except OSError as error:
            raise ValueError(f"shard {self.name!r} cannot be read: {error.strerror or error}.") from error
        return _hash(f"{status.st_size} {status.st_mtime_ns}".encode() + head + tail)

    def refuse_or_drop(self, row: int, error: Exception) -> Unread:
        """
        What becomes of a record that cannot be read.

        Raises:
            RowError: if such are not dropped.
        """
        if self.drops_bad:
            return Unread(row, Drop(f"error:{type(error).__name__}"))
        raise RowError(
            f"shard {self.name!r}, row {row:,}: {str(error).splitlines()[0]}.\n  Mend the file, or pass "
            'on_bad_row="drop" (its reason is then written into the drop ledger).',
            row,
            "",
        ) from error

    def cut_off(self, error: Exception) -> ValueError:
        """The error of a file that cannot be read to its end."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ValueError(
            f"shard {self.name!r} is damaged or not what its name says: {reason}. The chunks before are kept: mend or "
            "remove the file, and run again."
        )


class ParquetShard(FileShard):
    """A Parquet file."""

    def num_rows(self) -> int:
        """See [`Shard.num_rows`]."""
        try:
            return pq.read_metadata(self.path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise self.cut_off(error) from error

    def chunks(self, start: int) -> Iterator[Chunk]:
        """See [`Shard.chunks`]."""
        try:
            require_modest(self.path)
            # read in pieces of a column chunk: a file of one row group may be larger than the memory
            with pq.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False) as file:
                yield from _cut_tables(_rows_from(file, start), start)
        except (pa.ArrowException, OSError) as error:
            raise self.cut_off(error) from error

    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        try:
            return pq.read_schema(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self.cut_off(error) from error


class LinesShard(FileShard):
    """A file of JSON lines, as it is or packed with gzip or zstd; empty lines do not count."""

    def chunks(self, start: int) -> Iterator[Chunk]:
        """See [`Shard.chunks`]; earlier lines are passed over."""
        return _cut_records(self._records(start), start)

    def _records(self, start: int) -> Iterator[tuple[int, dict[str, Any] | Unread]]:
        row = 0
        try:
            with self._opened() as file:
                for line in _lines(file):
                    if line is not None and not line.strip():
                        continue
                    if row >= start:
                        yield row, self._record(line, row)
                    row += 1
        except (EOFError, OSError, pa.ArrowException) as error:  # a packing that is cut, or none
            raise self.cut_off(error) from error

    def _record(self, line: bytes | None, row: int) -> dict[str, Any] | Unread:
        try:
            if line is None:
                raise ValueError(f"a line of more than {_LONGEST_LINE:,} bytes")
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        except (ValueError, RecursionError) as error:
            return self.refuse_or_drop(row, error)
        return record

    def _opened(self) -> BinaryIO:
        if self.path.suffix == ".gz":
            return gzip.open(self.path)  # type: ignore[return-value]
        if self.path.suffix == ".zst":  # Python reads zstd itself from 3.14 on
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(self.path)), "zstd"))
        return open(self.path, "rb")


class WarcShard(FileShard):
    """A WARC file; what is no page of HTML, or broken, costs that record alone and is written down."""

    def chunks(self, start: int) -> Iterator[Chunk]:
        """See [`Shard.chunks`]; earlier records are passed over."""
        return _cut_records(self._records(start), start)

    def _records(self, start: int) -> Iterator[tuple[int, dict[str, Any] | Unread]]:
        from hf_ext.data.curation.warc import read_warc  # needs an extra

        try:
            for row, page in enumerate(read_warc(self.path)):
                reason = page.pop(DROP_REASON)
                value = _measured(page.pop(DROP_VALUE))
                threshold = _measured(page.pop(DROP_THRESHOLD))
                if row < start:
                    continue
                if reason:
                    yield (
                        row,
                        Unread(row, Drop(reason.rpartition(":")[2], value, threshold), page),
                    )
                else:
                    yield row, page
        except OSError as error:
            raise self.cut_off(error) from error


def shards_of(place: str | os.PathLike[str], drops_bad: bool) -> list[FileShard]:
    """
    The shards of a folder, of a pattern (`pages/*.jsonl.gz`), or a single one, sorted by name.

    Args:
        place (`str` or `os.PathLike`):
            The folder, looked through at any depth; hidden files are passed over.
        drops_bad (`bool`):
            Whether records that cannot be read are dropped.

    Raises:
        ValueError: if there is no such file, or none of a kind that is read.
    """
    root = Path(place)
    if root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(root))]
    elif root.is_file():
        root, paths = root.parent, [root]
    else:
        paths = [Path(path) for path in glob.glob(str(place), recursive=True) if os.path.isfile(path)]
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else root
    if not paths:
        raise ValueError(f"{place} is no file, no folder with files in it, and no pattern that matches any.")
    readable = sorted((path for path in paths if path.name.endswith(KINDS)), key=lambda path: path.as_posix())
    if not readable:
        raise ValueError(f"{place} holds no file that is read: {', '.join(KINDS)}.")
    # a name need be no UTF-8 on Linux, and the drop ledger's must be
    names = [os.fsencode(path.relative_to(root).as_posix()).decode(errors="backslashreplace") for path in readable]
    return [_shard(name, path, drops_bad) for name, path in zip(names, readable, strict=True)]


def require_same_columns(shards: Iterable[Shard]) -> None:
    """
    Refuse Parquet shards that have not the same columns, before any is worked on.

    Raises:
        ValueError: if one has others than the first; the message names both and a column.
    """
    parquet_shards = [shard for shard in shards if isinstance(shard, ParquetShard)]
    for shard in parquet_shards[1:]:
        first = parquet_shards[0].schema()
        schema = shard.schema()
        strangers = sorted({*first.names} ^ {*schema.names})
        if strangers:
            raise ValueError(
                f"shards {parquet_shards[0].name!r} and {shard.name!r} have other columns: {strangers[0]!r} is in one "
                "alone. Curate them apart, or give them the same columns."
            )


def _shard(name: str, path: Path, drops_bad: bool) -> FileShard:
    if path.name.endswith(".parquet"):
        return ParquetShard(name, path, drops_bad)
    if path.name.endswith((".warc", ".warc.gz")):
        return WarcShard(name, path, drops_bad)
    return LinesShard(name, path, drops_bad)


def _measured(value: float) -> float | None:
    return None if math.isnan(value) else value


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hash(content: bytes) -> str:
    return xxhash.xxh3_128(content).hexdigest()


def _rows_from(file: pq.ParquetFile, start: int) -> Iterator[pa.Table]:
    """Tables of a Parquet file from row `start`; row groups before it are not read."""
    if file.metadata.num_rows == 0:
        yield file.schema_arrow.empty_table()
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    ends = np.cumsum(sizes)
    first_group = int(np.searchsorted(ends, start, side="right"))
    first = int(ends[first_group - 1]) if first_group else 0
    groups = list(range(first_group, len(sizes)))
    for batch in file.iter_batches(batch_size=_READ_ROWS, row_groups=groups):
        skipped = min(max(0, start - first), len(batch))
        first += len(batch)
        if skipped < len(batch):
            yield pa.Table.from_batches([batch.slice(skipped)], file.schema_arrow)


def _cut_tables(tables: Iterable[pa.Table], start: int) -> Iterator[Chunk]:
    """Tables as chunks: one ends with the row that fills it."""
    pieces: list[pa.Table] = []
    count = num_bytes = 0
    first = start
    table: pa.Table | None = None
    for table in map(_without_views, tables):
        sizes = _row_bytes(table)
        begin = 0
        for position, size in enumerate(sizes.tolist()):
            count += 1
            num_bytes += size
            if count == CHUNK_ROWS or num_bytes >= CHUNK_BYTES:
                pieces.append(table.slice(begin, position + 1 - begin))
                yield _table_chunk(pieces, first, count)
                first += count
                begin = position + 1
                pieces, count, num_bytes = [], 0, 0
        pieces.append(table.slice(begin))
    if count or (table is not None and first == start):  # without rows the columns are still to be known
        yield _table_chunk(pieces, first, count)


def _without_views(table: pa.Table) -> pa.Table:
    """Texts and bytes that pyarrow (26.0) can take rows of, which views are not."""
    for place, field in enumerate(table.schema):
        kind = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(field.type)
        if kind is not None:
            table = table.set_column(place, field.with_type(kind), table.column(place).cast(kind))
    return table


def _table_chunk(pieces: list[pa.Table], first: int, count: int) -> Chunk:
    # pyarrow (26.0) sends a slice to another process with all that it was cut from; its stream format cuts
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pieces[0].schema) as stream:
        for piece in pieces:
            stream.write_table(piece)
    rows = pa.ipc.open_stream(sink.getvalue()).read_all()
    return Chunk(rows, list(range(first, first + count)), [], first + count)


def _row_bytes(table: pa.Table) -> np.ndarray:
    """About how many bytes each row has: those of its texts, and its share of all else."""
    sizes = np.zeros(len(table))
    for column in table.columns:
        kind = column.type
        if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        elif len(table):
            sizes += column.nbytes / len(table)
    return sizes


def _cut_records(records: Iterable[tuple[int, dict[str, Any] | Unread]], start: int) -> Iterator[Chunk]:
    """Records as chunks: one ends with the record that fills it."""
    rows: list[dict[str, Any]] = []
    row_numbers: list[int] = []
    unread: list[Unread] = []
    num_bytes = 0
    end = start
    for row, record in records:
        end = row + 1
        if isinstance(record, Unread):
            unread.append(record)
        else:
            rows.append(record)
            row_numbers.append(row)
            num_bytes += sum(len(value) for value in record.values() if isinstance(value, str | bytes))
        if len(rows) + len(unread) == CHUNK_ROWS or num_bytes >= CHUNK_BYTES:
            yield Chunk(_columns(rows), row_numbers, unread, end)
            rows, row_numbers, unread, num_bytes = [], [], [], 0
    if rows or unread:
        yield Chunk(_columns(rows), row_numbers, unread, end)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; `None` for one that is too long, whose rest is passed over."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)
        yield None
