"""What a policy refuses: observations that cannot be, settings out of bounds, states of another policy or damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_ext.bandits.lower_bound import lower_bound
from hf_ext.bandits.side_observations import SideInformation, SideObservationPolicy, simulate
from tests.bandits import oracle


@pytest.mark.parametrize(
    ("arm", "values", "counts", "message"),
    [
        (3, [1, np.nan, np.nan], None, "arm must be a whole number from 0 to 2, got 3"),
        (-1, [1, np.nan, np.nan], None, "arm must be a whole number from 0 to 2, got -1"),
        (True, [1, np.nan, np.nan], None, "arm must be a whole number from 0 to 2, got True"),
        (0, [1, np.nan], None, r"values must be 3 numbers, one an arm, got shape \(2,\)"),
        (0, 1.0, None, r"values must be 3 numbers, one an arm, got shape \(\)"),
        (0, [np.inf, np.nan, np.nan], None, "the value inf of 'a', shown by 'a', cannot be added up"),
        (0, [-np.inf, np.nan, np.nan], None, "the value -inf of 'a'"),
        (0, [1e99, np.nan, np.nan], [1e300, 0, 0], r"the value 1e\+99 of 'a'"),
        (0, [1e200, np.nan, np.nan], None, r"the value 1e\+200 of 'a'"),
        (0, [1, 2, np.nan], None, "playing 'a' was said to show 'b' as 2, but precision at row 0, column 1 is 0"),
        (0, [1, np.nan, np.nan], [-1, 0, 0], "the count of 'a' is -1"),
        (0, [1, np.nan, np.nan], [np.nan, 0, 0], "the count of 'a' is nan"),
        (0, ["much", np.nan, np.nan], None, "values must be an array of numbers: could not convert"),
        (0, [1, np.nan, np.nan], ["1", "many", "0"], "counts must be an array of numbers: could not convert"),
    ],
)
def test_what_cannot_have_been_observed_is_refused_and_nothing_is_learned(arm, values, counts, message):
    policy = SideObservationPolicy(SideInformation.bandit(3, names=["a", "b", "c"]), clip_sd=6)
    policy.tell(0, [0.5, np.nan, np.nan])
    state = policy.state_dict()
    with pytest.raises(ValueError, match=message):
        policy.tell(arm, values, counts)
    assert policy.state_dict() == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "exp3"}, "policy must be one of 'purchase', .*, got 'exp3'"),
        ({"loglog": -1}, "loglog must be a finite number, at least 0, got -1"),
        ({"replan_slack": np.nan}, "replan_slack must be a finite number"),
        ({"forced_eps": np.inf}, "forced_eps must be a finite number"),
        ({"window": 1}, "window must be a finite number of observations above 1, got 1"),
        ({"clip_sd": 0}, "clip_sd must be a finite number above 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"maximize": "no"}, "maximize must be True or False, got 'no'"),
        ({"costs": [1, 0]}, "costs must be 2 finite numbers above 0"),
        ({"costs": [1]}, "costs must be 2 finite numbers above 0"),
        ({"costs": [1, 1], "policy": "track"}, "policy='track' does not know of costs"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SideObservationPolicy(SideInformation.bandit(2), **settings)


def test_a_matrix_alone_is_refused_with_what_to_pass():
    for use in (
        SideObservationPolicy,
        lambda matrix: lower_bound([1, 0], matrix),
        lambda matrix: simulate([1, 0], matrix, horizon=5),
    ):
        with pytest.raises(TypeError, match=r"got ndarray. Pass SideInformation\(precision\)"):
            use(np.eye(2))


@pytest.mark.parametrize("num_arms", [0, 1.5, "2"])
def test_a_batch_of_no_whole_number_is_refused(num_arms):
    with pytest.raises(ValueError, match="num_arms must be a whole number"):
        SideObservationPolicy(SideInformation.bandit(2)).ask_batch(num_arms)


@pytest.mark.parametrize("policy_name", ["thompson", "ucb_n", "ucb1"])
def test_a_baseline_refuses_an_arm_that_it_could_never_learn_of_by_playing_it(policy_name):
    with pytest.raises(ValueError, match="arm 0 does not observe itself"):
        SideObservationPolicy(oracle.reveal(), policy_name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number"),
        ({"replicas": 0}, "replicas must be a whole number"),
        ({"means": [1, np.nan]}, "means must be 2 finite numbers"),
        ({"means": [1]}, "means must be 2 finite numbers"),
        ({"marks": [5, 5]}, "marks must be rising whole rounds from 1 to 10"),
        ({"marks": [11]}, "marks must be rising whole rounds from 1 to 10"),
        ({"marks": [2.5]}, "marks must be rising whole rounds from 1 to 10"),
        ({"marks": "12"}, "marks must be rising whole rounds from 1 to 10"),
        ({"horizon": 10.5}, "horizon must be a whole number"),
        ({"marks": []}, "marks must be rising whole rounds from 1 to 10"),
        ({"info": SideInformation(np.ones((2, 2)), [[0, 1], [0, 0]])}, "Leave bias_sd out"),
    ],
)
def test_a_simulation_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"means": [1, 0], "info": SideInformation.bandit(2), "horizon": 10, **settings})


def damaged(state: dict, **changes) -> dict:
    return {**json.loads(json.dumps(state)), **changes}


def test_a_state_of_another_policy_or_of_other_arms_is_refused_with_both():
    state = SideObservationPolicy(SideInformation.bandit(2, names=["maths", "web"])).state_dict()
    with pytest.raises(ValueError, match=r"names \['maths', 'web'\], and this one has \['maths', 'code', 'web'\]"):
        SideObservationPolicy(SideInformation.bandit(3, names=["maths", "code", "web"])).load_state_dict(state)
    with pytest.raises(ValueError, match="policy 'purchase', and this one has 'track'"):
        SideObservationPolicy(SideInformation.bandit(2, names=["maths", "web"]), "track").load_state_dict(state)
    with pytest.raises(ValueError, match="precision"):
        SideObservationPolicy(SideInformation.bandit(2, sd=2, names=["maths", "web"])).load_state_dict(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"plays": [1.0]},
        {"plays": [1.0, "many"]},
        {"plays": None},
        {"information": [-1.0, 1.0]},
        {"weighted_sums": [float("nan"), 1.0]},
        {"generator": {}},
        {"generator": None},
        {"generator": {"bit_generator": "MT19937", "state": {}}},
        {"settings": []},
        {"more": 1},
        {"clipped": 1e400},
        {"clipped": 1.5},
        {"planned_leader": 2},
        {"plays": [0.0, 0.0]},  # what was learned without a play
        {"plays": [0.0, 1.0]},
        {"weighted_sums": [1e250, 0.0]},
        {"weighted_sums": [1.0, 1.0]},  # a sum without information
        {"pair_information": [[1.0, 0.0], [0.0, 0.0]]},
    ],
)
def test_a_damaged_state_is_refused_and_leaves_the_policy_as_it_was(changes):
    policy = SideObservationPolicy(SideInformation.bandit(2))
    policy.tell(0, [1.0, np.nan])
    state = policy.state_dict()
    with pytest.raises(ValueError, match="state"):
        policy.load_state_dict(damaged(state, **changes))
    assert policy.state_dict() == state


@pytest.mark.parametrize("name", ["information", "weighted_sums", "pair_information", "pair_sums"])
def test_sums_of_a_state_that_do_not_add_up_are_refused_where_a_bias_bounds_them(name):
    policy = SideObservationPolicy(SideInformation(np.ones((2, 2)), bias_sd=[[0, 0.5], [0.5, 0]]))
    for arm in (0, 1, 0):
        policy.tell(arm, [1.0, 0.5])
    state = policy.state_dict()
    policy.load_state_dict(damaged(state))
    with pytest.raises(ValueError, match="information and weighted_sums are not those of pair_information"):
        policy.load_state_dict(damaged(state, **{name: (1.001 * np.array(state[name])).tolist()}))
    assert policy.state_dict() == state


def test_a_state_that_a_window_has_faded_to_nothing_is_taken():
    policy = SideObservationPolicy(SideInformation.bandit(2, sd=1e-3), window=1.1)
    policy.tell(0, [1.0, np.nan])
    states = []
    for _ in range(340):
        policy.tell(1, [np.nan, 1.0])
        states.append(policy.state_dict())
    assert states[-1]["information"][0] == 0
    for state in states:
        SideObservationPolicy(SideInformation.bandit(2, sd=1e-3), window=1.1).load_state_dict(damaged(state))
