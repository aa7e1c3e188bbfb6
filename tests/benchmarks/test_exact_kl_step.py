"""The cost of the exact KL: the headline follows from the rows, here from rows that are written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "exact_kl_step.json"
ROWS = [
    {"round": 0, "role": "exact", "step_seconds": [3.0, 1.5, 1.4], "peak_bytes": 1200},
    {"round": 0, "role": "sft", "step_seconds": [1.0, 1.0, 9.0], "peak_bytes": 1000},
    {"round": 1, "role": "sft", "step_seconds": [2.0, 2.0, 2.0], "peak_bytes": 1000},
    {"round": 1, "role": "exact", "step_seconds": [2.4, 2.6, 2.4], "peak_bytes": 1000},
    {"round": 2, "role": "exact", "step_seconds": [1.3, 1.3, 1.3], "peak_bytes": 1100},
    {"round": 2, "role": "sft", "step_seconds": [1.0, 1.0, 1.0], "peak_bytes": 1000},
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import exact_kl_step

    yield exact_kl_step
    for name in ("exact_kl_step", "common"):
        sys.modules.pop(name, None)


def test_a_round_s_ratio_is_that_of_its_medians_and_memory_that_of_the_medians_of_all(script: Any) -> None:
    assert script.headline_of(ROWS) == {
        "benchmark": "exact_kl_step", "rounds": 3, "time_ratio": 1.3, "time_ratio_low": 1.2, "time_ratio_high": 1.5,
        "memory_ratio": 1.1,
    }  # fmt: skip


@pytest.mark.skipif(not RESULT.exists(), reason="not measured yet")
def test_the_committed_headline_follows_from_its_rows() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    headline = result["headline"]
    seconds = {
        role: np.array([np.median(row["step_seconds"]) for row in result["rows"] if row["role"] == role])
        for role in ("sft", "exact")
    }
    ratios = seconds["exact"] / seconds["sft"]
    assert headline["rounds"] == len(ratios) >= 3
    assert headline["time_ratio"] == pytest.approx(float(np.median(ratios)), abs=6e-5)
    assert headline["time_ratio_high"] == pytest.approx(float(ratios.max()), abs=6e-5)
