"""Pages out of WARC files, one row each; a broken record costs that record alone."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_ext.data.curation.steps import DROP_REASON, DROP_THRESHOLD, DROP_VALUE, Drop
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.inside import require_file

if TYPE_CHECKING:
    from fastwarc import WarcRecord

STEP_NAME = "read_warc"
HTML_TYPES = ("text/html", "application/xhtml+xml")

_GZIP_START = b"\x1f\x8b\x08"
_SEPARATOR = b"\r\n\r\n"  # follows every record; elsewhere the length that it declares is false
_BLOCK_SIZE = 1 << 20  # bytes
_MAX_HEADER = 1 << 16  # bytes


def read_warc(path: str | os.PathLike[str], *, max_page_bytes: int = 50_000_000) -> Iterator[dict[str, Any]]:
    """
    Read the pages of a WARC file, plain or gzipped, without holding more than one in memory.

    Every `response` record is a row; other records are none. A row that is no page has a `drop_reason`, which steps
    and drop ledgers understand, and no `html`: `read_warc:broken_record` (cut off, corrupt, or bytes that are no
    record), `:not_http`, `:not_html` (a content type that says so), `:too_long`. Reading goes on at the next record.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        max_page_bytes (`int`, *optional*, defaults to 50 million):
            Longest page, decompressed; a longer one is not held in memory.

    Returns:
        Rows with `id` (of the record; of a broken one the file's name and the offset in bytes), `url`, `html` (bytes
        after transfer and content encodings), `charset` and `content_language` of the HTTP header, `date` (of the
        record), all strings or null but `html`, and `drop_reason` (empty for a page), `drop_value`, `drop_threshold`.

    Raises:
        MissingExtraError: if fastwarc is not installed.
        OSError: if the file is missing or cannot be read.
        ValueError: if it is no file.
    """
    with naming_extras():
        import fastwarc  # noqa: F401
    with open(require_file(path), "rb") as file:
        yield from _Reader(file, Path(path).name, max_page_bytes).rows()


class _Reader:
    """One pass over a file, with what is needed to go on after a broken record."""

    def __init__(self, file: BinaryIO, file_name: str, max_page_bytes: int) -> None:
        self.file = file
        self.file_name = file_name
        self.max_page_bytes = max_page_bytes
        self.is_gzip = file.read(len(_GZIP_START)) == _GZIP_START
        self.file_size = file.seek(0, os.SEEK_END)

    def rows(self) -> Iterator[dict[str, Any]]:
        start: int | None = 0 if self.file_size else None
        while start is not None:
            start = yield from self._rows_from(start)

    def _rows_from(self, start: int) -> Generator[dict[str, Any], None, int | None]:
        """Rows from an offset on, up to a break; returns where to go on, if anywhere."""
        from fastwarc import ArchiveIterator, WarcRecordType

        self.file.seek(start)
        # a row is held back until the reader has passed the record's end: only there does a checksum fail
        row: dict[str, Any] | None = None
        offset: int | None = None  # of the last record
        try:
            for record in ArchiveIterator(self.file):
                if row is not None:
                    yield row
                offset = record.stream_pos
                row = self._row_of(record, offset) if record.record_type == WarcRecordType.response else None
            is_broken = False
        # the reader raises OSError, and panics, which are no Exception, on bytes that it did not foresee
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit):
                raise
            is_broken = True
        end = start if offset is None else self._end_of_record(offset)
        if end is None:
            assert offset is not None
            facts = {name: row[name] for name in ("id", "url", "date")} if row else {}
            yield self._dropped(Drop("broken_record"), offset, **facts)
            # the length that it declares may be wrong, so the next one is looked for from its start on
            return self._next_record(offset + 1)
        if row is not None:
            yield row
        if is_broken or end < self.file_size:
            yield self._dropped(Drop("broken_record"), end)
            return self._next_record(end + 1)
        return None

    def _row_of(self, record: WarcRecord, offset: int) -> dict[str, Any]:
        """The row of a `response` record, as far as it can be read."""
        headers = record.headers
        facts: dict[str, str | None] = {
            "id": (record.record_id or "").strip("<>") or f"{self.file_name}:{offset}",
            "url": headers.get("WARC-Target-URI"),
            "date": headers.get("WARC-Date"),
        }
        if not record.is_http_parsed or record.http_headers.status_code is None:
            return self._dropped(Drop("not_http"), offset, **facts)
        content_type = (record.http_content_type or "").strip().lower()
        if content_type and content_type not in HTML_TYPES:
            return self._dropped(Drop("not_html"), offset, **facts)
        declared_size = record.content_length
        page = record.reader.read(self.max_page_bytes + 1)
        if len(page) <= self.max_page_bytes:
            if len(page) < declared_size:
                return self._dropped(Drop("broken_record"), offset, **facts)
            page = _decoded(page, record, self.max_page_bytes + 1)
        if len(page) > self.max_page_bytes:
            size = max(float(declared_size), float(len(page)))
            return self._dropped(Drop("too_long", size, float(self.max_page_bytes)), offset, **facts)
        row: dict[str, Any] = _blank_row() | facts
        row["html"] = page
        row["charset"] = record.http_charset
        row["content_language"] = record.http_headers.get("Content-Language")
        return row

    def _dropped(self, drop: Drop, offset: int, **facts: str | None) -> dict[str, Any]:
        row = _blank_row() | {"id": f"{self.file_name}:{offset}"} | facts
        row[DROP_REASON] = f"{STEP_NAME}:{drop.rule}"
        if drop.value is not None and drop.threshold is not None:
            row |= {DROP_VALUE: drop.value, DROP_THRESHOLD: drop.threshold}
        return row

    def _end_of_record(self, offset: int) -> int | None:
        """Where the record at an offset ends; `None` where it is not whole, or not as long as it declares."""
        self.file.seek(offset)
        if self.is_gzip:
            return self._end_of_member(offset)
        end = offset + _record_size(self.file.read(_MAX_HEADER))
        if end > self.file_size:
            return None
        self.file.seek(end)
        separator = self.file.read(len(_SEPARATOR))
        return end + len(separator) if _SEPARATOR.startswith(separator) else None

    def _end_of_member(self, offset: int) -> int | None:
        """Where the gzip member that holds the record at an offset ends, as in [`_end_of_record`]."""
        if self.file.read(len(_GZIP_START)) != _GZIP_START:
            return self.file_size  # one gzip member holds many records, so the offset is that of none
        self.file.seek(offset)
        decompressor = zlib.decompressobj(wbits=31)
        record_size = 0
        separator = b""
        size = 0
        while not decompressor.eof:
            compressed = decompressor.unconsumed_tail or self.file.read(_BLOCK_SIZE)
            try:
                data = decompressor.decompress(compressed, _BLOCK_SIZE)
            except zlib.error:
                return None
            if not (data or compressed):
                return None
            if size == 0:
                record_size = _record_size(data)
            if size + len(data) > record_size:
                separator += data[max(record_size - size, 0) :][: len(_SEPARATOR)]
            size += len(data)
        is_whole = size >= record_size and _SEPARATOR.startswith(separator[: len(_SEPARATOR)])
        return self.file.tell() - len(decompressor.unused_data) if is_whole else None

    def _next_record(self, offset: int) -> int | None:
        """Where the first record at or after an offset starts."""
        from fastwarc import ArchiveIterator

        pattern = re.compile(re.escape(_GZIP_START) if self.is_gzip else rb"WARC/1\.\d\r?\n")
        while offset < self.file_size:
            self.file.seek(offset)
            block = self.file.read(_BLOCK_SIZE)
            match = pattern.search(block)
            if match is None:
                offset += max(len(block) - 16, 1)  # a start may lie across two blocks
                continue
            candidate = offset + match.start()
            self.file.seek(candidate)
            try:
                next(ArchiveIterator(self.file, parse_http=False))
            except (OSError, StopIteration):
                offset = candidate + 1
                continue
            return candidate
        return None


def _blank_row() -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("id", "url", "html", "charset", "content_language", "date"))
    return row | {DROP_REASON: "", DROP_VALUE: math.nan, DROP_THRESHOLD: math.nan}


def _record_size(head: bytes) -> int:
    """Bytes of a record, from its beginning: its header and the content that the header declares."""
    header, separator, _ = head.partition(b"\r\n\r\n")
    if not separator:
        return sys.maxsize
    match = re.search(rb"(?im)^content-length:\s*(\d{1,18})", header)
    return len(header) + len(separator) + (int(match[1]) if match else 0)


def _decoded(page: bytes, record: WarcRecord, limit: int) -> bytes:
    """A page after its transfer and content encodings; as it is where it is not encoded as its header says."""
    from fastwarc import ArchiveIterator

    if "Content-Encoding" not in record.http_headers and "Transfer-Encoding" not in record.http_headers:
        return page
    block = io.BytesIO()
    record.http_headers.write(block)
    block.write(page)
    start = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
    length = f"Content-Length: {len(block.getvalue())}\r\n\r\n".encode()
    try:
        decoded = next(ArchiveIterator(io.BytesIO(start + length + block.getvalue()), auto_decode="all"))
        return decoded.reader.read(limit)
    except OSError:  # crawlers store pages decoded and leave the header
        return page
