"""What can be read off a column besides its values: fields of structs and of JSON, the likeliest class of a list."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any

import numpy as np

from hf_ext.guards.row_text import plain

DEPTH = 4  # of structs inside lists inside JSON inside a column
FIELDS = 64  # of a struct
ELEMENTS = 32  # of a list that are looked at one by one; of longer ones only the largest number's place
SHORT_BYTES = 64  # longer ones are pictures or sound: features
MOST = 0.5  # share of the values that must be of a kind
_PAIR = re.compile(r"""["']?([A-Za-z_]\w*)["']?\s*[=:]\s*["']?([\w.+-]+)""")  # label=3, 'label': 'spam'
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{4,}={0,2}")


def views(path: str, values: Sequence[Any], depth: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """
    A column, and what a reader gets out of it by looking inside.

    Args:
        path (`str`):
            The column's name.
        values (`Sequence`):
            Its values, `n` of them; `None` where a row has none.

    Yields:
        Pairs of a path, such as `meta.intent`, `probs[2]` or `argmax of probs`, and `n` values: numbers, texts, bytes,
        lists of these, or `None`.
    """
    plain_values = [plain(value) for value in values]
    filled = [value for value in plain_values if value is not None]
    if not filled:
        return
    if _mostly(filled, dict):
        yield from _fields(path, plain_values, depth)
        return
    yield path, plain_values
    if depth >= DEPTH:
        return
    if _mostly(filled, bytes):
        if max(len(value) for value in filled if isinstance(value, bytes)) <= SHORT_BYTES:
            yield from views(path, [_text_of(value) for value in plain_values], depth + 1)
    elif _mostly(filled, str):
        yield from _inside_texts(path, plain_values, filled, depth)
    elif _mostly(filled, list | tuple):
        yield from _inside_lists(path, plain_values, depth)


def _mostly(filled: list[Any], kind: type | UnionType) -> bool:
    return sum(isinstance(value, kind) for value in filled) > MOST * len(filled)


def _fields(path: str, values: list[Any], depth: int) -> Iterator[tuple[str, list[Any]]]:
    rows = [value if isinstance(value, dict) else {} for value in values]
    names = list(dict.fromkeys(name for row in rows[:1000] for name in row))[:FIELDS]
    numeric = [row for row in rows if len(row) > 1 and all(_is_number(entry) for entry in row.values())]
    if len(numeric) > MOST * len(rows):  # such as {"spam": 0.9, "ham": 0.1}
        scored = [row if len(row) > 1 and all(_is_number(x) for x in row.values()) else {} for row in rows]
        yield f"argmax of {path}", [max(row, key=row.__getitem__) if row else None for row in scored]
    if depth < DEPTH:
        for name in names:
            yield from views(f"{path}.{name}", [row.get(name) for row in rows], depth + 1)


def _inside_texts(path: str, values: list[Any], filled: list[Any], depth: int) -> Iterator[tuple[str, list[Any]]]:
    parsed = [_json_of(value) for value in values]
    if sum(value is not None for value in parsed) > MOST * len(filled):
        yield from views(path, parsed, depth + 1)
        return
    pairs = [dict(_PAIR.findall(value)) if isinstance(value, str) and len(value) < 2000 else {} for value in values]
    if sum(bool(row) for row in pairs) > MOST * len(filled):
        yield from _fields(path, pairs, depth)
    decoded = [_base64_of(value) for value in values]
    if sum(value is not None for value in decoded) > 0.9 * len(filled):
        yield from views(f"{path} in base64", decoded, depth + 1)


def _inside_lists(path: str, values: list[Any], depth: int) -> Iterator[tuple[str, list[Any]]]:
    rows = [list(value) if isinstance(value, list | tuple) else [] for value in values]
    width = max(len(row) for row in rows)
    scores = [row if len(row) == width and all(_is_number(entry) for entry in row) else None for row in rows]
    full_rows = [row for row in scores if row is not None]
    if width > 1 and len(full_rows) > MOST * len(rows):
        numbers = np.nan_to_num(np.array(full_rows, dtype=np.float64), nan=-np.inf)
        places = iter(numbers.argmax(axis=1).tolist())
        yield f"argmax of {path}", [None if row is None else next(places) for row in scores]
    if width <= ELEMENTS:
        for place in range(width):
            element = [row[place] if place < len(row) else None for row in rows]
            yield from views(f"{path}[{place}]", element, depth + 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _json_of(value: object) -> Any:
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict | list) else None


def _base64_of(value: object) -> str | None:
    """Text that was written in base64; `None` for what may as well be a word."""
    if not isinstance(value, str) or len(value) % 4 or not _BASE64.fullmatch(value):
        return None
    try:
        text = base64.b64decode(value, altchars=b"-_" if set(value) & set("-_") else None, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return text if text.isprintable() else None


def _text_of(value: object) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None
