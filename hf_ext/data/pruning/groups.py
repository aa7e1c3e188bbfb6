"""Groups of rows and how many rows each of them keeps, with no remainder lost."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from hf_ext.data.pruning._types import IntArray

Label = Hashable


def split_groups(groups: Any, n: int) -> dict[Label, IntArray]:
    """
    Ascending row numbers of every group, groups in the order of their labels (so row order does not matter).

    Raises:
        ValueError: not one label a row, or a label is missing (`None`, NaN).
    """
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(labels) != n:
        raise ValueError(f"groups must hold one label a row: {len(labels):,} labels, {n:,} rows.")
    places: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        if label is None or label != label:
            raise ValueError(f"Row {row:,} has no label ({label!r}). Give every row a label, or drop the row.")
        places.setdefault(label, []).append(row)
    ordered = sorted(places, key=lambda label: (type(label).__name__, label))
    return {label: np.array(places[label], dtype=np.int64) for label in ordered}


def quotas(
    k: int | None, sizes: Mapping[Label, int], budget: str | Mapping[Label, int], at_least: int = 0
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
        ValueError: the numbers cannot be had.
    """
    if isinstance(budget, Mapping):
        return _given(k, sizes, budget), []
    if budget not in ("proportional", "equal"):
        raise ValueError(f"budget must be 'proportional', 'equal' or a dictionary of numbers, got {budget!r}.")
    if k is None:
        raise ValueError("k is missing: give the number of rows to keep, or their numbers in budget.")
    if k < max(1, at_least) * len(sizes):
        largest = sorted(sizes, key=lambda label: -sizes[label])[:5]
        shown = ", ".join(f"{label!r} ({sizes[label]:,} rows)" for label in largest)
        each = f" of at least {at_least:,} rows" if at_least > 1 else ""
        raise ValueError(
            f"k={k:,} rows cannot be shared among {len(sizes):,} groups{each}; the largest are {shown}. Raise k, or "
            "join or drop small groups."
        )
    shares = {label: size if budget == "proportional" else 1 for label, size in sizes.items()}
    return _shared(k, sizes, shares, at_least)


def _given(k: int | None, sizes: Mapping[Label, int], budget: Mapping[Label, int]) -> dict[Label, int]:
    unknown = [label for label in budget if label not in sizes]
    if unknown:
        raise ValueError(f"budget names the group {unknown[0]!r}, which no row has.")
    for label, count in budget.items():
        if not 0 <= count <= sizes[label]:
            raise ValueError(f"budget asks for {count:,} rows of group {label!r}, which has {sizes[label]:,}.")
    total = sum(budget.values())
    if k is not None and k != total:
        raise ValueError(f"k={k:,}, but the numbers in budget add up to {total:,}.")
    if total < 1:
        raise ValueError("budget asks for no rows at all.")
    return {label: int(budget.get(label, 0)) for label in sizes}


def _shared(
    k: int, sizes: Mapping[Label, int], shares: Mapping[Label, int], at_least: int
) -> tuple[dict[Label, int], list[str]]:
    fixed: dict[Label, int] = {}
    notes: list[str] = []
    while True:  # groups that cannot take their share are set aside and the others share again
        free = [label for label in sizes if label not in fixed]
        left, total = k - sum(fixed.values()), sum(shares[label] for label in free)
        fair = {label: left * shares[label] for label in free}  # in units of 1 / total: exact
        small = [label for label in free if fair[label] > sizes[label] * total]
        poor = [label for label in free if fair[label] < min(at_least, sizes[label]) * total]
        for label in small or poor:
            fixed[label] = sizes[label] if small else min(at_least, sizes[label])
            if small:
                notes.append(f"group {label!r} has fewer rows than its share: all {sizes[label]:,} were taken")
        if not (small or poor):
            break
    counts = {label: fair[label] // total for label in free}
    order = sorted(free, key=lambda label: (-(fair[label] % total), -sizes[label]))
    for label in order[: left - sum(counts.values())]:
        counts[label] += 1
    return {label: fixed.get(label, counts.get(label, 0)) for label in sizes}, notes
