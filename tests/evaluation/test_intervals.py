"""Intervals over rows: they cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_ext.evaluation.intervals import ratio_estimate, student_quantile


def test_ratio_is_weighted_by_tokens_and_equal_lengths_give_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, size=40)
    estimate = ratio_estimate(values * 7, np.full(40, 7))
    textbook = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values))
    assert estimate.mean == pytest.approx(values.mean(), abs=1e-12)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx(
        textbook, abs=1e-6
    )
    assert (estimate.num_rows, estimate.num_tokens) == (40, 280)
    assert ratio_estimate([1.0, 9.0], [1, 3]).mean == 2.5


@pytest.mark.parametrize("degrees", [3, 5, 11, 60, 1000])
def teststudent_quantile_is_scipys_within_one_percent(degrees: int) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


def test_a_single_row_has_no_interval() -> None:
    assert ratio_estimate([3.0], [2]).half_width is None


def _covered(rows: int, trials: int, with_lengths: bool) -> float:
    """Share of simulated datasets whose interval holds the true ratio; long rows are easier, so length matters."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(trials):
        lengths = rng.integers(5, 60, size=rows)
        means = 3.0 - 0.03 * lengths + rng.normal(0, 0.4, size=rows)
        sums = means * lengths
        true = 3.0 - 0.03 * np.mean(np.arange(5, 60) ** 2) / np.mean(np.arange(5, 60))
        if with_lengths:
            estimate = ratio_estimate(sums, lengths)
        else:  # pretends that every token is an independent draw of the row means
            estimate = ratio_estimate(np.repeat(means, lengths), np.ones(lengths.sum()))
        hits += abs(estimate.mean - true) <= estimate.half_width
    return hits / trials


def test_interval_over_rows_covers_the_truth_95_percent_of_the_time() -> None:
    assert 0.935 <= _covered(rows=60, trials=3000, with_lengths=True) <= 0.965


def test_coverage_test_can_fail_on_an_interval_over_tokens() -> None:
    assert _covered(rows=60, trials=300, with_lengths=False) < 0.6
