"""The speed of sampling: kept tokens are counted right, and the committed headline follows from its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import context_free_speed

    yield context_free_speed
    for name in ("context_free_speed", "common"):
        sys.modules.pop(name, None)


def test_kept_tokens_end_at_the_limit_or_the_first_end_token(script):
    ids = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 5, 5], [5, 6, 9, 2], [5, 6, 7, 2]])
    lengths = script.kept_lengths(ids, torch.tensor([2, 9]), torch.tensor([4, 4, 4, 4, 3]))
    assert lengths.tolist() == [2, 4, 1, 3, 3]


def test_an_engine_s_figures_are_those_of_the_natural_rows(script):
    seconds = {"ours": (2.0, 4.0, 5.0), "peer": (4.0, 4.0, 8.0), "backend": (1.0, 2.0, 10.0)}
    runs = [script.Run("natural", name, 8, 8, 100, 120, value) for name in seconds for value in seconds[name]]
    runs += [script.Run("uniform", name, 8, 8, 100, 120, 1.0) for name in ("ours", "peer")]
    headline = script.headline_of(runs, {"ours": 8, "peer": 8}, "vllm")
    assert headline["backend"] == "vllm"
    assert headline["backend_tokens_per_second"] == 50.0
    assert headline["ours_tokens_per_second"] == headline["generate_tokens_per_second"] == 25.0
    assert headline["backend_over_ours"] == 2.0  # of 2, 2 and 0.5
    assert "backend" not in script.headline_of(runs[:6] + runs[9:], {"ours": 8, "peer": 8})


def test_headline_follows_from_its_rows():
    result = json.loads((ROOT / "benchmarks/results/context_free_speed.json").read_text(encoding="utf-8"))
    headline, rows = result["headline"], result["rows"]
    for name, key in (("ours", "batch_size"), ("peer", "peer_batch_size")):
        swept = {
            row["batch_size"]: row["kept"] / row["seconds"]
            for row in rows
            if (row["part"], row["sampler"]) == ("sweep", name)
        }
        assert set(swept) == {16, 32, 64, 96, 128, 192, 256}
        assert headline[key] == sorted(swept, key=swept.get)[-1]
    for part, suffix in (("natural", ""), ("uniform", "_uniform")):
        of = {
            name: [row for row in rows if (row["part"], row["sampler"]) == (part, name)] for name in ("ours", "peer")
        }
        rates = {name: np.array([row["kept"] / row["seconds"] for row in of[name]]) for name in of}
        assert headline[f"speedup{suffix}"] == pytest.approx(np.median(rates["ours"] / rates["peer"]), abs=6e-4)
        bound = sum(row["computed"] for row in of["peer"]) / sum(row["kept"] for row in of["peer"])
        assert headline[f"bound{suffix}"] == pytest.approx(bound, abs=6e-4)
        for name in of:
            assert {row["rows"] for row in of[name]} == {of["peer"][0]["rows"]}
            if part == "uniform":
                assert all(row["rows"] >= 2 * row["batch_size"] for row in of[name]), "no slot would be refilled"
            assert {row["batch_size"] for row in of[name]} == {
                headline["batch_size" if name == "ours" else "peer_batch_size"]
            }
            assert all(row["kept"] >= 10_000 for row in of[name])
    assert headline["speedup_over_bound"] == pytest.approx(headline["speedup"] / headline["bound"], abs=2e-3)
