"""The test that drops a candidate: against scipy, against every possible draw, and against its stated level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from hf_ext.bandits.refutation import lead_statistics, look_counts, refuted

LEVEL = 0.05


def test_the_statistic_of_a_sample_is_students_where_skew_speaks_for_the_leader():
    differences = np.random.default_rng(0).exponential(size=(3, 50)) - 0.7  # a long tail to the right
    ours = lead_statistics(differences, None)
    assert ours == pytest.approx(stats.ttest_1samp(differences, 0, axis=1).statistic, rel=1e-12)


def test_a_tail_on_the_side_of_the_one_behind_keeps_it_in_the_race():
    differences = -np.random.default_rng(0).exponential(size=(1, 50)) + 1.6
    ours = lead_statistics(differences, None)[0]
    student = stats.ttest_1samp(differences[0], 0).statistic
    skewness = 2 * stats.skew(differences[0]) * (49 / 50) ** 1.5  # twice the sample's, over s^3
    hall = student + skewness / 50**0.5 * (2 * student**2 + 1) / 6 + skewness**2 / 50 * student**3 / 27
    assert 0 < ours < 0.8 * student
    assert ours == pytest.approx(hall, rel=1e-12)


def test_the_variance_of_a_mean_is_that_over_all_draws_without_replacement():
    pool = np.array([-3.0, 0.1, 0.4, 1.0, 5.0, 2.0, -0.3])
    means = [np.mean(draw) for draw in itertools.combinations(pool, 3)]
    draw = np.array([pool])  # all of it has the pool's own variance; its ratio with so many seen is what is compared
    ratio = lead_statistics(draw, None)[0] / lead_statistics(draw, 14)[0]
    assert ratio**2 == pytest.approx(1 - 7 / 14)
    assert np.var(means) == pytest.approx(pool.var(ddof=1) * (1 - 3 / 7) / 3)


def test_looks_are_fixed_by_the_pool_and_leave_thirty_two_items_unseen():
    assert look_counts(63) == [63]
    assert look_counts(64) == [32, 64]
    assert look_counts(600) == [32, 64, 96, 128, 160, 200, 250, 312, 390, 487, 600]
    for num_items in range(1, 3000, 7):
        counts = look_counts(num_items)
        assert counts == sorted(set(counts))
        assert counts[-1] == num_items
        assert all(count <= num_items - 32 for count in counts[:-1])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_candidates_that_differ_by_nothing_stay_and_one_that_is_always_behind_goes(scale):
    values = np.random.default_rng(0).normal(size=40) * scale
    assert refuted(np.stack([values, values]), 100, LEVEL, 2).tolist() == [False, False]
    assert refuted(np.stack([values, values - 3 * scale]), 100, LEVEL, 2).tolist() == [False, True]


def pools(kind: str, generator: np.random.Generator, num_items: int) -> np.ndarray:
    """Values `(candidates, items)`, higher is better, of candidates that are nearly or exactly level."""
    item = generator.gamma(1, 2, num_items)  # what an item does to all of them
    if kind == "normal":
        return item + generator.normal(size=(6, num_items))
    if kind == "heavy":
        return item + generator.standard_t(3, size=(6, num_items))
    if kind == "losses":
        return -item * np.exp(0.3 * generator.normal(size=(6, num_items)))
    if kind == "right or wrong":
        return (generator.random((6, num_items)) < 0.5).astype(float)
    if kind == "nearly the same":
        return item + 1e-9 * generator.normal(size=(6, num_items))
    # The best one wins seldom and high: it is ahead by a hair, and most samples do not show it.
    tail = {"skewed": generator.exponential(size=num_items), "very skewed": generator.lognormal(size=num_items)}[kind]
    return np.stack([tail - tail.mean() + 1e-6, np.zeros(num_items)])


def times_the_best_is_dropped(kind: str, runs: int, drops=refuted, num_items: int = 240) -> int:
    """In how many of `runs` races the best candidate of the pool is: without that no certificate is false."""
    generator = np.random.default_rng(11)
    looks = look_counts(num_items)
    errors = 0
    for _ in range(runs):
        values = pools(kind, generator, num_items)
        best = values.mean(axis=1).max()
        racing = values
        for look in looks[:-1]:
            racing = racing[~drops(racing[:, :look], num_items, LEVEL, len(values), len(looks) - 1)]
            if len(racing) == 1:
                break
        errors += bool(racing.mean(axis=1).max() < best - 1e-12)
    return errors


@pytest.mark.parametrize(
    "kind", ["normal", "heavy", "losses", "right or wrong", "nearly the same", "skewed", "very skewed"]
)
def test_the_best_is_dropped_at_most_as_often_as_stated(kind):
    assert times_the_best_is_dropped(kind, 150) <= LEVEL * 150


def test_a_test_that_looks_again_at_one_level_or_trusts_the_sample_s_shape_does_not():
    def naive(values, num_items, error, num_candidates, num_looks):
        leads = [stats.ttest_1samp(leader - values, 0, axis=1, alternative="greater").pvalue for leader in values]
        return np.any(np.nan_to_num(leads, nan=1) < error, axis=0)

    def without_skew(values, num_items, error, num_candidates, num_looks):
        shrunk = error / (num_candidates - 1) / num_looks
        leads = [stats.ttest_1samp(leader - values, 0, axis=1, alternative="greater").pvalue for leader in values]
        return np.any(np.nan_to_num(leads, nan=1) < shrunk, axis=0)

    assert times_the_best_is_dropped("normal", 40, naive) > LEVEL * 40
    assert times_the_best_is_dropped("very skewed", 150, without_skew) > LEVEL * 150
