"""Committed results on CORE: the headline follows from the raw rows, computed a second time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_core_speed_headline_follows_from_its_rows():
    result = load("core_speed")
    headline = result["headline"]
    runs = sorted({row["run"] for row in result["rows"]})
    assert headline["runs"] == len(runs) >= 3

    def ratios(*types: str) -> np.ndarray:
        seconds = {
            way: [
                sum(r[f"{way}_cpu_s"] for r in result["rows"] if r["run"] == run and r["type"] in types)
                for run in runs
            ]
            for way in ("peer", "ours")
        }
        return np.divide(seconds["peer"], seconds["ours"])

    options = ratios("multiple_choice", "schema")
    assert headline["over_peer"] == pytest.approx(float(np.median(options)), abs=6e-4)
    assert headline["over_peer_low"] == pytest.approx(float(options.min()), abs=6e-4)
    everything = ratios("multiple_choice", "schema", "language_modeling")
    assert headline["over_peer_all"] == pytest.approx(float(np.median(everything)), abs=6e-4)
    pairs = [pair for row in result["rows"] for pair in zip(row["ours_picks"], row["peer_picks"], strict=True)]
    assert headline["rows_disagreeing"] == sum(one != other for one, other in pairs)
    assert headline["rows"] * len(runs) == len(pairs)


def test_core_smollm2_headline_follows_from_its_rows():
    result = load("core_smollm2")
    headline = result["headline"]
    rows = result["rows"]
    assert headline["tasks"] == len(rows) == 23
    assert headline["rows"] == sum(row["rows"] for row in rows)
    assert headline["rows_cut"] == sum(round(row["truncated"] * row["rows"]) for row in rows)
    rows = [row for row in rows if row["is_core"]]
    assert len(rows) == 16
    for version in ("v1", "v2"):
        values = np.array([row[f"centered_{version}"] for row in rows])
        assert headline[f"core16_{version}"] == pytest.approx(float(values.mean()), abs=6e-6)
    # a centred value is linear in the accuracy, which gives what guessing gets, and so the error, back
    baselines = [(row["accuracy"] - row["centered_v2"]) / (1 - row["centered_v2"]) for row in rows]
    errors = [row["standard_error"] / (1 - baseline) for row, baseline in zip(rows, baselines, strict=True)]
    assert headline["core16_v2_error"] == pytest.approx(np.linalg.norm(errors) / 16, abs=6e-6)
