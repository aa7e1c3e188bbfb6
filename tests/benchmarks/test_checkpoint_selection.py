"""The benchmark of checkpoints: its headline follows from its rows, and its rivals keep to their budgets."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "checkpoint_selection.json"
MODULES = ("checkpoint_rivals", "checkpoint_selection", "common", "core_speed", "measured")


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def table(num_items: int = 300) -> np.ndarray:
    generator = np.random.default_rng(0)
    offsets = np.array([0, 0.5, 1, 1, 1, 1, 1, 1])[:, None]
    return generator.gamma(1, 2, num_items) + offsets + 0.2 * generator.normal(size=(8, num_items))


def test_the_headline_follows_from_columns_worked_out_by_hand():
    benchmark = importlib.import_module("checkpoint_selection")
    losses = {"a": [1.0, 1.0, 4.0, 4.0], "b": [2.0, 3.0, 5.0, 4.0], "c": [9.0, 9.0, 9.0, 9.0]}  # means 2.5, 3.5, 9
    rows = [
        {
            "method": "select_best",
            "picks": [0, 0, 1, 0],
            "spent": [6, 12, 3, 9],
            "items": [2, 4, 2, 4],
            "certified": [True, True, True, False],
        },
        {"method": "halving", "picks": [0, 2]},
    ]
    headline = benchmark.headline_of(rows, losses)
    assert headline["items_over_uniform"] == pytest.approx((6 / 6 + 12 / 12 + 3 / 6 + 9 / 12) / 4, abs=1e-4)
    assert headline["false_certificates"] == 0.25
    assert headline["certified"] == 0.75
    assert headline["certified_by_the_pool"] == 0.25
    assert headline["picks_best"] == 0.75
    assert headline["picks_best_halving"] == 0.5
    assert headline["items_over_all"] == pytest.approx(7.5 / 12)
    assert headline["lead_nats"] == 1.0
    assert headline["lead_standard_errors"] == pytest.approx(1 / (np.std([1, 2, 1, 0], ddof=1) / 2), abs=1e-3)


@pytest.mark.parametrize("name", ["uniform", "halving", "optuna"])
def test_a_rival_finds_a_best_candidate_that_is_far_ahead_and_repeats_itself(name):
    rival = importlib.import_module("checkpoint_rivals").RIVALS[name]
    assert [rival(table(), 2_400, seed) for seed in (0, 0, 1)] == [0, 0, 0]


def test_halving_drops_half_after_each_third_of_the_budget():
    rivals = importlib.import_module("checkpoint_rivals")
    losses = np.full((8, 300), 1.0)
    order = np.random.default_rng(0).permutation(300)
    losses[3, order[:20]] = 0.9  # leads while a third of 480 pays 20 items each
    losses[5] = 0.95  # leads on the 60 items that two thirds pay for four
    losses[5, order[20:60]] = 0.8
    assert rivals.halving(losses, 480, 0) == 5


def test_a_trial_of_the_study_ends_with_the_budget():
    rivals = importlib.import_module("checkpoint_rivals")
    calls = []
    original = rivals._reported
    rivals._reported = lambda trial, values: calls.append(original(trial, values)) or calls[-1]
    rivals.optuna(table(), 500, 0)
    assert sum(calls) == 500 or len(calls) == 8
    assert sum(calls) <= 500
    assert calls[0] == 300


@pytest.mark.skipif(not RESULT.is_file(), reason="no result yet")
def test_the_committed_headline_follows_from_the_committed_losses():
    benchmark = importlib.import_module("checkpoint_selection")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    replayed = benchmark.races(result["losses"], 20)
    (ours,) = [row for row in result["rows"] if row["method"] == "select_best"]
    for key in ("picks", "spent", "items", "certified"):
        assert ours[key][:20] == replayed[key]
    assert len(ours["picks"]) == 1_000
    assert benchmark.headline_of(result["rows"], result["losses"]) == result["headline"]
