"""Which stored row stands at each place of a run, with nothing to save."""

from __future__ import annotations

import numpy as np


class RowStream:
    """
    An endless, shuffled sequence of row numbers that is a pure function of the position.

    The concatenation of one permutation of `num_rows` per epoch. A resumed run continues exactly where it was, on any
    number of processes, with nothing to save; the global random state is not touched.

    Args:
        num_rows (`int`): rows in the set.
        seed (`int`): of the permutations.
        block_rows (`int`, *optional*): rows that are shuffled among themselves, block after block; all by default.
            Blocks that are added to the set leave the first epoch's sequence before them as it was.
    """

    def __init__(self, num_rows: int, seed: int, block_rows: int | None = None) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.block_rows = block_rows or num_rows
        self._place = (-1, -1)
        self._order = np.arange(0)

    def rows(self, start: int, count: int) -> list[int]:
        """Row numbers at positions `start` to `start + count - 1`."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> int:
        epoch, row = divmod(position, self.num_rows)
        block, offset = divmod(row, self.block_rows)
        start = row - offset
        if (epoch, block) != self._place:
            self._place = (epoch, block)
            block_rows = min(self.block_rows, self.num_rows - start)
            self._order = np.random.default_rng((self.seed, epoch, block)).permutation(block_rows)
        return start + int(self._order[offset])
