"""Which way regret goes: 40 runs of 10,000 rounds. Constants, not slopes: the benchmark measures those."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ext.bandits import simulation
from hf_ext.bandits.lower_bound import lower_bound
from hf_ext.bandits.side_observations import SideInformation, simulate
from tests.bandits import oracle

HORIZON = 10_000
RUNS = {"horizon": HORIZON, "replicas": 40, "seed": 1}


@pytest.mark.parametrize("policy_name", ["purchase", "track"])
def test_where_every_arm_shows_all_regret_stops_growing(policy_name):
    curves = simulate(oracle.BANDIT_MEANS, SideInformation.full(8), policy_name, marks=[1000, HORIZON], **RUNS)
    early, late = curves.mean
    assert late - early <= 1


def test_where_a_hub_shows_all_purchase_has_the_least_regret_and_ucb1_the_most():
    regret = {
        name: simulate(oracle.HUB_MEANS, oracle.hub(), name, **RUNS).mean[0]
        for name in ("purchase", "thompson", "ucb_n", "ucb1")
    }
    assert regret["purchase"] < regret["thompson"] < regret["ucb_n"] < regret["ucb1"]


@pytest.fixture(scope="module")
def reveal_regret() -> np.ndarray:
    return oracle.reveal_regret(HORIZON, replicas=4000)


def test_the_exact_bound_is_above_the_regret_where_the_best_arm_cannot_see_itself(reveal_regret):
    relaxed = lower_bound(oracle.REVEAL_MEANS, oracle.reveal(), "lp").value
    assert reveal_regret.mean() < 2 * relaxed * np.log(HORIZON)


@pytest.mark.parametrize("policy_name", ["purchase", "track"])
def test_a_best_arm_that_cannot_see_itself_is_not_trusted_for_ever(policy_name, reveal_regret):
    curves = simulate(oracle.REVEAL_MEANS, oracle.reveal(), policy_name, **RUNS)
    # Only one arm shows anything, so a policy is its certificate alone: 40 of the plain loop's runs.
    assert abs(curves.mean[0] - reveal_regret.mean()) < 3 * curves.standard_error[0]
    # A leader that is wrong and never doubted would cost its gap every round: at least 0.3 here.
    assert curves.regret.max() < 0.3 * HORIZON / 2


def test_on_the_plain_bandit_no_run_of_purchase_goes_astray():
    curves = simulate(oracle.BANDIT_MEANS, SideInformation.bandit(8), "purchase", **RUNS)
    assert curves.regret.max() <= 5 * curves.mean[0]


def test_the_error_of_a_mean_is_that_of_the_replicas():
    curves = simulate([1, 0.5], SideInformation.bandit(2), horizon=50, replicas=5, marks=[10, 50])
    assert curves.standard_error == pytest.approx(np.std(curves.regret, axis=0, ddof=1) / np.sqrt(5))
    assert curves.regret.shape == (5, 2)
    assert curves.plays.sum(axis=1).tolist() == [50] * 5
    assert np.isnan(simulate([1, 0.5], SideInformation.bandit(2), horizon=5, replicas=1).standard_error).all()


def test_runs_do_not_depend_on_how_the_noise_is_cut(monkeypatch):
    arguments = {"horizon": 60, "replicas": 3, "seed": 4}
    whole = simulate(oracle.HUB_MEANS, oracle.hub(), **arguments)
    monkeypatch.setattr(simulation, "_MOST_NOISE", 7 * 3 * 10)
    pieces = simulate(oracle.HUB_MEANS, oracle.hub(), **arguments)
    assert (pieces.plays == whole.plays).all()
