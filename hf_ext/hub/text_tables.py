"""Rows in texts: CSV, JSON and JSON lines of any shape, and words of lines, read piece by piece."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa

__all__ = ["BATCH", "MARKED_UP", "UnreadableError", "encoding_of", "records_as_tables", "text_batches"]

BATCH = 10_000
LINE = 1 << 24  # characters of a line; longer ones are cut
MOST_CHARACTERS = 1 << 28  # characters of a JSON document that is no list of rows: it is read at once
MARKED_UP = frozenset((".html", ".htm", ".toml", ".xml", ".yaml", ".yml"))  # a row may go over several lines
WORDS = 16  # of a line of plain text
_WORD = re.compile(r"[^\w.\-/@+]+")


class UnreadableError(ValueError):
    """A file that holds rows, or may, and cannot be looked into."""


def encoding_of(head: bytes) -> str | None:
    """How a text is written; `None` for what is no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return None if b"\x00" in head else "utf-8-sig"


def text_batches(
    name: str, open_file: Callable[[], IO[bytes]], encoding: str, suffix: str
) -> tuple[Callable[[], Iterator[pa.Table]], bool]:
    """
    How to read the rows of a text: JSON in any shape that pandas writes, cells parted by a sign, or words of lines.

    Args:
        name (`str`):
            What messages call the file.
        open_file (`Callable`):
            Opens it, each time anew.
        encoding (`str`):
            From [`encoding_of`].
        suffix (`str`):
            Such as `".csv"`.

    Returns:
        A callable that yields batches of columns of texts, and whether these are the words of lines.
    """

    def opened() -> io.TextIOWrapper:
        return io.TextIOWrapper(open_file(), encoding=encoding, errors="replace", newline="")

    def lines() -> Iterator[str]:
        return _lines(opened())

    with opened() as file:
        start = file.read(1 << 16).lstrip()
    first_lines = start.splitlines()
    if start[:1] in ("{", "["):
        first = _loaded(first_lines[0])
        second = _loaded(first_lines[1]) if len(first_lines) > 1 else None
        # two lines that are JSON by themselves: JSON lines, and no document over several lines
        if isinstance(first, dict | list) and second is not None:
            return lambda: records_as_tables(_json_lines(lines())), False
        return lambda: records_as_tables(_json_rows(opened(), name)), False
    dialect = None if suffix in MARKED_UP else _dialect(first_lines, suffix)
    if dialect is not None:
        return lambda: _of_cells(csv.reader(lines(), dialect), header=True), False
    return lambda: _of_cells((_WORD.split(line)[:WORDS] for line in lines()), header=False), True


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    with file:
        while line := file.readline(LINE):
            yield line.replace("\x00", "")


def _json_lines(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        row = _loaded(line) if line.strip() else None
        if row is not None:
            yield from _rows_in(row) if _is_whole(row) else (row,)


def _is_whole(row: object) -> bool:
    """A document of one line, such as `{"id": [...], "label": [...]}`, rather than one row."""
    values = list(row.values()) if isinstance(row, dict) else []
    return bool(values) and all(isinstance(value, list | dict) and len(value) > 8 for value in values)


def _json_rows(file: io.TextIOWrapper, name: str) -> Iterator[Any]:
    """Rows of a JSON document; the entries of a list are read one by one."""
    decoder = json.JSONDecoder()
    buffer = ""
    entries = 0
    with file:
        buffer = file.read(1 << 20).lstrip()
        if buffer[:1] != "[":
            buffer += file.read(MOST_CHARACTERS)
            if file.read(1):
                raise UnreadableError(
                    f"{name}: a JSON document of more than {MOST_CHARACTERS:,} characters that is no list"
                )
            document = _loaded(buffer)
            yield from _rows_in(document) if document is not None else _rows_in_pieces(buffer, decoder)
            return
        place = 1
        while True:
            while place < len(buffer) and buffer[place] in " \t\r\n,":
                place += 1
            if buffer[place : place + 1] == "]":
                return
            try:
                entry, end = decoder.raw_decode(buffer, place)
                if end == len(buffer):  # a number at the end of what was read may have more digits
                    raise ValueError("an entry that may go on")
            except (ValueError, RecursionError):
                more = file.read(1 << 20)
                if not more or len(buffer) - place > MOST_CHARACTERS:
                    break
                buffer = buffer[place:] + more
                place = 0
                continue
            place = end
            entries += 1
            yield from _rows_in(entry) if isinstance(entry, dict) and _is_whole(entry) else (entry,)
    if not entries:
        yield from ({str(i): word for i, word in enumerate(_WORD.split(line)[:WORDS])} for line in buffer.splitlines())


def _rows_in_pieces(text: str, decoder: json.JSONDecoder) -> Iterator[Any]:
    """Several JSON documents one after another, over several lines each."""
    place = 0
    while place < len(text):
        try:
            entry, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        yield entry
        while place < len(text) and text[place].isspace():
            place += 1
    for line in text[place:].splitlines():
        yield {str(i): word for i, word in enumerate(_WORD.split(line)[:WORDS])}


def _rows_in(document: object, depth: int = 0) -> Iterator[Any]:
    """Rows of a document in any of the shapes that pandas writes: records, columns, an index, split."""
    if depth > 4:
        return
    if isinstance(document, list):
        if any(isinstance(entry, list) for entry in document[:1]) and depth:
            yield from document
            return
        for entry in document:
            yield entry if not isinstance(entry, list) else {"values": entry}
        return
    if not isinstance(document, dict):
        return
    values = list(document.values())
    lengths = {len(value) for value in values if isinstance(value, list)}
    if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
        index = document.get("index") or [None] * len(document["data"])
        for key, row in zip(index, document["data"], strict=False):
            if isinstance(row, list):
                yield {"index": key} | dict(zip(map(str, document["columns"]), row, strict=False))
            elif isinstance(row, dict):
                yield row
    elif values and len(lengths) == 1 and all(isinstance(value, list) for value in values):
        yield from (dict(zip(document, row, strict=True)) for row in zip(*values, strict=True))
    elif len(values) > 1 and all(isinstance(value, dict) for value in values):
        keys = list(dict.fromkeys(key for value in values for key in value)) if len(values) <= 64 else []
        if keys and len(keys) > len(values):  # columns, each with the rows' index inside
            yield from ({"index": key} | {name: document[name].get(key) for name in document} for key in keys)
        else:
            yield from ({"index": key} | value for key, value in document.items())
    elif len(values) > 8 and not any(isinstance(value, list | dict) for value in values):
        yield from ({"index": key, "value": value} for key, value in document.items())
    else:
        for value in values:
            if isinstance(value, list | dict) and len(value):
                yield from _rows_in(value, depth + 1)
        yield document if not depth else {}


def records_as_tables(records: Iterable[object]) -> Iterator[pa.Table]:
    """Records as columns of texts: fields of a record by path, lists as JSON."""
    iterator = iter(records)
    while part := list(islice(iterator, BATCH)):
        rows = [_flat(row) for row in part]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if names:
            yield pa.table({name: pa.array([row.get(name) for row in rows], pa.large_string()) for name in names})


def _flat(row: object, path: str = "", depth: int = 0) -> dict[str, str | None]:
    if isinstance(row, list) and not path:
        row = {str(i): value for i, value in enumerate(row[:64])}
    if isinstance(row, dict) and depth < 5:
        flat: dict[str, str | None] = {}
        for name, value in row.items():
            flat |= _flat(value, f"{path}.{name}" if path else str(name), depth + 1)
        return flat
    return {path or "value": _written(row)}


def _written(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return json.dumps(value, default=str)


def _of_cells(lines: Iterable[list[str]], header: bool) -> Iterator[pa.Table]:
    """
    Lines of cells as columns, empty cells as nulls.

    The first line gives the names and is kept as a row too: a file may lack its header.
    """
    iterator = iter(lines)
    csv.field_size_limit(LINE)
    first = next(iterator, [])
    columns = _unique(first) if header else []
    iterator = chain([first], iterator)
    while part := list(islice(iterator, BATCH)):
        width = max(map(len, part))
        names = columns + [str(i) for i in range(len(columns), width)]
        cells = [[row[i] or None if i < len(row) else None for row in part] for i in range(width)]
        if width:
            yield pa.table({name: pa.array(c, pa.large_string()) for name, c in zip(names, cells, strict=False)})


def _unique(names: list[str]) -> list[str]:
    first_places: dict[str, int] = {}
    for i, name in enumerate(names):
        first_places.setdefault(name.strip() or str(i), i)
    return [
        name.strip() or str(i) if first_places[name.strip() or str(i)] == i else f"{name} {i}"
        for i, name in enumerate(names)
    ]


def _dialect(lines: list[str], suffix: str) -> type[csv.Dialect] | None:
    """How cells are parted, where every line has as many; a name that says CSV is believed."""
    sample = [line for line in lines[:20] if line.strip()]
    for delimiter in ("\t", ",", ";", "|"):
        counts = {line.count(delimiter) for line in sample[:-1] or sample}
        if len(counts) == 1 and min(counts) > 0 and len(sample) > 1:
            return _parted_by(delimiter)
    if suffix in (".csv", ".tsv", ".tab", ".psv") and sample:
        return _parted_by(max("\t,;|", key=sample[0].count))
    return None


def _parted_by(cell_delimiter: str) -> type[csv.Dialect]:
    class Cells(csv.excel):
        delimiter = cell_delimiter
        strict = False  # a quote in the wrong place is read as it stands, and the rows behind it are looked at

    return Cells
