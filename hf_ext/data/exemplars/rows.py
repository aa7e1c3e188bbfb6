"""
One exemplar, what is known of a target, the rules that keep exemplars from it, the checks of a pool's rows and ids.

One rule for ids everywhere: text is kept as it is, an integer becomes its decimal digits, anything else is refused by
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from hf_ext.data.exemplars.text import text_key

TEXT_COLUMNS = ("query", "document")
ID_COLUMNS = ("id", "doc_id")
OPTIONAL_COLUMNS = (*ID_COLUMNS, "source", "negative")
COLUMNS = (*OPTIONAL_COLUMNS[:1], *TEXT_COLUMNS, *OPTIONAL_COLUMNS[1:])
MOST_ROWS = 1_000_000
MOST_CHARACTERS = 1_000_000  # of one text
EXCERPT = 80
EXAMPLES = 3  # ids that a message shows


@dataclass(frozen=True, slots=True)
class Exemplar:
    """
    One hit of a search.

    Attributes:
        row (`int`): position in the store.
        score (`float`): of the retriever, the higher the nearer; 0 for random and fixed ones.
        query, document (`str`): the pair.
        id, doc_id, source, negative (`str`, *optional*): as stored.
    """

    row: int
    score: float
    query: str
    document: str
    id: str | None = None
    doc_id: str | None = None
    source: str | None = None
    negative: str | None = None


@dataclass(frozen=True)
class Target:
    """
    What is known of a query besides its text, so that the search can leave out what would give the answer away.

    Args:
        id (`str` or `int`, *optional*): of the query, as in the store.
        positive (`str`, *optional*): the document it is trained to find.
        doc_id (`str` or `int`, *optional*): of that document, as in the store.
        negatives (`tuple[str, ...]`, *optional*): documents it is trained to avoid.
        row (`int`, *optional*): of the store, where the query is that of one of its own rows.

    Raises:
        TypeError: if an id is neither text nor an integer.
    """

    id: str | None = None
    positive: str | None = None
    doc_id: str | None = None
    negatives: tuple[str, ...] = ()
    row: int | None = None

    def __post_init__(self) -> None:
        for name in ID_COLUMNS:
            value = getattr(self, name)
            if value is not None and type(value) is not str:
                object.__setattr__(self, name, as_id(value, f"Target({name}=)"))
        if isinstance(self.negatives, str):  # else it would be read letter by letter
            object.__setattr__(self, "negatives", (self.negatives,))


@dataclass(frozen=True)
class Exclude:
    """
    Which exemplars a query is not shown. All four rules are on, as training wants; a rule needs what [`Target`] knows.

    Texts are compared by [`normalize`]: case and white space do not count.

    Args:
        self_id (`bool`): the exemplar with the target's id, and the target's own row.
        same_text (`bool`): exemplars with the target's query text.
        same_positive (`bool`): exemplars whose document is the target's positive, or one that the store pairs with the
            same query text. Off, a model is taught to copy the shown document.
        negatives (`bool`): exemplars whose document is one of the target's negatives.
    """

    self_id: bool = True
    same_text: bool = True
    same_positive: bool = True
    negatives: bool = True


NOTHING_EXCLUDED = Exclude(False, False, False, False)
EVERY_RULE = Exclude()


def checked(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Columns as lists of text, ids as [`as_id`] has them, `document_key` filled; every defect named."""
    missing = [name for name in TEXT_COLUMNS if name not in rows]
    if missing:
        raise ValueError(
            f"column {missing[0]!r} is missing; exemplars need {TEXT_COLUMNS}, the rows have {list(rows)}."
        )
    columns = {name: list(rows[name]) for name in COLUMNS if rows.get(name) is not None}
    columns = {n: v for n, v in columns.items() if n in TEXT_COLUMNS or any(value is not None for value in v)}
    size = len(columns["query"])
    if size == 0:
        raise ValueError("The pool is empty: an exemplar store needs at least one (query, document) pair.")
    if size > MOST_ROWS:
        raise ValueError(f"The pool has {size:,} rows, more than {MOST_ROWS:,}. Take a sample of it.")
    for name, values in columns.items():
        if len(values) != size:
            raise ValueError(f"column {name!r} has {len(values):,} values, 'query' has {size:,}.")
        if name in ID_COLUMNS:
            columns[name] = values = id_column(values, name)
        _check_texts(name, values)
    keys = rows.get("document_key")
    columns["document_key"] = list(keys) if keys is not None else [text_key(text) for text in columns["document"]]
    return {name: columns[name] for name in sorted(columns)}


def _check_texts(name: str, values: Iterable[Any]) -> None:
    optional = name in OPTIONAL_COLUMNS
    for row, value in enumerate(values):
        if value is None and optional:
            continue
        if not isinstance(value, str):
            remedy = "Drop the row." if value is None else "Exemplars are text: name another column."
            excerpt = "None" if value is None else f"{type(value).__name__} {str(value)[:EXCERPT]!r}"
            raise TypeError(f"row {row:,}, column {name!r}: expected a string, found {excerpt}. {remedy}")
        if not optional and not value.strip():
            raise ValueError(f"row {row:,}, column {name!r}: the text is blank. Drop the row.")
        if len(value) > MOST_CHARACTERS:
            raise ValueError(
                f"row {row:,}, column {name!r}: {len(value):,} characters, more than {MOST_CHARACTERS:,}. "
                f"Cut the text: {value[:EXCERPT]!r}"
            )
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"row {row:,}, column {name!r}: half a surrogate pair, which no file can hold. Drop it.")


def as_id(value: object, place: str) -> str:
    """
    An id as the text that ids are compared by; leading zeros and spaces of a text stay.

    Args:
        value (`str` or `int`, NumPy's too):
            The id.
        place (`str`):
            Where it stands, for the message.

    Raises:
        TypeError: if it is neither text nor an integer. `True`, 7.0 and `None` have no one text that another source
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


def as_ids(values: object, place: str) -> list[str]:
    """
    Ids of a list, set, array or generator; a single string or integer is one id, and `None` is none.

    Args:
        values (`str`, `int` or an iterable of them):
            The ids.
        place (`str`):
            Where they stand, for the message.

    Raises:
        TypeError: if one of them is no id, or `values` is no collection.
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
        TypeError: if a value is no id; the message names the row.
    """
    return [
        value if value is None or type(value) is str else as_id(value, f"row {row:,}, column {column!r}")
        for row, value in enumerate(values)
    ]


def some(names: Iterable[str]) -> str:
    """The first few of some ids, for a message."""
    first_names = list(islice(names, EXAMPLES + 1))
    return ", ".join(map(repr, first_names[:EXAMPLES])) + (", ..." if len(first_names) > EXAMPLES else "")
