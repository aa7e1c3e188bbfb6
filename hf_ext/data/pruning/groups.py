"""Groups of rows and how many rows each of them keeps, with no remainder lost."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from hf_ext.data.vectors.rows import IntArray

Label: TypeAlias = Hashable
Budget: TypeAlias = str | Mapping[Label, int]

ALL_ROWS = "all rows"  # label of the one group where there are no labels


def split_groups(groups: Sequence[Label] | np.ndarray | None, n: int) -> dict[Label, IntArray | None]:
    """
    Ascending row numbers of every group, groups in the order of their labels (so row order does not matter).

    Without labels there is one group, [`ALL_ROWS`], whose numbers are `None`: every row.

    Raises:
        ValueError: if there is not one label a row, or a label is missing (`None`, NaN).
    """
    if groups is None:
        return {ALL_ROWS: None}
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(labels) != n:
        raise ValueError(f"groups must hold one label a row: {len(labels):,} labels, {n:,} rows.")
    places: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        if label is None or label != label:  # a NaN equals nothing: each would be a group of its own
            raise ValueError(f"Row {row:,} has no label ({label!r}). Give every row a label, or drop the row.")
        places.setdefault(label, []).append(row)
    return {label: np.array(places[label], dtype=np.int64) for label in in_order(places)}


def in_order(labels: Mapping[Label, object]) -> list[Label]:
    """Labels in an order that does not depend on that of the rows, numbers apart from texts."""
    return sorted(labels, key=lambda label: (type(label).__name__, label))


def number_of_rows(k: int | None, fraction: float | None, n: int, budget: Budget | None = None) -> int | None:
    """
    How many of `n` rows to keep; `None` where `budget` is a dictionary that says it.

    Raises:
        ValueError: if both or neither of `k` and `fraction` are given, or `n` rows cannot give as many.
    """
    if k is not None and fraction is not None:
        raise ValueError(f"k={k} and fraction={fraction} are both given: leave one of them out.")
    if fraction is not None:
        is_number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not is_number or not 0 < fraction <= 1:
            raise ValueError(
                f"fraction must be a share of the {n:,} rows in (0, 1], got {fraction!r}. Pass k for rows."
            )
        return max(1, int(fraction * n + 0.5))  # round() takes half of 5 rows for 2, half of 7 for 4
    if k is None:
        if isinstance(budget, Mapping):
            return None
        raise ValueError(f"k={k} and fraction={fraction}: give the number of rows to keep, or their share in (0, 1].")
    if not is_whole(k) or not 1 <= k <= n:
        raise ValueError(f"k must be a whole number of rows from 1 to {n:,}, got {k!r}.")
    return int(k)


def is_whole(number: object) -> bool:
    """Whether a value is a whole number; truth values are none."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def counts_of(
    k: int | None,
    places: Mapping[Label, IntArray | None],
    n: int,
    trim: float,
    budget: Budget,
    min_per_group: int,
) -> tuple[dict[Label, int], list[str]]:
    """
    Rows to keep of each group once `trim`, a share of its rows, has been dropped; and notes.

    Raises:
        ValueError: if the numbers cannot be had.
    """
    if k is not None and (not is_whole(k) or k < 1):
        raise ValueError(f"k must be a whole number of rows from 1 to {n:,}, got {k!r}.")
    sizes = {label: n if index is None else len(index) for label, index in places.items()}
    sizes = {label: size - int(trim * size) for label, size in sizes.items()}
    available = sum(sizes.values())
    if k is not None and k > available:
        trimming = f" after trimming {n - available:,} of {n:,}" if available < n else ""
        raise ValueError(f"k={k:,} rows asked for, {available:,} there{trimming}. Lower k.")
    if any(index is not None for index in places.values()):
        return quotas(k, sizes, budget, min_per_group)
    if budget != "proportional" or min_per_group:
        name = "min_per_group" if budget == "proportional" else "budget"
        raise ValueError(f"{name} shares the rows out among groups, and there are none: give by (or groups).")
    if k is None:
        raise ValueError("k is missing: give the number of rows to keep.")
    return {ALL_ROWS: int(k)}, []


def quotas(
    k: int | None, sizes: Mapping[Label, int], budget: Budget, at_least: int = 0
) -> tuple[dict[Label, int], list[str]]:
    """
    Rows to keep of each group: their sum is `k`, whatever the rounding.

    Args:
        k (`int`, *optional*):
            Rows in all; may be left out where `budget` is a dictionary.
        sizes (`dict`):
            Rows that each group has to give.
        budget (`"proportional"`, `"equal"` or `dict`):
            Shares by size, equal shares, or the numbers themselves. Remainders go to the largest fractions, then to
            the larger group. A group smaller than its share gives all its rows, and the others share the rest.
        at_least (`int`, *optional*, defaults to 0):
            Rows of every group, where it has them.

    Returns:
        `tuple`: the numbers, and a note about each group smaller than its share.

    Raises:
        ValueError: if the numbers cannot be had.
    """
    if isinstance(budget, Mapping):
        return _checked_counts(k, sizes, budget), []
    if budget not in ("proportional", "equal"):
        raise ValueError(f"budget must be 'proportional', 'equal' or a dictionary of numbers, got {budget!r}.")
    if k is None:
        raise ValueError("k is missing: give the number of rows to keep, or their numbers in budget.")
    if k < max(1, at_least) * len(sizes):
        largest = sorted(sizes, key=lambda label: -sizes[label])[:5]
        examples = ", ".join(f"{label!r} ({sizes[label]:,} rows)" for label in largest)
        each = f" of at least {at_least:,} rows" if at_least > 1 else ""
        raise ValueError(
            f"k={k:,} rows cannot be shared among {len(sizes):,} groups{each}; the largest are {examples}. Raise k, "
            "or join or drop small groups."
        )
    shares = {label: size if budget == "proportional" else 1 for label, size in sizes.items()}
    return _shared_out(k, sizes, shares, at_least)


def _checked_counts(k: int | None, sizes: Mapping[Label, int], budget: Mapping[Label, int]) -> dict[Label, int]:
    unknown_labels = [label for label in budget if label not in sizes]
    if unknown_labels:
        raise ValueError(f"budget names the group {unknown_labels[0]!r}, which no row has.")
    for label, count in budget.items():
        if not 0 <= count <= sizes[label]:
            raise ValueError(f"budget asks for {count:,} rows of group {label!r}, which has {sizes[label]:,}.")
    total = sum(budget.values())
    if k is not None and k != total:
        raise ValueError(f"k={k:,}, but the numbers in budget add up to {total:,}.")
    if total < 1:
        raise ValueError("budget asks for no rows at all.")
    return {label: int(budget.get(label, 0)) for label in sizes}


def _shared_out(
    k: int, sizes: Mapping[Label, int], shares: Mapping[Label, int], at_least: int
) -> tuple[dict[Label, int], list[str]]:
    fixed_counts: dict[Label, int] = {}
    notes: list[str] = []
    while True:  # groups that cannot take their share are set aside and the others share again
        free = [label for label in sizes if label not in fixed_counts]
        remaining = k - sum(fixed_counts.values())
        total = sum(shares[label] for label in free)
        fair = {label: remaining * shares[label] for label in free}  # in units of 1 / total, so no rounding yet
        small = [label for label in free if fair[label] > sizes[label] * total]
        poor = [label for label in free if fair[label] < min(at_least, sizes[label]) * total]
        # Small ones first: what they cannot take goes to the others, and may lift a poor one to its least number.
        for label in small or poor:
            fixed_counts[label] = sizes[label] if small else min(at_least, sizes[label])
            if small:
                notes.append(f"group {label!r} has fewer rows than its share: all {sizes[label]:,} were taken")
        if not (small or poor):
            break
    counts = {label: fair[label] // total for label in free}
    by_remainder = sorted(free, key=lambda label: (-(fair[label] % total), -sizes[label]))
    for label in by_remainder[: remaining - sum(counts.values())]:
        counts[label] += 1
    return {label: fixed_counts.get(label, counts.get(label, 0)) for label in sizes}, notes
