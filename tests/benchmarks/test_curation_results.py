"""Headlines of the two benchmarks of curation follow from their rows; what they read and judge is made right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def module(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return __import__(name)


@pytest.fixture(autouse=True)
def _forget():
    yield
    for name in ("curation_speed", "curation_quality", "common", "dclm_checkout", "junk", "tiny_lm", "measured"):
        sys.modules.pop(name, None)


def test_the_speed_headline_is_the_median_of_ratios_within_a_round(monkeypatch):
    script = module("curation_speed", monkeypatch)
    rows = [
        {"comparison": name, "round": number, "documents": 4, "ours": ours, "peer": peer}
        for name in script.RATIOS
        for number, (ours, peer) in enumerate([(100.0, 10.0), (400.0, 10.0), (90.0, 30.0)])
    ]
    options = argparse.Namespace(rounds=3, documents=4, dclm=None)
    headline = script.headline_of(options, rows, 0)
    assert {headline[key] for key in script.RATIOS.values()} == {10.0}
    assert headline["rules_per_second"] == 100
    assert all(f"  {key}" in script.__doc__ for key in headline if key not in ("rounds", "documents", "benchmark"))
