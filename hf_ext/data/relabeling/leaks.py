"""
Columns that give a label away: by determining it, by holding the name of its class, or by an id made from it.

How far a column determines the label is measured by pairs: of two rows with the same value, how often is the label the
same? 1 for a copy of the label under whatever name, the chance of two random rows for an unrelated column. Values that
occur once say nothing here, so texts, pictures and numbers that differ from row to row pass: features are public.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.relabeling.views import views
from hf_ext.guards.row_text import plain, shorten

DETERMINED = 0.9  # of the way from chance to a copy of the label
COVERED = 0.5  # share of rows that must have another with the same value
EVIDENCE = 16.0  # rows with a twin, times the chance that a twin's label differs
SURE = 5.0  # standard errors above chance
NAMED_SHARE = 0.5  # share of rows that hold their class's name and no other
POSITIONS = 6  # words of an id, from its beginning
WORD = re.compile(r"[^0-9a-zA-Z]+")


class LabelLeakError(ValueError):
    """
    A column beside the label tells what the label was.

    Attributes:
        column (`str`):
            The column.
    """

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column

    def __reduce__(self) -> tuple[type[LabelLeakError], tuple[str, str]]:
        return type(self), (str(self), self.column)


@dataclass(frozen=True)
class Leak:
    """
    A column that gives the label away.

    Args:
        column (`str`):
            The column.
        how (`str`):
            What it does, as a message says it.
        excerpt (`str`):
            One of its values, at most 80 characters.
    """

    column: str
    how: str
    excerpt: str


@dataclass(frozen=True)
class Association:
    """
    How often two rows with the same value have the same label; `chance` is that of any two rows.

    `error` is the standard error of `same` for a column that has nothing to do with the label.
    """

    same: float
    chance: float
    covered: int
    rows: int
    error: float

    @property
    def determined(self) -> float:
        """0 for an unrelated column, 1 for a copy of the label."""
        return (self.same - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @property
    def enough(self) -> bool:
        """Whether chance can be told from a rule."""
        return self.told and self.same - self.chance >= SURE * self.error

    @property
    def told(self) -> bool:
        """Whether enough rows have a twin."""
        return self.covered >= COVERED * self.rows and self.covered * (1 - self.chance) >= EVIDENCE


def association(values: Sequence[Any], labels: NDArray[np.int64]) -> Association:
    """The association of hashable values with labels, each of `n` rows."""
    value = codes_of(values)
    _, label = np.unique(labels, return_inverse=True)
    n = len(value)
    pair = value * (int(label.max(initial=0)) + 1) + label
    of_value = np.bincount(value, minlength=1)
    _, place, of_both = np.unique(pair, return_inverse=True, return_counts=True)
    has_twin = of_value[value] > 1
    agreeing = (of_both[place][has_twin] - 1) / (of_value[value][has_twin] - 1)
    groups = of_value[of_value > 1]
    # A group of g rows has g (g - 1) / 2 pairs and weighs g.
    weight = float((2 * groups / (groups - 1)).sum()) / max(int(groups.sum()), 1) ** 2
    of_label = np.bincount(label, minlength=1)
    chance = float((of_label * (of_label - 1)).sum() / max(n * (n - 1), 1))
    error = math.sqrt(max(chance * (1 - chance), 1e-12) * weight)
    return Association(float(agreeing.mean()) if has_twin.any() else 0.0, chance, int(has_twin.sum()), n, error)


def codes_of(values: Sequence[Any]) -> NDArray[np.int64]:
    """Hashable values as numbers from 0, in the order in which they first come."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def find_leaks(
    columns: Mapping[str, Sequence[Any]],
    label: str,
    labels: NDArray[np.int64],
    *,
    names: Sequence[str] | None = None,
    public: Iterable[str] = (),
) -> list[Leak]:
    """
    Columns that give the label away.

    Args:
        columns (`Mapping[str, Sequence]`):
            Columns of `n` rows. Values that are neither texts, numbers nor lists of them are passed over.
        label (`str`):
            The label's column, not looked at itself.
        labels (`numpy.ndarray` of shape `(n,)`):
            Class of each row.
        names (`Sequence[str]`, *optional*):
            Names of the classes.
        public (`Iterable[str]`, *optional*):
            Columns that may.

    Returns:
        `list[Leak]`: in the order of the columns, at most one a column.
    """
    leaks = []
    for name, values in columns.items():
        if name == label or name in set(public):
            continue
        for path, view in views(name, values):
            filled = np.array([value is not None for value in view], dtype=bool)
            leak = _leak([value for value in view if value is not None], labels[filled], names)
            if leak is not None:
                finding, excerpt = leak
                leaks.append(Leak(name, finding if path == name else f"{finding} ({path})", excerpt))
                break
    return leaks


def _leak(values: Sequence[Any], labels: NDArray[np.int64], names: Sequence[str] | None) -> tuple[str, str] | None:
    """What values that no row lacks do, and an excerpt of them."""
    keys = [comparable(value) for value in values]
    excerpt = shorten(plain(values[0]))
    measured = association(keys, labels)
    if measured.enough and measured.determined >= DETERMINED:
        finding = f"{measured.same:.0%} have the same label (by chance {measured.chance:.0%})"
        return f"determines the label: of two rows with the same value {finding}", excerpt
    if not isinstance(keys[0], str):
        return None
    texts = [str(key) for key in keys]
    if names:
        # Of each row 1 where its class alone is named, less where others are too, 0 where it is not.
        pairs = zip(labels.tolist(), classes_named(texts, names), strict=True)
        share = sum((label in classes) / max(len(classes), 1) for label, classes in pairs) / max(len(texts), 1)
        if share >= NAMED_SHARE:
            return f"holds the name of the label's class in {share:.0%} of the rows", excerpt
    if sum(any(c.isspace() for c in text) for text in texts) > 0.1 * len(texts):
        return None  # a text, not an id: its words are features
    parts = [WORD.split(text) for text in texts]
    for position in range(POSITIONS):
        words = [part[position] if position < len(part) else "" for part in parts]
        measured = association(words, labels)
        if measured.enough and measured.determined >= DETERMINED:
            word = shorten(words[0], 40)
            return f"holds the label: its part {position + 1}, such as {word}, determines it", excerpt
    return None


def classes_named(texts: Iterable[str], names: Sequence[str]) -> Iterator[list[int]]:
    """Of each text, the classes whose names it holds as whole words."""
    padded_names = [(i, _padded(name)) for i, name in enumerate(names) if _padded(name).strip()]
    for text in texts:
        words = _padded(text)
        yield [i for i, name in padded_names if name in words]


def _padded(text: str) -> str:
    return f" {' '.join(WORD.split(text.casefold())).strip()} "


def comparable(value: Any) -> Any:
    """A value as a dictionary's key: numbers and texts as they are, lists by their entries, anything else in words."""
    value = plain(value)
    if isinstance(value, str | int | float | bytes) or value is None:
        return value
    if isinstance(value, list) and all(isinstance(entry, int | float) for entry in value):
        return np.asarray(value, dtype=np.float64).tobytes()
    return repr(value)


def refuse_leaks(
    columns: Mapping[str, Sequence[Any]],
    label: str,
    *,
    labels: NDArray[np.int64] | None = None,
    public: Iterable[str] = (),
    names: Sequence[str] | None = None,
) -> None:
    """
    Refuse columns that give the label away; too few rows to tell pass.

    Raises:
        LabelLeakError: if there is such a column; the message names the first one and what to do.
    """
    if labels is None:
        values = columns[label]
        if not len(values) or isinstance(plain(values[0]), list):
            return  # a row of token labels is determined by no single value
        labels = np.asarray([int(plain(value)) for value in values], dtype=np.int64)
    leaks = find_leaks(columns, label, labels, names=names, public=public)
    if leaks:
        raise LabelLeakError(leak_message(leaks, label), leaks[0].column)


def leak_message(leaks: list[Leak], label: str) -> str:
    """What a reader is told about columns that give the label away."""
    first = leaks[0]
    more = f" So do: {', '.join(repr(leak.column) for leak in leaks[1:])}." if len(leaks) > 1 else ""
    every = ", ".join(repr(leak.column) for leak in leaks)
    return (
        f"column {first.column!r} {first.how}. Noise on {label!r} would hide nothing.{more}\n"
        f"  {first.column}: {first.excerpt}\n"
        f"  Drop it with dataset.remove_columns, hash it with dataset.map(HashColumn({first.column!r}, key), "
        f"batched=True) (ids), or, if it is public anyway, pass public_columns=({every},)."
    )
