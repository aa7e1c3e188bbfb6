"""How large the pages of a Parquet file are, from the headers of the pages themselves: a footer may say anything."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow.parquet as pq

HEADER_BYTES = (4096, 16 * 2**20)  # statistics in it may be as long as a value; Arrow reads no more than the second
MOST_PAGES = 1_000_000
_UNCOMPRESSED, _COMPRESSED = 2, 3  # numbers of the fields of a `PageHeader` in parquet.thrift


class _Header(NamedTuple):
    end: int
    unpacked: int
    packed: int


class NoPageError(ValueError):
    """Where a page should be there is none."""


def unpacked_bytes(path: Path, metadata: pq.FileMetaData) -> int:
    """
    Bytes of all pages once they are decompressed, dictionaries not yet spread to rows.

    Raises:
        NoPageError: if a chunk lies outside of the file, or holds something else.
    """
    total = pages = 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(number)
                starts = [chunk.data_page_offset]
                if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                    starts.append(chunk.dictionary_page_offset)
                place = min(starts)
                end = place + chunk.total_compressed_size
                if not 0 <= place <= end <= size:
                    raise NoPageError("a column lies outside of the file")
                while place < end:
                    header = _page_header(file, place, end)
                    total += header.unpacked
                    pages += 1
                    if pages > MOST_PAGES:
                        raise NoPageError(f"more than {MOST_PAGES:,} pages")
                    place += header.end + header.packed
    return total


def _page_header(file: BinaryIO, place: int, end: int) -> _Header:
    # most headers are short: more is read only where that was not enough
    for most in HEADER_BYTES:
        file.seek(place)
        content = file.read(min(most, end - place))
        sizes: dict[int, int] = {}
        try:
            header = _Header(_struct(content, 0, sizes, 0), sizes[_UNCOMPRESSED], sizes[_COMPRESSED])
        except (IndexError, KeyError):
            continue
        if header.end <= len(content) and header.unpacked >= 0 and header.packed >= 0:
            return header
    raise NoPageError("a page without a whole header")


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        shift += 7
        place += 1
        if byte < 0x80:
            return value, place
        # without a bound, bytes of 0xFF would be read to the end of the file
        if shift > 63:
            raise NoPageError("a number of more than 64 bits")


def _struct(content: bytes, place: int, integers: dict[int, int], depth: int) -> int:
    """Thrift's compact protocol: the end of a struct; its own integers by the number of the field."""
    field = 0
    while content[place] != 0:
        head = content[place]
        place += 1
        # the upper four bits are the step from the last field's number; 0 means that the number follows
        if head >> 4:
            field += head >> 4
        else:
            number, place = _varint(content, place)
            # zigzag: the lowest bit is the sign
            field = (number >> 1) ^ -(number & 1)
        kind = head & 0x0F
        # integers of 16, 32 and 64 bits, all written as varints
        if kind in (4, 5, 6):
            number, place = _varint(content, place)
            integers[field] = (number >> 1) ^ -(number & 1)
        elif kind not in (1, 2):  # booleans have no bytes of their own
            place = _value(content, place, kind, depth)
    return place + 1


def _value(content: bytes, place: int, kind: int, depth: int) -> int:
    """The end of a value that is left out."""
    if depth > 8:
        raise NoPageError("a header nested too deeply")
    if kind in (1, 2, 3):  # inside lists a boolean is a byte
        return place + 1
    if kind in (4, 5, 6):
        return _varint(content, place)[1]
    # a double
    if kind == 7:
        return place + 8
    # bytes or a text
    if kind == 8:
        length, place = _varint(content, place)
        return place + length
    # a list or a set: its length, or 15 where that follows, and the kind of its entries
    if kind in (9, 10):
        count, inner = content[place] >> 4, content[place] & 0x0F
        place += 1
        if count == 15:
            count, place = _varint(content, place)
        for _ in range(min(count, len(content))):
            place = _value(content, place, inner, depth + 1)
        return place
    if kind == 12:
        return _struct(content, place, {}, depth + 1)
    raise NoPageError("a header of an unknown form")
