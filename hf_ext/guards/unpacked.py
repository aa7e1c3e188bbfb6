"""
How much a packed file holds: counted before, or while, it is unpacked.

A few kilobytes may unpack to gigabytes: a Parquet file whose rows all point at one long text, zeros in gzip or zip.
Rows and texts are packed 3 to 30 times; beyond [`MOST_TIMES`] a file is refused by its name.
"""

from __future__ import annotations

import lzma
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ext.guards.inside import require_file
from hf_ext.guards.parquet_pages import NoPageError, unpacked_bytes

MOST_TIMES = 200
"""So many times its own size a file may unpack to ..."""

SMALL = 256 * 2**20
"""... and so many bytes it always may."""

MOST_DEPTH = 1000
"""Brackets of JSON inside one another."""

BATCH_ROWS = 8192


class TextBatch(NamedTuple):
    """Rows of a Parquet file: their texts by column, and how many bytes these have."""

    columns: dict[str, list[str | None]]
    num_bytes: int


def most_unpacked(path: str | os.PathLike[str]) -> int:
    """Bytes that a file may unpack to."""
    return max(SMALL, MOST_TIMES * Path(path).stat().st_size)


def refuse_unpacked(path: str | os.PathLike[str]) -> NoReturn:
    """
    Refuse a file that is packed too tightly.

    Raises:
        ValueError: always; the message names the file.
    """
    size = Path(path).stat().st_size
    raise ValueError(
        f"{path} has {size:,} bytes and unpacks to more than {most_unpacked(path):,}: it was not read, for it would "
        "fill the memory or the disk. If it is your own, write its rows out unpacked."
    )


def text_batches(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[TextBatch]:
    """
    Columns of texts of a Parquet file, a batch of rows at a time.

    Columns are read as dictionaries, so a text that many rows share is in memory once; how long they would be as
    plain texts is counted from their lengths alone.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        names (`Sequence[str]`):
            Columns to read.

    Raises:
        ValueError: if it is no Parquet file, is damaged or packed too tightly, or lacks a column or text in one.
    """
    path = require_file(path)
    size = 0
    most = most_unpacked(path)
    try:
        with pq.ParquetFile(path) as file:
            _require_texts(path, file.schema_arrow, names)
            if unpacked_bytes(path, file.metadata) > most:  # before a page of it is decompressed
                refuse_unpacked(path)
        with pq.ParquetFile(path, read_dictionary=list(names)) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(names)):
                num_bytes = sum(_text_bytes(batch.column(name)) for name in names)
                size += num_bytes
                if size > most:
                    refuse_unpacked(path)
                yield TextBatch({name: _texts(batch.column(name)) for name in names}, num_bytes)
    except (pa.ArrowException, NoPageError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}.") from error


def require_modest(path: str | os.PathLike[str]) -> None:
    """
    Refuse a file of rows that unpacks to more than [`most_unpacked`], whatever its name says it is.

    Damaged files pass: their reader says what is wrong with them. So do packings that `datasets` does not unpack.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is no file or packed too tightly.
    """
    path = require_file(path)
    with path.open("rb") as file:
        head = file.read(8)
    try:
        if head.startswith(b"PAR1"):
            size = _parquet_bytes(path)
        elif head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:  # a reader stops where the directory says a member ends
                size = sum(member.file_size for member in archive.infolist())
        else:
            size = _stream_bytes(path, head)
    except (pa.ArrowException, NoPageError, zipfile.BadZipFile, lzma.LZMAError, EOFError, OSError):
        return
    if size > most_unpacked(path):
        refuse_unpacked(path)


_STREAMS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_XZ = b"\xfd7zXZ"
_STEP = 2**20
_STRING = re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))


def _is_packed(head: bytes) -> bool:
    return head.startswith((*_STREAMS, _XZ))


def _opened(path: Path, head: bytes) -> Any:
    """The bytes of a file, unpacked where it is packed."""
    kind = next((kind for mark, kind in _STREAMS.items() if head.startswith(mark)), None)
    if head.startswith(_XZ):
        return lzma.open(path)
    return path.open("rb") if kind is None else pa.CompressedInputStream(pa.OSFile(str(path)), kind)


def require_shallow(path: str | os.PathLike[str]) -> None:
    """
    Refuse a file of JSON that is nested so deeply that Arrow's parser (26.0: about 10,000) overruns the stack.

    Raises:
        ValueError: if it is nested deeper than [`MOST_DEPTH`].
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(8)
    depth = 0
    rest = b""
    try:
        with _opened(path, head) as stream:
            while content := stream.read(16 * _STEP):
                # No string of JSON goes over the end of a line: what is left of a line is read with the next piece.
                lines, end, rest = (rest + content).rpartition(b"\n")
                steps = _depths(lines + end)
                if len(steps) and depth + steps.max() > MOST_DEPTH:
                    break
                depth += int(steps[-1]) if len(steps) else 0
            steps = _depths(rest) if not content else steps
    except (pa.ArrowException, lzma.LZMAError, EOFError, OSError):
        return
    if len(steps) and depth + steps.max() > MOST_DEPTH:
        raise ValueError(f"{path} is nested deeper than {MOST_DEPTH:,} levels: it was not read. No row needs that.")


def _depths(content: bytes) -> np.ndarray:
    """How deep JSON is nested after each of its brackets, those in strings left out."""
    # escaped quotes go first, for they end no string; then the strings, with the brackets in them
    content = content.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACKETS)
    brackets = np.frombuffer(_STRING.sub(b"", content), np.uint8)
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return np.cumsum(np.where(opening, 1, -1), dtype=np.int64)


def _stream_bytes(path: Path, head: bytes) -> int:
    """Bytes of a packed stream, counted up to the limit and a little more; 0 for what is not packed."""
    if not _is_packed(head):
        return 0
    size = 0
    most = most_unpacked(path)
    with _opened(path, head) as stream:
        while size <= most and (content := stream.read(_STEP)):
            size += len(content)
    return size


def _parquet_bytes(path: Path) -> int:
    """Bytes of the pages, and where rows may share long texts those of the texts as rows have them."""
    most = most_unpacked(path)
    with pq.ParquetFile(path) as file:
        size = unpacked_bytes(path, file.metadata)
        names = {name: most_texts for name, most_texts in _shared_texts(file.metadata).items() if most_texts > most}
    if size > most or not names:
        return size
    # only columns whose bound is too high are counted exactly, without spreading their dictionaries
    with pq.ParquetFile(path, read_dictionary=list(names)) as file:
        texts = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(names)):
            texts += sum(_text_bytes(column) for column in batch.columns)
            if texts > most:
                break
    return max(size, texts)


def _shared_texts(metadata: pq.FileMetaData) -> dict[str, int]:
    """Columns of texts that point into a dictionary, and the most bytes they could have: each row the longest text."""
    most: dict[str, int] = {}
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page:
                most[chunk.path_in_schema] = most.get(chunk.path_in_schema, 0) + (
                    chunk.num_values * chunk.total_uncompressed_size
                )
    return most


def _require_texts(path: str | os.PathLike[str], schema: pa.Schema, names: Sequence[str]) -> None:
    for name in names:
        if schema.names.count(name) != 1:
            raise ValueError(f"{path} has no column {name!r}, or several; it has {schema.names[:20]}.")
        if not _is_text(schema.field(name).type):
            raise ValueError(f"{path}, column {name!r}: expected texts, found {schema.field(name).type}.")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _text_bytes(column: pa.Array) -> int:
    """Bytes of the texts, each as often as rows point at it; inside lists and structs too."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        # 64 bits, for the sum of 32-bit lengths may overflow
        lengths = pc.cast(pc.binary_length(column.dictionary), pa.int64())
        return pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(_text_bytes(field) for field in column.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _text_bytes(column.flatten())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    return 0


def _texts(column: pa.Array) -> list[str | None]:
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    words = column.dictionary.to_pylist()
    return [None if place is None else words[place] for place in column.indices.to_pylist()]


def npz_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """
    The arrays of a `.npz` file, none of them a pickle.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is no such file, is damaged or packed too tightly, or holds objects.
    """
    require_modest(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            return {name: _npy_array(archive, member) for name, member in members.items()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no file of arrays that can be read: {error}.") from error


def _npy_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header may claim no more numbers than there are bytes: numpy makes room for them first."""
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} holds objects, or claims more than its {member.file_size:,} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
