"""Rows in files of any kind that a reader could open: batches of Arrow columns, never a whole file at once."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from hf_ext.data.relabeling.views import SHORT_BYTES
from hf_ext.guards.row_text import shorten
from hf_ext.hub.text_tables import BATCH, UnreadableError, encoding_of, records_as_tables, text_batches

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from datasets import Dataset, Features

__all__ = ["RowTable", "UnreadableError", "read_batches", "table_of_rows", "tables_in"]

MEMBER = 1 << 31  # bytes of a member of an archive
DEPTH = 3  # of archives inside archives
MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
PACKED = frozenset((".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".br"))
# Formats that hold rows, of which this machine may lack the reader.
ROWS_OF_OTHERS = frozenset(
    (".7z", ".accdb", ".avro", ".dat", ".db", ".dbf", ".dta", ".duckdb", ".h5", ".hdf", ".hdf5", ".lance", ".mat")
).union(
    (".mdb", ".numbers", ".ods", ".orc", ".rar", ".rda", ".rdata", ".rds", ".sas7bdat", ".sav", ".tsfile", ".vortex"),
    (".xls", ".xlsb", ".xlsm", ".xlsx"),
)
# Whatever a damaged file provokes in the libraries that read it.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, MemoryError, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError, sqlite3.Error, pa.ArrowException),
)


@dataclass(frozen=True)
class RowTable:
    """
    Rows of a file, of a part of one, or of a split.

    Args:
        name (`str`):
            What a message calls them.
        batches (`Callable[[], Iterator[pyarrow.Table]]`):
            Reads them, each time anew.
        features (`datasets.Features`, *optional*):
            Of rows that `datasets` wrote.
        columns (`Sequence[str]`, *optional*):
            Their names, where a schema says them before anything is read.
        is_text (`bool`, *optional*, defaults to `False`):
            Whether the columns are the words of lines, which may be prose.
    """

    name: str
    batches: Callable[[], Iterator[pa.Table]]
    features: Features | None = None
    columns: Sequence[str] | None = None
    is_text: bool = False


def table_of_rows(name: str, rows: Dataset) -> RowTable:
    """A split, without pictures and sound."""
    columns = [column for column, feature in rows.features.items() if not hasattr(feature, "decode")]
    stored = rows.select_columns(columns).with_format("arrow")
    return RowTable(name, lambda: iter(stored.iter(batch_size=BATCH)), rows.features, rows.column_names)


def read_batches(table: RowTable) -> Iterator[pa.Table]:
    """
    Batches of a table, with the fields of structs as columns.

    Raises:
        UnreadableError: if the file is damaged.
    """
    from hf_ext.data.relabeling.privatize import flattened

    try:
        for batch in table.batches():
            if len(batch):
                parts = [part for name in batch.column_names for part in flattened(name, batch.column(name))]
                yield pa.table(dict(parts)) if parts else batch
    except DAMAGE as error:
        raise UnreadableError(f"{table.name}: {shorten(str(error))}") from error


def tables_in(name: str, path: Path) -> list[RowTable]:
    """
    Tables of a file, found by what is in it rather than by what it is called.

    Args:
        name (`str`):
            What messages call the file.
        path (`Path`):
            The file.

    Returns:
        `list[RowTable]`: none for a picture, weights or an empty file.

    Raises:
        UnreadableError: if the file is damaged or encrypted, or its format holds rows and nothing here reads it.
    """
    return _tables(name, lambda: path.open("rb"), path, 0)


def _tables(name: str, open_file: Callable[[], IO[bytes]], path: Path | None, depth: int) -> list[RowTable]:
    with open_file() as file:
        head = file.read(4096)
    try:
        return _tables_by_head(name, open_file, path, head, depth)
    except UnreadableError:
        raise
    except DAMAGE as error:
        raise UnreadableError(f"{name}: {shorten(str(error))}") from error


def _tables_by_head(
    name: str, open_file: Callable[[], IO[bytes]], path: Path | None, head: bytes, depth: int
) -> list[RowTable]:
    suffix = next((end for end in reversed(Path(name).suffixes) if end.lower() not in PACKED), "").lower()
    packed = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    packed = "brotli" if name.lower().endswith(".br") and depth == 0 else packed
    if depth > DEPTH:
        raise UnreadableError(f"{name}: archives inside archives, {DEPTH} deep")
    if packed is not None:
        return _tables(name, lambda: _unpacked(open_file, str(packed)), None, depth + 1)
    if head.startswith(b"PK\x03\x04") and suffix not in ROWS_OF_OTHERS:
        return [table for member in _zip_members(name, open_file) for table in _tables(*member, None, depth + 1)]
    # 257: where tar has its mark, behind the name and facts of the first member
    if head[257:262] == b"ustar" or suffix == ".tar":
        return [table for member in _tar_members(name, open_file) for table in _tables(*member, None, depth + 1)]
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return [_parquet(name, _seekable(open_file, path))]
    if head.startswith(b"ARROW1") or head.startswith(b"\xff\xff\xff\xff") or suffix == ".arrow":
        return [_arrow(name, _seekable(open_file, path), head)]
    if head.startswith(b"SQLite format 3\x00"):
        return _sqlite(name, _seekable(open_file, path))
    if head.startswith(b"\x93NUMPY"):
        return [RowTable(name, lambda: _numpy(_seekable(open_file, path)))]
    if head.startswith(b"ORC"):
        return [RowTable(name, lambda: _orc(_seekable(open_file, path)))]
    if suffix in ROWS_OF_OTHERS or head.startswith((b"FEA1", b"Obj\x01", b"\x89HDF", b"7z\xbc\xaf", b"Rar!")):
        raise UnreadableError(f"{name}: nothing here reads {suffix or 'such'} files")
    encoding = encoding_of(head)
    if encoding is None or not head.strip():
        return []
    batches, is_text = text_batches(name, open_file, encoding, suffix)
    return [RowTable(name, batches, is_text=is_text)]


def _unpacked(open_file: Callable[[], IO[bytes]], kind: str) -> IO[bytes]:
    if kind == "gzip":
        return gzip.open(open_file())  # type: ignore[return-value]
    if kind == "bz2":
        return bz2.open(open_file())
    if kind == "xz":
        return lzma.open(open_file())
    return io.BufferedReader(_ArrowReader(pa.CompressedInputStream(pa.PythonFile(open_file(), "rb"), kind)))


class _ArrowReader(io.RawIOBase):
    """A stream of pyarrow's as a raw file of Python's, which `io` can buffer and decode."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _seekable(open_file: Callable[[], IO[bytes]], path: Path | None) -> Path | io.BytesIO:
    if path is not None:
        return path
    with open_file() as file:
        content = file.read(MEMBER + 1)
    if len(content) > MEMBER:
        raise UnreadableError(f"more than {MEMBER:,} bytes inside an archive")
    return io.BytesIO(content)


def _zip_members(name: str, open_file: Callable[[], IO[bytes]]) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    def read(member: zipfile.ZipInfo) -> IO[bytes]:
        return zipfile.ZipFile(open_file()).open(member)

    with zipfile.ZipFile(open_file()) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    if any(member.flag_bits & 1 for member in members):
        raise UnreadableError(f"{name}: it is encrypted")
    for member in members:
        yield f"{name}/{member.filename}", partial(read, member)


def _tar_members(name: str, open_file: Callable[[], IO[bytes]]) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    def read(member: str) -> IO[bytes]:
        with tarfile.open(fileobj=open_file()) as archive:
            content = archive.extractfile(member)
            return io.BytesIO(b"" if content is None else content.read(MEMBER))

    with tarfile.open(fileobj=open_file()) as archive:
        names = [member.name for member in archive if member.isfile()]
    for member in names:
        yield f"{name}/{member}", partial(read, member)


def _parquet(name: str, source: Path | io.BytesIO) -> RowTable:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    columns = _without_pictures(file)

    def batches() -> Iterator[pa.Table]:
        for batch in pq.ParquetFile(source).iter_batches(BATCH, columns=columns):
            yield pa.Table.from_batches([batch])

    return RowTable(name, batches, _features(file.schema_arrow), file.schema_arrow.names)


def _without_pictures(file: pq.ParquetFile) -> list[str]:
    """Columns and fields, but those whose bytes are long on average: thousands of pictures at once fill the memory."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = []
    for i in range(len(file.schema)):
        column = file.schema.column(i)
        size = sum(group.column(i).total_uncompressed_size for group in groups)
        values = sum(group.column(i).num_values for group in groups)
        is_bytes = column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE"
        if not (is_bytes and size > 2 * SHORT_BYTES * values):
            columns.append(column.path)
    return columns


def _arrow(name: str, source: Path | io.BytesIO, head: bytes) -> RowTable:
    kind = pa.ipc.open_file if head.startswith(b"ARROW1") else pa.ipc.open_stream

    def opened() -> Any:
        return kind(pa.memory_map(str(source)) if isinstance(source, Path) else pa.BufferReader(source.getvalue()))

    def batches() -> Iterator[pa.Table]:
        reader = opened()
        parts = (reader.get_batch(i) for i in range(reader.num_record_batches)) if kind is pa.ipc.open_file else reader
        for batch in parts:
            yield from _slices(pa.Table.from_batches([batch]))

    schema = opened().schema
    return RowTable(name, batches, _features(schema), schema.names)


def _features(schema: pa.Schema) -> Features | None:
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema)
    except Exception:  # types that datasets does not know
        return None


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(table), BATCH):
        yield table.slice(start, BATCH)


def _sqlite(name: str, source: Path | io.BytesIO) -> list[RowTable]:
    def connect() -> sqlite3.Connection:
        if isinstance(source, Path):
            # immutable: no lock and no journal is made beside a file that is only read
            return sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        connection = sqlite3.connect(":memory:")
        connection.deserialize(source.getvalue())
        return connection

    def batches(table: str) -> Iterator[pa.Table]:
        quoted = table.replace('"', '""')
        with closing(connect()) as connection:
            cursor = connection.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608 - a table of this very file, quoted
            columns = [column[0] for column in cursor.description]
            rows = (dict(zip(columns, row, strict=True)) for row in cursor)
            yield from records_as_tables(rows)

    with closing(connect()) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    return [RowTable(f"{name}/{table}", partial(batches, table)) for (table,) in names]


def _numpy(source: Path | io.BytesIO) -> Iterator[pa.Table]:
    import numpy as np

    # never a pickle: an array of objects is refused as damaged
    array = np.load(source, allow_pickle=False, mmap_mode="r" if isinstance(source, Path) else None)
    if array.dtype.names:
        yield from _slices(pa.table({name: array[name].tolist() for name in array.dtype.names}))
    elif array.ndim == 1:
        for start in range(0, len(array), BATCH):
            yield pa.table({"value": array[start : start + BATCH].tolist()})
    elif array.ndim == 2:
        for start in range(0, len(array), BATCH):
            yield pa.table({"values": array[start : start + BATCH].tolist()})


def _orc(source: Path | io.BytesIO) -> Iterator[pa.Table]:
    from pyarrow import orc

    file = orc.ORCFile(source)
    for stripe in range(file.nstripes):
        yield from _slices(pa.Table.from_batches([file.read_stripe(stripe)]))
