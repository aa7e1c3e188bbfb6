"""The choice of a strategy on noisy labels, against cases worked by hand and a brute-force error."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ext.data.relabeling import RRChannel
from hf_ext.data.relabeling.choice import STRATEGIES, candidates, choose_strategy
from hf_ext.trainers.consensus.config import ConsensusConfig

CHANNEL = RRChannel(1.5, 4)


def noisy_world(n: int, accuracies: dict[str, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict]:
    """True labels, noisy ones, and predictions that are right with the given probability, independent of the noise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    noisy = np.where(rng.random(n) < CHANNEL.p, truth, (truth + rng.integers(1, 4, n)) % 4)
    wrong = (truth + rng.integers(1, 4, n)) % 4
    luck = rng.random(n)  # shared: what one gets right, a better one gets right too
    return truth, noisy, {name: np.where(luck < a, truth, wrong) for name, a in accuracies.items()}


def test_the_figures_are_those_of_a_loop_over_rows() -> None:
    _, noisy, found = noisy_world(500, {"round 1": 0.7, "full": 0.8})
    choice = choose_strategy(noisy, found, CHANNEL)
    p, q = CHANNEL.p, CHANNEL.q
    agree = {name: sum(a == b for a, b in zip(noisy, own, strict=True)) / 500 for name, own in found.items()}
    for name, share in agree.items():
        assert choice.accuracy[name].value == pytest.approx((share - q) / (p - q))
    differences = [
        (int(a == s) - int(b == s)) / (p - q) for a, b, s in zip(found["full"], found["round 1"], noisy, strict=True)
    ]
    gap = choice.behind["round 1"]
    assert gap.value == pytest.approx(np.mean(differences))
    assert gap.se == pytest.approx(np.std(differences, ddof=1) / np.sqrt(500))


def test_a_clearly_better_strategy_is_taken_and_one_as_good_is_not() -> None:
    _, noisy, found = noisy_world(20_000, {"round 1": 0.7, "consensus": 0.85})
    assert choose_strategy(noisy, found, CHANNEL).chosen == "consensus"
    _, noisy, found = noisy_world(20_000, {"round 1": 0.85, "consensus": 0.85})
    assert choose_strategy(noisy, found, CHANNEL).chosen == "round 1"
    _, noisy, found = noisy_world(20_000, {"round 1": 0.85, "consensus": 0.7})
    assert choose_strategy(noisy, found, CHANNEL).chosen == "round 1"


def test_within_one_standard_error_the_simpler_is_taken_and_beyond_it_is_not() -> None:
    """100 rows, no noise: one is wrong on two rows, the other on one row or none; gap and error by hand."""
    channel, labels = RRChannel(50.0, 2), np.zeros(100, np.int64)
    simple, better = labels.copy(), labels.copy()
    simple[:2], better[50] = 1, 1
    choice = choose_strategy(labels, {"round 1": simple, "full": better}, channel)
    assert choice.behind["round 1"].value == pytest.approx(0.01)
    assert choice.behind["round 1"].se == pytest.approx(np.sqrt((3 - 100 * 0.01**2) / 99) / 10)  # 0.0174
    assert (choice.chosen, choice.best) == ("round 1", "full")
    choice = choose_strategy(labels, {"round 1": simple, "full": labels}, channel)
    assert choice.behind["round 1"].se == pytest.approx(np.sqrt((2 - 100 * 0.02**2) / 99) / 10)  # 0.0141 < 0.02
    assert choice.chosen == "full"


def test_the_choice_never_needs_a_clean_label_and_is_mostly_right() -> None:
    """In 50 worlds with a gap of eight points the better of two is chosen nearly always, from noisy labels alone."""
    right = 0
    for seed in range(50):
        _, noisy, found = noisy_world(4000, {"round 1": 0.70, "consensus": 0.78}, seed)
        right += choose_strategy(noisy, found, CHANNEL).chosen == "consensus"
    assert right >= 45


def test_tokens_of_a_row_stand_together() -> None:
    labels = [[-100, 0, 1], [-100, 1, 1], [-100, 0, 0]] * 40
    same = [list(row) for row in labels]
    other = [[0, 1, 0], [0, 0, 0], [0, 1, 1]] * 40
    choice = choose_strategy(labels, {"round 1": other, "consensus": same}, RRChannel(2.0, 2))
    assert choice.chosen == "consensus"
    assert choice.accuracy["consensus"].n == 240


def test_candidates_are_what_the_settings_leave_simplest_first() -> None:
    assert candidates("auto", "auto", True) == STRATEGIES
    names = lambda *of: [strategy.name for strategy in candidates(*of)]  # noqa: E731
    assert names("consensus", "auto", True) == ["round 1", "consensus, equal epochs", "consensus"]
    assert names("consensus", "epochs", True) == ["round 1", "consensus, equal epochs"]
    assert names("full", "auto", True) == ["round 1", "full"]
    assert names("bayes", "steps", False) == ["bayes"]
    assert names("consensus", "steps", False) == ["consensus"]


def test_without_strategies_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="no strategy"):
        choose_strategy([0, 1], {}, CHANNEL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "best"}, "mode must be one of"),
        ({"budget": "rows"}, "budget must be one of"),
        ({"round_loss": "mae"}, "round_loss must be one of"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"selection_folds": 1}, "selection_folds must be at least 2"),
        ({"cross_fit": 1}, "cross_fit must be 0"),
        ({"channel_epsilon": float("nan")}, "channel_epsilon must be a finite number"),
        ({"channel_epsilon": -1.0}, "channel_epsilon must be a finite number"),
        ({"select_on_noisy_eval": False}, "mode='auto' is decided on noisy labels"),
        ({"select_on_noisy_eval": False, "mode": "consensus"}, "budget='auto' is decided on noisy labels"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, words: str, tmp_path: object) -> None:
    with pytest.raises(ValueError, match=words):
        ConsensusConfig(output_dir=str(tmp_path), use_cpu=True, **changes)
