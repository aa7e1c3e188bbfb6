"""The selector of the paper's released code: a different algorithm, kept so that users can compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_ext.data.pruning.groups import Budget, Label, split_groups
from hf_ext.data.pruning.matching import Matching, match
from hf_ext.data.pruning.median import solve
from hf_ext.data.pruning.one_group import Aim, Settings
from hf_ext.data.vectors.rows import Selection, check_rows


def gm_official(
    X: ArrayLike,
    k: int | None,
    *,
    groups: Sequence[Label] | np.ndarray | None = None,
    budget: Budget = "proportional",
    min_per_group: int = 0,
    first: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Matching:
    """
    Pick as the released code of Geometric Median Matching does, which is not what the paper writes.

    Rows are divided by their length, but the median is taken of the rows as given and then scaled to length 1. So the
    target lies outside the hull of the unit rows and cannot be matched (`verdict` says so): theta grows with every
    pick, and the picks are rows near the centre's direction. Few wrong labels are kept, and little is covered. Theta
    starts at a row drawn at random. What the code does by accident is left out: shared budgets lose no remainder, and
    the median is certified.

    Args:
        X (array of shape `(n, d)`), k (`int`), groups (sequence of labels, *optional*), budget, min_per_group:
            As for [`gm_matching`].
        first (`int`, *optional*):
            Row number where theta starts (it is not itself picked by this); drawn from `seed` by default, one a group.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.
        options:
            `trim`, `engine`, `num_threads`, `backend` and the like of [`gm_matching`].

    Returns:
        [`Matching`]: `method` is `"gm_official"`; `center` is the median of the rows as given, and
        `moment_error` the distance to it once scaled to length 1.

    Raises:
        ValueError: if `gm_matching` would refuse the arguments, or the median is zero.
    """
    for name in ("center", "metric", "target_scale"):
        if name in options:
            raise ValueError(f"gm_official fixes {name}: use gm_matching to choose it.")
    settings = Settings(target_scale="unit", **options)
    # Two readings of the same rows: the released code takes the median of one and matches the other to it.
    raw_rows = check_rows(X)
    unit_rows = check_rows(X, "unit")
    places = split_groups(groups, len(raw_rows.values))
    rng = np.random.default_rng(seed)
    aims: dict[Label, Aim] = {}
    for label, index in places.items():
        selection = Selection(raw_rows, index)
        start_row = int(rng.choice(selection.numbers())) if first is None else first
        aims[label] = Aim(solve(selection).center, unit_rows.take(slice(start_row, start_row + 1))[0])
    return match(unit_rows, k, places, aims.__getitem__, settings, "gm_official", budget, min_per_group)
