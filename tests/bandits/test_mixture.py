"""The mixture without a trainer: which rows it draws, what it learns, what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from hf_ext import SideObservationMixture

SIZES = {"good": 40, "middling": 25, "harmful": 31}
MEANS = {"good": 1.0, "middling": 0.4, "harmful": -0.5}


def rows(n: int, **columns: Any) -> Dataset:
    return Dataset.from_dict({"text": [str(i) for i in range(n)], **columns})


def made(batches: int = 4, rows_per_batch: int = 8, **settings: Any) -> SideObservationMixture:
    fields = {"reward": "loss", "reward_every": 1, "seed": 5}
    mix = SideObservationMixture({name: rows(n) for name, n in SIZES.items()}, **(fields | settings))
    mix.lay_out(list(SIZES.values()), rows_per_batch, batches)
    return mix


def play(mix: SideObservationMixture, steps: int, first: int = 0, noise: float = 0.3) -> SideObservationMixture:
    """Steps whose rewards are the means of the sources and noise that depends on the step alone."""
    means = list(MEANS.values())
    for step in range(first, first + steps):
        batches = range(step * mix.batches_per_step, (step + 1) * mix.batches_per_step)
        drawn = [mix.rows_of(batch)[0] for batch in batches]
        draws = np.random.default_rng((9, step)).normal(size=len(drawn))
        mix.num_trained = (step + 1) * mix.batches_per_step
        if not mix.rewards_blocks and mix.is_observed(step):
            mix.tell(step, [means[source] + noise * z for source, z in zip(drawn, draws, strict=True)])
        elif mix.rewards_blocks and (step + 1) % mix.reward_every == 0:
            block = step + 1 - mix.reward_every
            leader = mix.arms[block * mix.batches_per_step]
            mix.tell(block, [means[leader] + noise * draws[0]])
    return mix


@pytest.mark.parametrize("settings", [{}, {"reward": lambda trainer: 0.0, "reward_every": 2}, {"policy": "thompson"}])
def test_the_best_source_leads_and_the_others_keep_their_floor(settings: dict[str, Any]) -> None:
    mix = play(made(floor_share=0.05, **settings), 400)
    shares = mix.shares
    assert shares["good"] > 0.75
    assert 0.01 < shares["harmful"] < 0.1
    for name, mean in MEANS.items():
        assert mix.means[name] == pytest.approx(mean, abs=4 * mix.standard_errors[name])


def test_a_mean_and_its_error_are_those_of_weighted_observations() -> None:
    """Without forgetting and with one variance: the plain mean, and the widened standard error of a mean."""
    mix = made(reward_window=1e9, floor_share=1 / 3)
    values: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for step in range(60):
        drawn = [mix.rows_of(4 * step + place)[0] for place in range(4)]
        rewards = np.random.default_rng((1, step)).normal(size=4).tolist()
        for source, reward in zip(drawn, rewards, strict=True):
            values[source].append(reward)
        mix.tell(step, rewards)
    for source, name in enumerate(SIZES):
        observed = np.array(values[source])
        assert mix.means[name] == pytest.approx(observed.mean(), abs=0.15)
        assert mix.standard_errors[name] == pytest.approx((1.2 / len(observed)) ** 0.5, rel=0.3)


def test_a_floor_draw_tells_of_its_source_whoever_led() -> None:
    """The side information: sources that never lead are known from the draws of their floor share."""
    mix = play(made(floor_share=0.1), 300)
    late = range(400, 1200)
    harmful = [batch for batch in late if mix.batch_sources[batch] == 2]
    assert len(harmful) > 40
    assert sum(mix.arms[batch] == 2 for batch in harmful) < len(harmful) / 2
    assert mix.means["harmful"] == pytest.approx(MEANS["harmful"], abs=0.2)


def test_a_source_is_read_through_before_a_row_comes_again() -> None:
    mix = play(made(floor_share=0.2), 100)
    read: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for batch in range(400):
        source, positions = mix.rows_of(batch)
        assert len(positions) == 8
        read[source] += positions.tolist()
    for source, size in enumerate(SIZES.values()):
        readings = [read[source][start : start + size] for start in range(0, len(read[source]), size)]
        assert len(readings) > 2
        assert all(sorted(reading) == list(range(size)) for reading in readings[:-1])
        assert readings[0] != readings[1]


def test_rows_are_a_pure_function_of_the_arms() -> None:
    mix = play(made(), 40)
    again = made()
    again.load_state_dict(json.loads(json.dumps(mix.state_dict(), allow_nan=False)))
    for batch in np.random.default_rng(0).permutation(160):
        source, positions = mix.rows_of(int(batch))
        other, same = again.rows_of(int(batch))
        assert source == other
        assert positions.tolist() == same.tolist()


@pytest.mark.parametrize("settings", [{}, {"reward": "probe_drop", "reward_every": 2}, {"floor_share": 0.0}])
@pytest.mark.parametrize("steps", [2, 30])
def test_a_state_goes_on_as_the_mixture_would_have(settings: dict[str, Any], steps: int) -> None:
    if settings.get("reward") == "probe_drop":
        settings = settings | {"target": rows(6)}
    mix = play(made(**settings), steps)
    again = made(**settings)
    again.load_state_dict(json.loads(json.dumps(mix.state_dict(), allow_nan=False)))
    for one in (mix, again):
        play(one, 40, first=steps)
    assert mix.arms == again.arms
    assert mix.state_dict() == again.state_dict()


def test_target_rows_are_read_on_but_those_whose_losses_are_compared_stay() -> None:
    mix = made(reward="alignment", target=rows(10), target_rows=4)
    positions = np.concatenate([mix.target_positions(number, 10) for number in range(5)])
    assert sorted(positions[:10]) == sorted(positions[10:20]) == list(range(10))
    mix = made(reward="probe_drop", target=rows(10), target_rows=4)
    assert Counter(mix.target_positions(0, 10).tolist()) == Counter(mix.target_positions(7, 10).tolist())
    assert len(mix.target_positions(0, 3)) == 3


def test_rewards_that_are_not_finite_are_passed_over() -> None:
    mix = play(made(), 20)
    means = mix.means
    mix.rows_of(83)
    mix.tell(20, [float("nan"), float("inf"), float("-inf"), float("nan")])
    mix.tell(20, [1e101, -1e308, 1e200, -1e150])  # beyond what can be squared and added up
    assert mix.means == means


STREAM = IterableDataset.from_generator(lambda: iter([{"text": "a"}]))


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ({}, {}, "name at least one"),
        ([rows(3)], {}, "must map the name"),
        ({"a": rows(3), 5: rows(3)}, {}, "must be a text, got 5"),
        ({"a": rows(3), "b": rows(0)}, {}, "source 'b' is empty"),
        ({"a": rows(3), "b": STREAM}, {}, r"source 'b' is a IterableDataset, .*which a stream cannot give"),
        ({"a": rows(3), "b": [1, 2]}, {}, "source 'b' is a list"),
        ({"a": rows(3), "b": rows(3, id=[1, 2, 3])}, {}, r"source 'b' and source 'a' have unlike columns: \['id'\]"),
        ({"a": rows(3)}, {"target": rows(0)}, "the target is empty"),
        ({"a": rows(3)}, {"target": rows(2, id=[1, 2])}, "the target and source 'a' have unlike columns"),
        ({"a": rows(3)}, {"reward": "alignment"}, "needs target="),
        ({"a": rows(3)}, {"reward": "gain"}, "reward must be one of"),
        ({"a": rows(3), "b": rows(3)}, {"floor_share": 0.6}, "no more than 0.5"),
        ({"a": rows(3)}, {"floor_share": float("nan")}, "floor_share must be a number"),
        ({"a": rows(3)}, {"reward_every": 0}, "reward_every must be a whole number"),
        ({"a": rows(3)}, {"reward_window": 1}, "reward_window must be a finite number, at least 2"),
        ({"a": rows(3)}, {"target_rows": -1}, "target_rows must be"),
        ({"a": rows(3)}, {"seed": -1}, "seed must be"),
        ({"a": rows(3)}, {"policy": "greedy"}, "greedy"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(sources: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SideObservationMixture(sources, **({"reward": "loss"} | settings))


def test_one_source_alone_is_drawn_from() -> None:
    mix = SideObservationMixture({"a": rows(3)}, reward="loss", reward_every=1)
    mix.lay_out([3], 2, 1)
    for step in range(6):
        assert mix.rows_of(step)[0] == 0
        mix.tell(step, [1.0])
    assert mix.means == {"a": pytest.approx(1.0)}


def test_a_state_of_other_sources_or_settings_is_refused_and_both_are_listed() -> None:
    state = play(made(), 10).state_dict()
    other = SideObservationMixture({"maths": rows(3), "web": rows(4)}, reward="loss")
    with pytest.raises(ValueError, match=r"sources was \['good', 'middling', 'harmful'\], is \['maths', 'web'\]"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="rows of a micro-batch over all processes was 8, is 4"):
        made(rows_per_batch=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"floor_share was 0\.02, is 0\.1"):
        made(floor_share=0.1).load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"arms": "x"},
        {"arms": "eJw="},
        {"policy": {}},
        {"waiting": [[1]]},
        {"waiting": [[3, 0, 1.0]]},
        {"waiting": [[0, -1, 1.0]]},
        {"waiting": [[0, 0, float("inf")]]},
        {"spread": {}},
        {"num_trained": None},
        {"num_trained": -1},
        {"num_trained": 41},  # more than were drawn
        {"num_trained": 1.5},
        {"num_trained": float("inf")},
        {"former_loss": float("inf")},
    ],
)
def test_a_damaged_state_is_refused_and_the_mixture_begins_anew(damage: dict[str, Any]) -> None:
    state = play(made(), 10).state_dict()
    mix = made()
    with pytest.raises(ValueError, match="damaged"):
        mix.load_state_dict(state | damage)
    assert mix.state_dict() == made().state_dict()
    with pytest.raises(ValueError, match="no state of a SideObservationMixture"):
        mix.load_state_dict({})


def test_the_first_steps_look_at_every_source_twice_however_rarely_it_is_measured_later() -> None:
    mix = made(batches=2, reward_every=50, floor_share=0.0)
    for step in range(3):
        assert mix.is_observed(step)
        mix.tell(step, [float(mix.rows_of(2 * step + place)[0]) for place in range(2)])
    assert not mix.is_observed(3)
    assert Counter(mix.batch_sources[:6]) == {0: 2, 1: 2, 2: 2}
    assert mix.means == {name: pytest.approx(position) for position, name in enumerate(SIZES)}


@pytest.mark.parametrize("change", [{"looks": [-1, 2, 2]}, {"squares": [0, 0, -1]}, {"mean_square": float("nan")}])
def test_a_spread_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    state = play(made(), 10).state_dict()
    with pytest.raises(ValueError, match="damaged"):
        made().load_state_dict(state | {"spread": state["spread"] | change})


def test_names_of_sources_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["_hidden", r"$x$ \\frac{$", "half \udcff", "two\nlines"]
    mix = SideObservationMixture({name: rows(9) for name in names}, reward="loss", floor_share=0.05)
    mix.rows_of(20)
    mix.num_trained = 20
    report = mix.report()
    report.save(tmp_path)
    (legend,) = report.plot().legends
    assert [text.get_text() for text in legend.get_texts()] == [names[0], names[1], "half \ufffd", "two lines"]
