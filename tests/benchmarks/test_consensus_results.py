"""The committed result of the consensus benchmark, computed a second time from its rows, and what it must show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "consensus_label_dp.json"
SETS = {"fashion_mnist": (1, 2, 3), "snips": (1, 2, 3), "banking77": (2, 3, 4)}
ARMS = {"baseline", "full", "consensus", "confident", "bayes_soft", "forward", "forward_consensus", "auto"}


@pytest.fixture(scope="module")
def result() -> dict:
    return json.loads(RESULT.read_text(encoding="utf-8"))


def column(result: dict, dataset: str, model: str, epsilon: int, arm: str) -> np.ndarray:
    found = [
        (row["seed"], row["accuracy"][arm])
        for row in result["rows"]
        if (row["dataset"], row["model"], row["epsilon"]) == (dataset, model, epsilon)
    ]
    return np.array([value for _, value in sorted(found)])


def test_the_grid_is_whole(result: dict) -> None:
    for dataset, epsilons in SETS.items():
        for model in ("linear", "mlp"):
            for epsilon in epsilons:
                seeds = 5 if (dataset, epsilon) == ("banking77", 3) else 3
                assert len(column(result, dataset, model, epsilon, "auto")) == seeds
    assert len(column(result, "fashion_mnist", "cnn", 2, "auto")) == 3
    assert len(result["finetuned"]) == 3
    for row in result["rows"]:
        assert set(row["accuracy"]) >= ARMS


def test_headline_follows_from_its_rows(result: dict) -> None:
    headline = result["headline"]
    base, cons, forward, both = (
        column(result, "banking77", "linear", 3, arm)
        for arm in ("baseline", "consensus", "forward", "forward_consensus")
    )
    gain = cons - base
    low, high = ttest_1samp(gain, 0).confidence_interval(0.95)
    assert headline["best_gain_points"] == pytest.approx(gain.mean(), abs=0.006)
    assert (headline["best_gain_low"], headline["best_gain_high"]) == pytest.approx((low, high), abs=0.006)
    assert headline["consensus_over_forward_points"] == pytest.approx((both - forward).mean(), abs=0.006)
    regrets = [max(row["accuracy"].values()) - row["accuracy"]["auto"] for row in result["rows"]]
    assert headline["auto_regret_points"] == pytest.approx(np.mean(regrets), abs=0.006)
    settings = {(row["dataset"], row["model"], row["epsilon"]) for row in result["rows"]}
    worst = min((column(result, *of, "auto") - column(result, *of, "forward")).mean() for of in settings)
    assert headline["auto_minus_round1_points"] == pytest.approx(worst, abs=0.006)
    assert headline["settings"] == len(settings) == 19
    tuned = {arm: np.array([row["accuracy"][arm] for row in result["finetuned"]]) for arm in ARMS & {"forward"}}
    plain = np.array([row["accuracy"]["baseline"] for row in result["finetuned"]])
    assert headline["finetuned_forward_points"] == pytest.approx((tuned["forward"] - plain).mean(), abs=0.006)
    covered = [
        row["out_of_fold_estimate"]["low"] <= row["out_of_fold_accuracy"] <= row["out_of_fold_estimate"]["high"]
        for row in result["coverage"]
    ]
    assert headline["coverage_repeats"] == len(covered) == 50
    assert headline["coverage"] == pytest.approx(np.mean(covered), abs=6e-4)


def test_auto_is_the_arm_that_the_noisy_labels_chose(result: dict) -> None:
    for row in result["rows"]:
        assert row["accuracy"]["auto"] == row["accuracy"][row["chosen"]]
        figures = row["noisy_accuracy"]
        assert figures[row["best_by_noisy_labels"]] == max(figures.values())


def test_goals_of_the_headline(result: dict) -> None:
    headline = result["headline"]
    assert headline["best_gain_points"] >= 9
    assert headline["best_gain_low"] >= 6.4
    assert headline["consensus_over_forward_points"] >= 1.5
    assert headline["auto_regret_points"] <= 1.0
    assert headline["auto_minus_round1_points"] >= -1.0


# Measured beforehand on a prototype: data, epsilon, better, worse, margin in points; linear models.
ORDERINGS = [
    ("banking77", 3, "consensus", "full", 0),
    ("banking77", 3, "full", "baseline", 0),
    ("banking77", 3, "consensus", "baseline", 5),
    ("snips", 1, "forward_consensus", "consensus", 0),
    ("snips", 1, "consensus", "baseline", 5),
    ("fashion_mnist", 1, "forward", "consensus", 0),
    ("fashion_mnist", 1, "consensus", "baseline", 3),
    ("fashion_mnist", 3, "forward", "baseline", 0),
    ("fashion_mnist", 3, "baseline", "consensus", -0.3),  # it does not help here
]


@pytest.mark.parametrize(("dataset", "epsilon", "better", "worse", "margin"), ORDERINGS)
def test_ordering_expected_from_the_prototype(result, dataset, epsilon, better, worse, margin) -> None:
    one, other = (column(result, dataset, "linear", epsilon, arm).mean() for arm in (better, worse))
    assert one >= other + margin


def test_kept_rows_are_purer_than_the_release_and_in_sample_figures_too_high(result: dict) -> None:
    for row in result["rows"]:
        assert row["precision"] > row["given_accuracy"]
        assert row["forward_precision"] > row["given_accuracy"]
        assert row["forward_in_sample_estimate"] > row["out_of_fold_estimate"]["value"]


def test_table_says_what_the_rows_say(result: dict) -> None:
    text = RESULT.with_suffix(".md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| banking77, linear, 3 |"))
    heads = next(line for line in text.splitlines() if line.startswith("| set, model, epsilon | baseline"))
    cells = dict(zip(heads.split("|"), line.split("|"), strict=True))
    for arm in ARMS:
        shown = float(cells[f" {arm} "].replace("*", ""))
        assert shown == pytest.approx(column(result, "banking77", "linear", 3, arm).mean(), abs=0.051)
