"""Committed results: the headline follows from the raw rows, computed here a second time and in another way."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SCRIPTS = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"common", "table"}


def load(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_benchmark_has_a_committed_result():
    assert {path.stem for path in RESULTS} == SCRIPTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_result_says_where_it_came_from_and_names_no_machine(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"headline", "versions", "machine", "command", "commit", "date", "rows"} <= set(result)
    assert result["headline"]["benchmark"] == path.stem
    assert {"torch", "trl", "transformers"} <= set(result["versions"])
    assert not [folder for folder in ("/home", "/work", "/root", "/tmp") if folder in path.read_text()]


def test_forgetting_headline_follows_from_its_rows():
    result = load("forgetting_gsm8k")
    columns = {key: np.array([row[key] for row in result["rows"]]) for key in result["rows"][0]}
    fall = columns["target_loss_before"] - columns["target_loss"]
    of = {arm: np.flatnonzero(columns["arm"] == arm) for arm in set(columns["arm"])}
    of = {arm: rows[np.argsort(columns["seed"][rows])] for arm, rows in of.items()}
    headline = result["headline"]
    assert headline["seeds"] == len(of["sft"])
    start = columns["target_loss_before"][of["sft"]]
    assert headline["sft_target_loss_fall"] == pytest.approx(float((fall[of["sft"]] / start).mean()), abs=6e-5)
    for arm in set(of) - {"sft"}:
        kl = columns["kl_original_to_new"]
        assert headline[f"kl_{arm}_over_sft"] == pytest.approx(float((kl[of[arm]] / kl[of["sft"]]).mean()), abs=6e-5)
        gain = float((fall[of[arm]] / fall[of["sft"]]).mean())
        assert headline[f"target_gain_{arm}_over_sft"] == pytest.approx(gain, abs=6e-5)
    best = min(result["learning_rates"], key=lambda lr: result["learning_rates"][lr])
    assert headline["learning_rate"] == float(best)


def test_step_cost_headline_follows_from_its_rows():
    result = load("step_cost")
    ratios = np.array([row["weighted_s"] / row["sft_s"] for row in result["rows"]])
    headline = result["headline"]
    assert headline["pairs"] == len(ratios) >= 30
    assert headline["time_ratio"] == pytest.approx(float(np.median(ratios)), abs=6e-5)
    assert headline["time_ratio_low"] <= headline["time_ratio"] <= headline["time_ratio_high"]
    first = [row["first"] for row in result["rows"]]
    assert all(a != b for a, b in pairwise(first)), "the order is swapped from pair to pair"
    memory = result["memory_bytes"]
    assert headline["memory_ratio"] == pytest.approx(memory["weighted"] / memory["sft"], abs=6e-5)


def test_table_prints_every_headline():
    table = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "table.py")], capture_output=True, text=True, check=True
    ).stdout
    for path in RESULTS:
        for key in load(path.stem)["headline"]:
            assert key == "benchmark" or key in table
