"""The lower bound against HiGHS, closed forms and levels on a grid."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hf_ext.bandits import lower_bound as module
from hf_ext.bandits.information import SideInformation
from hf_ext.bandits.lower_bound import covering_lp, lower_bound
from tests.bandits import oracle


def no_fallback(*_):
    raise AssertionError("the simplex method gave up")


def test_the_simplex_method_equals_highs_on_300_random_problems(monkeypatch):
    monkeypatch.setattr(module, "_highs", no_fallback)
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(2, 13))
        coverage = (rng.random((size, size)) < 0.5) * rng.uniform(0.1, 5, (size, size))
        coverage[rng.integers(size), coverage.sum(axis=0) == 0] = 1
        costs = rng.uniform(0.01, 1, size)
        demand = 2 / rng.uniform(0.05, 1, size) ** 2
        solution = covering_lp(costs, coverage, demand)
        assert solution.value == pytest.approx(oracle.cheapest(costs, list(coverage.T), list(demand)), rel=1e-7)
        assert (solution.allocation @ coverage >= demand * (1 - 1e-8)).all()


def test_the_multipliers_prove_the_value():
    for seed in range(30):
        means, precision = oracle.random_problem(seed, sees_itself=seed % 2 == 0)
        bound = lower_bound(means, SideInformation(precision), kind="lp")
        gaps = means[0] - means
        weights = gaps**2 / 2
        weights[0] = gaps[1:].min() ** 2 / 2
        # Dual feasible and as dear as the primal: no cheaper allocation exists.
        assert (precision[1:] @ (weights * bound.multipliers) <= gaps[1:] * (1 + 1e-8)).all()
        assert bound.multipliers.sum() == pytest.approx(bound.value, rel=1e-8)
        assert bound.allocation @ gaps == pytest.approx(bound.value, rel=1e-8)


def hub_closed_form(means, hub, precision):
    """Piecewise linear in the hub's plays: the least of its values at the break points."""
    gaps = means[0] - means
    others = [j for j in range(1, len(means)) if j != hub]
    breaks = [2 / (precision * gaps[j] ** 2) for j in range(1, len(means))]

    def cost(plays):
        return plays * gaps[hub] + sum(gaps[j] * max(2 / gaps[j] ** 2 - precision * plays, 0) for j in others)

    return min(cost(plays) for plays in breaks if plays >= 2 / (precision * gaps[hub] ** 2) * (1 - 1e-12))


def closed_forms():
    bandit = np.array(oracle.BANDIT_MEANS)
    gaps = bandit[0] - bandit[1:]
    yield "bandit", bandit, SideInformation.bandit(8, sd=1.5), (2 * 1.5**2 / gaps).sum()
    yield "full", bandit, SideInformation.full(8), 0.0
    cliques = np.kron(np.eye(4), np.ones((2, 2)))
    yield "cliques", bandit, SideInformation.graph(cliques), 2 / 0.3 + 2 / 0.5 + 2 / 0.7
    hub_means = np.array(oracle.HUB_MEANS)
    yield "hub", hub_means, oracle.hub(), hub_closed_form(hub_means, 9, 4)
    # A star: the centre sees all, the leaves themselves. From gap to gap the centre alone is cheapest here.
    star = np.eye(4)
    star[1] = 1
    yield "star", np.array([1, 0.9, 0.8, 0.8]), SideInformation.graph(star), 0.1 * 2 / 0.1**2


@pytest.mark.parametrize(("means", "info", "value"), [pytest.param(*case[1:], id=case[0]) for case in closed_forms()])
@pytest.mark.parametrize("kind", ["lp", "graves_lai"])
def test_closed_forms(means, info, value, kind):
    assert lower_bound(means, info, kind).value == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_figures_of_the_named_matrices():
    assert lower_bound(oracle.BANDIT_MEANS, SideInformation.bandit(8)).value * np.log(1e5) == pytest.approx(
        395.6, abs=0.1
    )
    assert lower_bound(oracle.HUB_MEANS, oracle.hub()).value * np.log(1e5) == pytest.approx(172.7, abs=0.1)
    assert lower_bound(oracle.REVEAL_MEANS, oracle.reveal()).value * np.log(1e5) == pytest.approx(358.2, abs=0.1)


def test_a_best_arm_that_only_another_sees_costs_exactly_twice_the_linear_programme():
    # Two samples of variance 1 each: their difference has twice the variance of one.
    info = SideInformation([[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    means = [1, 0.8, 0.3]
    assert lower_bound(means, info, "lp").value == pytest.approx(2 * 0.7 / 0.2**2, rel=1e-9)
    assert lower_bound(means, info).value == pytest.approx(4 * 0.7 / 0.2**2, rel=1e-9)
    assert lower_bound(oracle.REVEAL_MEANS, oracle.reveal()).value == pytest.approx(4 * 0.7 / 0.3**2, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_bound_equals_levels_on_a_grid(seed, monkeypatch):
    monkeypatch.setattr(module, "_highs", no_fallback)
    means, precision = oracle.random_problem(seed, sees_itself=False)
    info = SideInformation(precision)
    bound = lower_bound(means, info)
    relaxed = lower_bound(means, info, "lp").value
    assert relaxed * (1 - 1e-9) <= bound.value <= 2 * relaxed * (1 + 1e-8)
    below = oracle.grid_bound(means, precision, points=400)
    # A parabola through three grid points is off by a share of their distance squared.
    assert below * (1 - 1e-8) <= bound.value <= below * (1 + 1e-3)
    assert oracle.least_nats(bound.allocation, means, precision, points=10_000) >= 1 - 1e-8
    assert bound.multipliers.sum() == pytest.approx(bound.value, rel=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_bound_is_the_linear_programme_where_the_best_arm_sees_itself(seed):
    means, precision = oracle.random_problem(seed, sees_itself=True)
    info = SideInformation(precision)
    value = oracle.lp_bound(means, precision)
    assert lower_bound(means, info).value == pytest.approx(value, rel=1e-7, abs=1e-12)
    assert lower_bound(means, info, "lp").value == pytest.approx(value, rel=1e-7, abs=1e-12)


def test_the_cuts_come_to_an_end_under_highs_too(monkeypatch):
    problems = [oracle.random_problem(seed, sees_itself=False) for seed in range(15)]
    values = [lower_bound(means, SideInformation(precision)).value for means, precision in problems]
    monkeypatch.setattr(module, "_simplex", lambda scaled: None)
    for value, (means, precision) in zip(values, problems, strict=True):
        assert lower_bound(means, SideInformation(precision)).value == pytest.approx(value, rel=1e-7)


def test_only_a_best_arm_that_sees_itself_and_all_others_costs_nothing():
    precision = np.eye(3)
    precision[0] = 1
    assert lower_bound([1, 0.5, 0.4], SideInformation(precision)).value == 0
    precision[0, 0] = 0
    precision[1, 0] = 1
    assert lower_bound([1, 0.5, 0.4], SideInformation(precision)).value > 0


@pytest.mark.parametrize("sees_itself", [True, False])
def test_the_value_scales_with_the_unit_of_reward(sees_itself):
    means, precision = oracle.random_problem(3, sees_itself)
    value = lower_bound(means, SideInformation(precision)).value
    for scale in (7.0, 1e-6, 1e9):
        assert lower_bound(means * scale, SideInformation(precision)).value == pytest.approx(value / scale, rel=1e-8)
        assert lower_bound(means, SideInformation(precision * scale)).value == pytest.approx(value / scale, rel=1e-8)
    assert lower_bound(means + 5, SideInformation(precision)).value == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("sees_itself", [True, False])
def test_arms_in_another_order_have_the_same_bound_in_that_order(sees_itself):
    means, precision = oracle.random_problem(4, sees_itself)
    names = tuple(f"source {arm}" for arm in range(len(means)))
    bound = lower_bound(means, SideInformation(precision, names=names))
    order = np.random.default_rng(0).permutation(len(means))
    moved = SideInformation(precision[np.ix_(order, order)], names=tuple(names[arm] for arm in order))
    other = lower_bound(means[order], moved)
    assert other.value == pytest.approx(bound.value, rel=1e-8)
    assert other.allocation == pytest.approx(bound.allocation[order], rel=1e-6, abs=1e-9)
    assert set(other.binding) == set(bound.binding)


@pytest.mark.parametrize("sees_itself", [True, False])
def test_more_precision_never_costs_more(sees_itself):
    rng = np.random.default_rng(0)
    means, precision = oracle.random_problem(5, sees_itself)
    value = lower_bound(means, SideInformation(precision)).value
    for _ in range(30):
        row, column = rng.integers(len(means), size=2)
        sharper = precision.copy()
        sharper[row, column] += rng.uniform(0, 2)
        assert lower_bound(means, SideInformation(sharper)).value <= value * (1 + 1e-8)


def test_a_row_is_the_arm_played_and_a_column_the_arm_learned_about():
    # Only arm 2 tells of arm 1, and arm 1 of nobody: arm 2 pays.
    info = SideInformation([[1, 0, 0], [0, 0, 0], [0, 1, 1]])
    bound = lower_bound([1, 0.5, 0.4], info)
    assert bound.allocation[1] == 0
    assert bound.allocation[2] == pytest.approx(2 / 0.5**2)
    assert bound.binding == ("arm 1",)


def test_tied_best_arms_are_refused_or_taken_for_one():
    info = SideInformation.bandit(3, names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'a', 'b' tie for the best mean.*tie='merge'"):
        lower_bound([0.1 + 0.2, 0.3, 0], info)
    assert lower_bound([0.3, 0.3, 0.1], info, tie="merge").value == pytest.approx(2 / 0.2)
    assert lower_bound([0.3, 0.3, 0.3], info, tie="merge").value == 0


def test_a_single_arm_costs_nothing():
    assert lower_bound([0.3], SideInformation.bandit(1)).value == 0


def test_observations_with_a_bias_lower_no_bound():
    precision = np.eye(3)
    sharper = precision.copy()
    sharper[1, 2] = 100
    bias_sd = np.zeros((3, 3))
    bias_sd[1, 2] = 0.1
    value = lower_bound([1, 0.9, 0.5], SideInformation(precision)).value
    assert lower_bound([1, 0.9, 0.5], SideInformation(sharper, bias_sd)).value == pytest.approx(value)
    assert lower_bound([1, 0.9, 0.5], SideInformation(sharper)).value < value


def test_highs_takes_over_where_the_simplex_method_gives_up_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(module, "_simplex", lambda scaled: None)
    monkeypatch.setattr(module, "_reported_problems", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert lower_bound([1, 0.6, 0.5], SideInformation.bandit(3)).value == pytest.approx(2 / 0.4 + 2 / 0.5)
    assert len(caplog.records) == 1
    assert "gave up on the covering programme" in caplog.text


def test_an_answer_of_the_simplex_method_that_does_not_prove_itself_is_not_taken(monkeypatch):
    simplex = module._simplex
    monkeypatch.setattr(module, "_simplex", lambda scaled: tuple(0.9 * part for part in simplex(scaled)))
    assert lower_bound([1, 0.6, 0.5], SideInformation.bandit(3)).value == pytest.approx(2 / 0.4 + 2 / 0.5)


def test_without_scipy_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "_simplex", lambda scaled: None)
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install \"hf-ext\[data\]\""):
        lower_bound([1, 0.6, 0.5], SideInformation.bandit(3))


def test_near_ties_and_wide_ranges_need_no_fallback(monkeypatch):
    monkeypatch.setattr(module, "_highs", no_fallback)
    rng = np.random.default_rng(0)
    for seed in range(40):
        means, precision = oracle.random_problem(seed, sees_itself=seed % 2 == 0)
        means = means[0] - (means[0] - means) * 10 ** rng.uniform(-4, 0, len(means))
        bound = lower_bound(means, SideInformation(precision * 10 ** rng.uniform(-3, 3, precision.shape)))
        assert np.isfinite(bound.value)


@pytest.mark.parametrize(
    ("means", "settings", "message"),
    [
        ([1, np.nan, 0], {}, "means must be 3 finite numbers"),
        ([1, np.inf, 0], {}, "means must be 3 finite numbers"),
        ([1e308, -1e308, 0], {}, "means must be 3 finite numbers"),
        ([1, 0], {}, "means must be 3 finite numbers"),
        ([1, 0, 0], {"kind": "exact"}, "kind must be 'lp' or 'graves_lai', got 'exact'"),
        ([1, 0, 0], {"tie": "drop"}, "tie must be 'raise' or 'merge', got 'drop'"),
    ],
)
def test_bad_input_is_refused(means, settings, message):
    with pytest.raises(ValueError, match=message):
        lower_bound(means, SideInformation.bandit(3), **settings)


def test_numbers_beyond_float64_are_refused_and_not_answered_with_infinity():
    with pytest.raises(ValueError, match="plays to tell them apart exceed float64"):
        lower_bound([1e-200, 0, 5e-201], SideInformation.bandit(3))
    with pytest.raises(ValueError, match="differ by too many orders of magnitude"):
        lower_bound([1, 0, 0.5], SideInformation(np.diag([1e-300, 1e300, 1e-300])))
