"""Batches with the columns that are ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_ext._upstream.preference import OUR_COLUMNS


class PreferenceCollator:
    """
    The host's collator, and `weight` (float32) and the rows' positions (int64), shape `(rows,)`, where there are any.

    Args:
        inner (`Callable`): the host's collator.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate one batch."""
        columns = {name: torch.tensor([row[name] for row in rows]) for name in OUR_COLUMNS if name in rows[0]}
        batch = self.inner(rows)
        for name, values in columns.items():
            batch[name] = values.float() if name == "weight" else values
        return batch
