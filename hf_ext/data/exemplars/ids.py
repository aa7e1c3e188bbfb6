"""One rule for ids: text is kept as it is, an integer becomes its decimal digits, anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

EXAMPLES = 3  # ids that a message shows


def as_id(value: Any, place: str) -> str:
    """
    An id as the text that ids are compared by; leading zeros and spaces of a text stay.

    Args:
        value (`str` or `int`, NumPy's too):
            The id.
        place (`str`):
            Where it stands, for the message.

    Raises:
        TypeError: it is neither text nor an integer. `True`, 7.0 and `None` have no one text that another source
            would write too.
    """
    if type(value) is str:
        return value
    if isinstance(value, str):  # a subclass, as np.str_
        return str(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise TypeError(
        f"{place}: an id is a string or an integer, found {type(value).__name__} {str(value)[:80]!r}. Convert the ids "
        "to strings where they come from."
    )


def as_ids(values: Any, place: str) -> list[str]:
    """
    Ids of a list, set, array or generator; a single string or integer is one id, and `None` is none.

    Args:
        values (`str`, `int` or an iterable of them):
            The ids.
        place (`str`):
            Where they stand, for the message.

    Raises:
        TypeError: one of them is no id, or `values` is no collection of any.
    """
    if values is None:
        return []
    if isinstance(values, str | int | float | bytes | np.generic):
        return [as_id(values, place)]
    if not isinstance(values, Iterable):
        raise TypeError(f"{place}: expected ids, strings or integers, found {type(values).__name__}.")
    return [as_id(value, place) for value in values]


def id_column(values: Sequence[Any], column: str) -> list[str | None]:
    """
    A column of ids; a missing one stays `None`, never its text.

    Raises:
        TypeError: a value is no id; the row is named.
    """
    return [
        value if value is None or type(value) is str else as_id(value, f"row {row:,}, column {column!r}")
        for row, value in enumerate(values)
    ]


def some(names: Iterable[str]) -> str:
    """The first few of some ids, for a message."""
    shown = list(islice(names, EXAMPLES + 1))
    return ", ".join(map(repr, shown[:EXAMPLES])) + (", ..." if len(shown) > EXAMPLES else "")
