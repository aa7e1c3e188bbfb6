"""
How much a packed file holds: counted before, or while, it is unpacked.

A few kilobytes may unpack to gigabytes: a Parquet file whose rows all point at one long text, zeros in gzip or zip.
Rows and texts are packed 3 to 30 times; beyond [`MOST_TIMES`] a file is refused by its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ext.guards._pages import NoPageError, unpacked_bytes
from hf_ext.guards.inside import require_file

MOST_TIMES = 200
"""So many times its own size a file may unpack to ..."""

SMALL = 256 * 2**20
"""... and so many bytes it always may."""

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
        ValueError: always; it names the file.
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
        ValueError: it is no Parquet file, damaged, lacks a column, has one that is no text, or is packed too tightly.
    """
    path, size = require_file(path), 0
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
    """Bytes of the texts, each as often as rows point at it."""
    if pa.types.is_null(column.type):
        return 0
    if not pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    lengths = pc.cast(pc.binary_length(column.dictionary), pa.int64())
    return pc.sum(pc.take(lengths, column.indices)).as_py() or 0


def _texts(column: pa.Array) -> list[str | None]:
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    words = column.dictionary.to_pylist()
    return [None if place is None else words[place] for place in column.indices.to_pylist()]
