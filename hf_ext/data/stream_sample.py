"""A uniform sample of a stream's beginning, in one pass."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

Row = TypeVar("Row")


def reservoir(rows: Iterable[Row], size: int, num_rows: int, seed: int) -> list[Row]:
    """
    Draw `size` of the first `num_rows` rows, each with the same chance.

    Args:
        rows (`Iterable`):
            Read once, up to row `num_rows`.
        size (`int`):
            Rows wanted; fewer come where the stream is shorter.
        num_rows (`int`):
            How far to read.
        seed (`int`):
            Of the draw; the global random state is not touched.

    Returns:
        `list`: the rows, in no particular order beyond `size` of them.

    Reference: Vitter 1985, *Random Sampling with a Reservoir*, Algorithm R.
    """
    rng = random.Random(seed)
    sample: list[Row] = []
    for i, row in enumerate(islice(rows, num_rows)):
        if i < size:
            sample.append(row)
            continue
        place = rng.randrange(i + 1)
        if place < size:
            sample[place] = row
    return sample
