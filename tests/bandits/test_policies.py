"""Policies against plain loops, closed forms and each other."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from hf_ext.bandits import rules
from hf_ext.bandits.lower_bound import lower_bound
from hf_ext.bandits.side_observations import SideInformation, SideObservationPolicy, simulate
from tests.bandits import oracle

POLICIES = ("purchase", "purchase_ucb", "track", "thompson", "ucb_n", "ucb1")


def ring() -> SideInformation:
    return SideInformation.graph(np.eye(6) + np.roll(np.eye(6), 1, axis=0) + np.roll(np.eye(6), -1, axis=0), sd=0.7)


class World:
    """Means to be learned, with the noise of every round fixed beforehand, whoever plays."""

    def __init__(self, means, info: SideInformation, rounds: int, seed: int = 0) -> None:
        self.means = np.asarray(means, dtype=float)
        self.precision = info.precision
        self.noise = np.random.default_rng(seed).standard_normal((rounds, len(self.means)))

    def values(self, t: int, arm: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            sd = np.where(self.precision[arm] > 0, 1 / np.sqrt(self.precision[arm]), np.nan)
        return self.means + sd * self.noise[t]


def play(policy: SideObservationPolicy, world: World, rounds: range) -> list[int]:
    arms = []
    for t in rounds:
        arms.append(policy.ask())
        policy.tell(arms[-1], world.values(t, arms[-1]))
    return arms


def test_means_are_those_of_weighted_least_squares():
    info = SideInformation(np.random.default_rng(1).uniform(0.1, 4, (4, 4)))
    policy = SideObservationPolicy(info)
    world = World([1, 2, 3, 4], info, 50)
    rows, targets, weights = [], [], []
    for t in range(50):
        arm = t % 4
        policy.tell(arm, world.values(t, arm))
        rows.append(np.eye(4))
        targets.append(world.values(t, arm))
        weights.append(np.sqrt(info.precision[arm]))
    weight = np.concatenate(weights)
    solution = np.linalg.lstsq(np.concatenate(rows) * weight[:, None], np.concatenate(targets) * weight, rcond=None)[0]
    assert policy.means == pytest.approx(solution, rel=1e-10)
    assert policy.information == pytest.approx(info.precision.T @ policy.plays)
    assert policy.plays.sum() == 50


def test_purchase_by_ucb_picks_the_arm_of_ucb1_every_round_where_arms_see_themselves_alone():
    info = SideInformation.bandit(8)
    world = World(oracle.BANDIT_MEANS, info, 2000)
    arms = play(SideObservationPolicy(info, "purchase_ucb"), world, range(2000))
    plays, sums = np.zeros(8), np.zeros(8)
    for t, arm in enumerate(arms):
        index = np.full(8, np.inf)
        tried = plays > 0
        index[tried] = sums[tried] / plays[tried] + np.sqrt(2 * np.log(t + 1) / plays[tried])
        assert arm == index.argmax()
        plays[arm] += 1
        sums[arm] += world.values(t, arm)[arm]
    assert len(set(arms)) == 8
    assert arms == play(SideObservationPolicy(info, "ucb1"), world, range(2000))


@pytest.mark.parametrize("policy_name", ["purchase", "purchase_ucb"])
@pytest.mark.parametrize(
    ("means", "info"),
    [
        (oracle.HUB_MEANS, oracle.hub()),
        (oracle.REVEAL_MEANS, oracle.reveal()),
        ((1, 0.8, 0.9, 0.5, 0.6, 0.7), ring()),
        ((1, 0.8, 0.3), SideInformation([[0, 1, 0], [2.3, 0.4, 0], [1, 0, 3]])),
    ],
    ids=["hub", "reveal", "ring", "blind best arm"],
)
def test_purchase_buys_as_the_rule_says(policy_name, means, info):
    world = World(means, info, 1500)
    policy = SideObservationPolicy(info, policy_name, seed=3)
    twin = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3).spawn(2)[1]))
    checked = 0
    for t in range(1500):
        draws = twin.standard_normal(len(means))
        arm = policy.ask()
        if (policy.information > 0).all():
            assert arm == oracle.purchase_arm(
                policy_name, policy.means, policy.information, info.precision, t + 1, draws
            )
            checked += 1
        policy.tell(arm, world.values(t, arm))
    assert checked >= 1490


@pytest.mark.parametrize("policy_name", ["purchase_ucb", "track", "ucb_n", "ucb1"])
@pytest.mark.parametrize(
    ("means", "info"), [(oracle.HUB_MEANS, oracle.hub()), ((1, 0.8, 0.9, 0.5, 0.6, 0.7), ring())], ids=["hub", "ring"]
)
def test_a_simulation_plays_what_the_policy_does_in_a_loop(policy_name, means, info):
    rounds = 700
    seed = 5
    noise = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed).spawn(2)[0]))
    shocks = np.concatenate([noise.standard_normal((length, 3, len(means))) for length in (256, 256, rounds - 512)])
    curves = simulate(means, info, policy_name, horizon=rounds, replicas=3, seed=seed, marks=[1, 300, rounds])
    for replica in range(3):
        world = World(means, info, rounds)
        world.noise = shocks[:, replica]
        arms = play(SideObservationPolicy(info, policy_name), world, range(rounds))
        assert np.array_equal(np.bincount(arms, minlength=len(means)), curves.plays[replica])
        regret = np.cumsum(max(means) - np.asarray(means)[arms])
        assert curves.regret[replica] == pytest.approx(regret[[0, 299, rounds - 1]])


def test_noise_that_a_loop_draws_from_the_same_seed_is_not_that_of_the_policy():
    info = SideInformation.bandit(4)
    means = np.array([1.0, 0.6, 0.4, 0.2])
    regret = []
    for seed in range(12):  # World draws its noise from default_rng(seed)
        policy = SideObservationPolicy(info, "thompson", seed=seed)
        play(policy, World(means, info, 500, seed), range(500))
        regret.append(policy.plays @ (means.max() - means))
    others = simulate(means, info, "thompson", horizon=500, replicas=200).regret[:, -1]
    spread = np.hypot(np.std(others) / np.sqrt(len(others)), np.std(others) / np.sqrt(len(regret)))
    assert abs(np.mean(regret) - np.mean(others)) < 4 * spread


@pytest.mark.parametrize("policy_name", POLICIES)
def test_a_policy_from_its_state_plays_the_same_next_1000_arms(policy_name):
    info = oracle.hub()
    world = World(oracle.HUB_MEANS, info, 1300)
    policy = SideObservationPolicy(info, policy_name, seed=7)
    play(policy, world, range(300))
    restored = SideObservationPolicy(info, policy_name, seed=8)
    restored.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    arms = play(policy, world, range(300, 1300))
    assert play(restored, world, range(300, 1300)) == arms
    assert restored.state_dict() == policy.state_dict()


def test_track_certifies_the_best_arm_and_then_plays_it_alone():
    info = SideInformation.bandit(3, sd=0.5)
    policy = SideObservationPolicy(info, "track")
    assert (policy.certificate == [np.inf, 0, 0]).all()
    play(policy, World([1, 0.4, 0.1], info, 800), range(800))
    assert policy.leader == 0
    m, amount = policy.means, policy.information
    for arm in (1, 2):
        nats = (m[0] - m[arm]) ** 2 / (2 * (1 / amount[arm] + 1 / amount[0]))
        assert policy.certificate[arm] == pytest.approx(nats)
        assert nats >= policy.threshold
    assert policy.threshold == pytest.approx(np.log(801))
    assert policy.ask() == 0


def test_track_plans_when_the_leader_changes_or_exploration_has_grown_by_a_tenth(monkeypatch):
    plans = []
    covering_plan = rules.covering_plan
    monkeypatch.setattr(rules, "covering_plan", lambda *problem: plans.append(1) or covering_plan(*problem))
    info = SideInformation.bandit(8)
    policy = SideObservationPolicy(info, "track")
    world = World(oracle.BANDIT_MEANS, info, 2000)
    leaders = []
    for t in range(2000):
        play(policy, world, range(t, t + 1))
        leaders.append(policy.leader)
    changes = sum(former != latter for former, latter in pairwise(leaders))
    explorations = policy.state_dict()["explorations"]
    assert 100 < explorations < 2000
    assert 0 < len(plans) <= 1 + changes + np.log(explorations) / np.log(1.1)


def test_a_bias_of_zero_changes_nothing():
    info = oracle.hub()
    unbiased = SideInformation(info.precision, np.zeros((10, 10)))
    bias_sd = np.zeros((10, 10))
    bias_sd[0, 1] = 1  # where nothing is observed: the sums over pairs are used, and must agree
    pairwise = SideInformation(info.precision, bias_sd)
    world = World(oracle.HUB_MEANS, info, 500)
    policies = [SideObservationPolicy(matrix) for matrix in (info, unbiased, pairwise)]
    arms = [play(policy, world, range(500)) for policy in policies]
    assert arms[0] == arms[1] == arms[2]
    assert policies[2].means == pytest.approx(policies[0].means, rel=1e-12)
    assert policies[2].information == pytest.approx(policies[0].information, rel=1e-12)


def test_what_a_similar_arm_tells_is_bounded_by_its_bias():
    bias_sd = np.array([[0, 0.5], [0, 0]])
    policy = SideObservationPolicy(SideInformation([[1, 1], [0, 1]], bias_sd))
    for _ in range(2_000):
        policy.tell(0, [1, 0.2])
    assert policy.information[0] == pytest.approx(2_000)
    assert policy.information[1] == pytest.approx(1 / (0.5**2 + 1 / 2_000))
    assert policy.certificate[1] < 0.8**2 / 2 / 0.5**2  # however often arm 0 is played
    policy.tell(1, [np.nan, 0.6])
    weight = 1 / (0.5**2 + 1 / 2_000)
    assert policy.means[1] == pytest.approx((0.2 * weight + 0.6) / (weight + 1))


@pytest.mark.parametrize("policy_name", ["purchase", "purchase_ucb", "track"])
def test_a_cheap_look_through_a_bias_is_not_bought_for_ever(policy_name):
    # Arm 1 is nearly as good as arm 0 and shows arm 2 sharply, but 1 too low; only arm 2 itself tells the truth.
    precision = np.eye(3)
    precision[1, 2] = 100
    bias_sd = np.zeros((3, 3))
    bias_sd[1, 2] = 0.8
    info = SideInformation(precision, bias_sd)
    world = World([1, 0.8, 1.5], SideInformation(precision), 3000)
    policy = SideObservationPolicy(info, policy_name)
    for t in range(3000):
        arm = policy.ask()
        values = world.values(t, arm)
        values[2] -= arm == 1
        policy.tell(arm, values)
    assert policy.leader == 2
    assert policy.plays[2] > 2000


def test_missing_observations_add_nothing_and_are_asked_for_elsewhere():
    info = SideInformation.full(3)
    policy = SideObservationPolicy(info)
    asked_arms = []
    for _ in range(12):
        asked_arms.append(policy.ask())
        policy.tell(asked_arms[-1], [1, 0.5, 0.2 if asked_arms[-1] == 2 else np.nan])
        if policy.information[2] > 0:
            break
    assert asked_arms == [0, 1, 2]
    assert policy.information.tolist() == [3, 3, 1]
    policy.tell(0, [np.nan] * 3)
    assert policy.information.tolist() == [3, 3, 1]
    assert policy.plays[0] == 2


@pytest.mark.parametrize("policy_name", ["purchase", "track", "thompson"])
def test_an_arm_that_never_shows_anything_is_asked_again_and_again(policy_name):
    policy = SideObservationPolicy(SideInformation.bandit(3), policy_name)
    for _ in range(40):
        arm = policy.ask()
        policy.tell(arm, np.where((np.arange(3) == arm) & (arm != 1), 1.0, np.nan))
    assert policy.plays[1] >= 38
    assert np.isnan(policy.means[1])


def test_counts_weigh_as_that_many_observations():
    info = SideInformation.bandit(2, sd=2)
    one, many = SideObservationPolicy(info), SideObservationPolicy(info)
    for value in (1.0, 2.0, 6.0):
        one.tell(0, [value, np.nan])
    many.tell(0, [3.0, np.nan], counts=[3, 0])
    assert many.means[0] == pytest.approx(one.means[0])
    assert many.information == pytest.approx(one.information)
    many.tell(1, [np.nan, 7.0], counts=[0, 0])
    assert np.isnan(many.means[1])


@pytest.mark.parametrize("policy_name", POLICIES)
def test_a_batch_spreads_over_arms_and_changes_nothing_that_was_learned(policy_name):
    info = SideInformation.bandit(4)
    policy = SideObservationPolicy(info, policy_name)
    assert sorted(policy.ask_batch(4)) == [0, 1, 2, 3]
    for arm in range(4):
        policy.tell(arm, np.where(np.arange(4) == arm, 1.0, np.nan))
    before = policy.means, policy.information, policy.plays
    batch = policy.ask_batch(200)
    for former, latter in zip(before, (policy.means, policy.information, policy.plays), strict=True):
        assert np.array_equal(former, latter)
    assert (np.bincount(batch, minlength=4) > 0).all()


def test_a_batch_of_one_is_what_asking_gives():
    info = oracle.hub()
    world = World(oracle.HUB_MEANS, info, 200)
    policy, twin = SideObservationPolicy(info), SideObservationPolicy(info)
    for t in range(200):
        arm = policy.ask()
        assert twin.ask_batch(1).tolist() == [arm]
        policy.tell(arm, world.values(t, arm))
        twin.tell(arm, world.values(t, arm))


def test_under_costs_the_cheaper_of_two_equal_informants_is_asked_until_the_best_is_certified():
    # Arms 2 and 3 both show the two that matter, one at a tenth of the price.
    precision = np.diag([0.01, 0.01, 1, 1])
    precision[2:, :2] = 1
    info = SideInformation(precision)
    world = World([1, 0.6, 0, 0], info, 600)
    policy = SideObservationPolicy(info, costs=[1, 1, 1, 0.1])
    for t in range(600):
        arm = policy.ask()
        policy.tell(arm, world.values(t, arm))
        if (policy.certificate >= policy.threshold).all():
            break
    assert policy.leader == 0
    assert policy.plays[3] > 0.8 * policy.plays.sum()
    assert t < 599


def test_a_window_follows_means_that_drift():
    info = SideInformation.bandit(2, sd=0.3)
    world = World([1, 0], info, 800)
    for window, follows in ((50, True), (None, False)):
        policy = SideObservationPolicy(info, window=window)
        world.means = np.array([1.0, 0.0])
        play(policy, world, range(500))
        assert policy.leader == 0
        world.means = np.array([0.2, 0.5])
        play(policy, world, range(500, 700))
        assert (policy.leader == 1) is follows
        if window:
            assert policy.plays.sum() == pytest.approx(window)


@pytest.mark.parametrize("policy_name", POLICIES)
def test_losses_are_minimised_as_rewards_are_maximised(policy_name):
    info = oracle.hub()
    world = World(oracle.HUB_MEANS, info, 300)
    policy = SideObservationPolicy(info, policy_name)
    mirror = SideObservationPolicy(info, policy_name, maximize=False)
    for t in range(300):
        arm = policy.ask()
        assert mirror.ask() == arm
        policy.tell(arm, world.values(t, arm))
        mirror.tell(arm, -world.values(t, arm))
    assert mirror.means == pytest.approx(-policy.means)
    assert mirror.leader == policy.leader


@pytest.mark.parametrize("policy_name", ["purchase", "track"])
def test_the_unit_of_reward_changes_no_arm(policy_name):
    info = oracle.hub()
    tiny = SideInformation(info.precision * 2.0**40)
    world = World(oracle.HUB_MEANS, info, 400)
    policy, twin = SideObservationPolicy(info, policy_name), SideObservationPolicy(tiny, policy_name)
    for t in range(400):
        arm = policy.ask()
        assert twin.ask() == arm
        policy.tell(arm, world.values(t, arm))
        twin.tell(arm, world.values(t, arm) / 2.0**20)


@pytest.mark.parametrize("unit", [1e-60, 1e-20, 1.0, 1e20, 1e90])
@pytest.mark.parametrize("policy_name", ["purchase", "track"])
def test_arms_that_are_level_are_all_looked_at_in_any_unit(policy_name, unit):
    """Equal values leave no gap to plan with, and a plan of plays without end."""
    info = SideInformation.bandit(3, sd=unit)
    policy = SideObservationPolicy(info, policy_name, seed=2)
    for _ in range(60):
        arm = policy.ask()
        policy.tell(arm, np.where(np.arange(3) == arm, 0.0, np.nan))
    assert policy.plays.min() >= (3 if policy_name == "track" else 10)
    again = SideObservationPolicy(info, policy_name, seed=2)
    again.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert [again.ask() for _ in range(20)] == [policy.ask() for _ in range(20)]


def test_a_spike_is_moved_to_the_reach_of_its_noise_and_counted():
    info = SideInformation.bandit(2)
    policy = SideObservationPolicy(info, clip_sd=6)
    for _ in range(100):
        policy.tell(0, [1.0, np.nan])
    policy.tell(0, [1e6, np.nan])
    assert policy.clipped == 1
    assert policy.means[0] == pytest.approx((100 + 1 + 6 * np.sqrt(1 + 1 / 100)) / 101)
    policy.tell(0, [7.0, np.nan])
    assert policy.clipped == 1


def test_the_bound_under_the_means_so_far_names_what_binds():
    info = SideInformation.bandit(3, names=["a", "b", "c"])
    policy = SideObservationPolicy(info)
    with pytest.raises(ValueError, match="'a' was never observed"):
        policy.lower_bound()
    for arm, value in enumerate((1.0, 0.5, 0.6)):
        policy.tell(arm, np.where(np.arange(3) == arm, value, np.nan))
    assert policy.lower_bound().value == pytest.approx(lower_bound([1, 0.5, 0.6], info).value)
    assert policy.lower_bound().binding == ("b", "c")


@pytest.mark.parametrize("policy_name", POLICIES)
def test_a_single_arm_is_always_played(policy_name):
    info = SideInformation.bandit(1)
    policy = SideObservationPolicy(info, policy_name)
    assert play(policy, World([0.3], info, 5), range(5)) == [0] * 5
    assert policy.leader == 0
    assert policy.lower_bound().value == 0
    assert simulate([0.3], info, policy_name, horizon=10, replicas=2).regret.tolist() == [[0], [0]]
