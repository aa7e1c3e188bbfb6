"""A row and its values as an error shows them: on one line, shortened, recognisable. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_ext._columns import ROW_INDEX

EXCERPT_LENGTH = 80  # characters


def shorten(value: object, length: int = EXCERPT_LENGTH) -> str:
    """`repr(value)` on one line, at most `length` characters; what was cut is marked by `...` before its last one."""
    if isinstance(value, (str, bytes, list)):  # a union would be made anew for each of a million rows
        value = value[: length + 1]  # a row may hold megabytes; only its beginning is shown
    text = repr(value)
    return text if len(text) <= length else text[: length - 4] + "..." + text[-1]


def describe(value: object) -> str:
    """Name a value for an error message: `None`, `an empty string`, `int 7`."""
    if value is None:
        return "None"
    if isinstance(value, (str, list, dict)) and not value:
        return f"an empty {'string' if isinstance(value, str) else type(value).__name__}"
    return f"{type(value).__name__} {shorten(value, 40)}"


def plain(value: object) -> Any:
    """Arrays and tensors (rows of a formatted stream) as Python lists and numbers; anything else as it is."""
    if isinstance(value, (str, list, dict)):  # most values by far, and a failed `hasattr` takes three times as long
        return value
    return value.tolist() if hasattr(value, "tolist") else value


def excerpt_of(row: Mapping[str, Any], column: str, text_field: str) -> str:
    """`column: 'beginning of its content'`, from a column that shows a reader which row is meant.

    The defective column comes last, because there the content is often what is missing.
    """
    preferred = ["prompt", text_field, "messages", "conversations", "completion"]
    others = [name for name in row if name not in preferred and name not in (ROW_INDEX, "weight")]
    names = [name for name in (*preferred, *others) if name in row and name != column]
    for name in (*names, column):
        text = _first_string(row.get(name))
        if text:
            return f"{name}: {shorten(text)}"
    for name in ("input_ids", column):
        if name in row:
            return f"{name}: {shorten(plain(row[name]))}"
    return f"row: {shorten(dict(row))}"


def _first_string(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return next((text for text in map(_first_string, value) if text), None)
    if isinstance(value, dict):
        return next((text for key in ("content", "value", "text") if (text := _first_string(value.get(key)))), None)
    return None
