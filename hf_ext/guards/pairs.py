"""Pairs whose two responses are the same once they are tokens of at most `max_length`: there is nothing to prefer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from hf_ext.guards.tokens import token_at

BATCH_SIZE = 10_000


@dataclass(frozen=True)
class SameResponses:
    """
    Whether a tokenised pair's responses are the same after truncation; call it with a row.

    Args:
        max_length (`int`, *optional*):
            Tokens that are left of prompt and response.
        keep_end (`bool`):
            Whether the last ones are left, not the first.
    """

    max_length: int | None
    keep_end: bool = False
    revision: str = "1"

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether one pair's responses are the same."""
        return self.of(len(row["prompt_ids"]), row["chosen_ids"], row["rejected_ids"])

    def of(self, prompt_length: int, chosen: Sequence[int], rejected: Sequence[int]) -> bool:
        """Whether two responses are the same after a prompt of `prompt_length` tokens; false where nothing is left."""
        if self.max_length is None:
            cut = slice(None)
        elif self.keep_end:
            # the prompt goes first, since the end of the whole sequence is kept
            cut = slice(-self.max_length, None)
        else:
            # the prompt takes its share of the length first
            cut = slice(None, max(self.max_length - prompt_length, 0))
        chosen_part = chosen[cut]
        return len(chosen_part) > 0 and np.array_equal(chosen_part, rejected[cut])

    def count(
        self, chosen: Dataset, rejected: Dataset, columns: tuple[str, str] = ("chosen_ids", "rejected_ids")
    ) -> int:
        """Number of pairs with equal responses; `chosen` and `rejected` hold one response a row, in the same order."""
        sides = (
            chosen.select_columns(["prompt_ids", columns[0]]).with_format("arrow").iter(batch_size=BATCH_SIZE),
            rejected.select_columns([columns[1]]).with_format("arrow").iter(batch_size=BATCH_SIZE),
        )
        count = 0
        for table, other_table in zip(*sides, strict=True):
            prompts, firsts = (table.column(name).combine_chunks() for name in ("prompt_ids", columns[0]))
            others = other_table.column(columns[1]).combine_chunks()
            candidates = np.arange(len(firsts))
            if not self.keep_end:  # most pairs differ in their first token, and columns are compared at once
                candidates = np.flatnonzero(token_at(firsts, 0) == token_at(others, 0))
            lengths = np.diff(prompts.offsets.to_numpy())[candidates].tolist()
            pairs = zip(lengths, _lists(firsts, candidates), _lists(others, candidates), strict=True)
            count += sum(self.of(length, first, other) for length, first, other in pairs)
        return count

    def sentence(self) -> str:
        """The warning, with fields as in `guards.tokens.say_count`."""
        within = "" if self.max_length is None else f" within max_length={self.max_length}"
        remedy = "" if self.max_length is None else "Raise max_length, or filter them. "
        return (
            f"The chosen and the rejected response of {{rows}} of the {{name}} dataset are the same tokens{within}: "
            f"there is nothing to prefer. {remedy}"
        ).rstrip()


def _lists(column: pa.ListArray, rows: npt.NDArray[np.int64]) -> list[Any]:
    """The lists of some rows as views of one array."""
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    return [values[start:end] for start, end in zip(offsets[rows], offsets[rows + 1], strict=True)]
