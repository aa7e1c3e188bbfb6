"""A stream's sample is uniform over what is read, and reads no further."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from scipy.stats import chisquare

from hf_ext.data.stream_sample import reservoir


def test_every_row_that_is_read_has_the_same_chance() -> None:
    chosen = Counter(row for seed in range(3000) for row in reservoir(range(12), 3, 12, seed))
    assert chisquare([chosen[row] for row in range(12)]).pvalue > 1e-3
    first_three = Counter(row for seed in range(300) for row in reservoir(range(12), 3, 3, seed))
    assert set(first_three) == {0, 1, 2}


@pytest.mark.parametrize(("size", "num_rows", "length", "expected"), [(5, 50, 3, 3), (5, 50, 80, 5), (9, 4, 80, 4)])
def test_it_holds_as_many_rows_as_there_are_and_none_twice(
    size: int, num_rows: int, length: int, expected: int
) -> None:
    sample = reservoir(iter(range(length)), size, num_rows, seed=1)
    assert len(sample) == len(set(sample)) == expected
    assert max(sample) < num_rows


def test_an_endless_stream_is_read_to_its_limit_and_the_same_seed_draws_the_same() -> None:
    rows = count()
    sample = reservoir(rows, 4, 100, seed=2)
    assert next(rows) == 100
    assert reservoir(count(), 4, 100, seed=2) == sample
    assert reservoir(count(), 4, 100, seed=3) != sample
