"""The file that dropped rows are written to: a JSON object a line, whatever the row holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hf_ext._columns import OUR_PREFIX
from hf_ext.guards.disk import append_whole, writing

PIECE_BYTES = 2**20  # lines are written together: a call of the system for each would take longer than finding them

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # made once: json.dumps makes one a call


def rank() -> int:
    """Number of this process, as the launcher says."""
    return int(os.environ.get("RANK", "0"))


def append_lines(lines: Iterable[str], bad_rows_path: str | os.PathLike[str] | None) -> None:
    """Append lines, all or none; they are whole after a kill, and two readers do not mix theirs. `DiskFullError`."""
    advice = "Its lines are whole. Free some space, or set bad_rows_path to another disk, and run again."
    with writing("the dropped rows", path := str(bad_rows_path), advice=advice):
        append_whole(path, _pieces(lines))


def _pieces(lines: Iterable[str]) -> Iterator[bytes]:
    piece = bytearray()
    for line in lines:
        piece += line.encode()
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def line_of(row_index: int, column: str, problem: str, row: Mapping[str, Any]) -> str:
    """What stands in the file for a row."""
    entry = {
        "row_index": row_index,
        "column": column,
        "problem": problem,
        "row": {name: value for name, value in row.items() if not name.startswith(OUR_PREFIX)},
    }
    try:
        return _ENCODER.encode(entry) + "\n"
    except (ValueError, TypeError):  # what JSON does not hold
        return _ENCODER.encode(_jsonable(entry)) + "\n"


def _jsonable(value: object) -> Any:
    """A value as strict JSON can hold it: arrays as lists, NaN, dates, bytes and pictures as their `repr`."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, str | bool | int | float) else repr(value)
