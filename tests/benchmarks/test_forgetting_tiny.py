"""The arithmetic of the small forgetting benchmark, computed here a second time and in another way."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("common", "measured", "forgetting_curves", "forgetting_tiny", "tiny_lm")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import forgetting_tiny

    yield forgetting_tiny
    for name in MODULES:
        sys.modules.pop(name, None)


def _cheapest(loss: float, points: list[tuple[float, float]]) -> float:
    """The KL on the lines that join neighbours among the points that no other one beats."""
    front = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    front = sorted(set(front))
    for (low, high_kl), (high, low_kl) in pairwise(front):
        if low <= loss <= high:
            return low_kl + (high_kl - low_kl) * (high - loss) / (high - low)
    return front[0][1] if loss < front[0][0] else front[-1][1]


def test_the_kl_at_a_loss_lies_on_the_front(bench: Any) -> None:
    import forgetting_curves

    generator = random.Random(0)
    for _ in range(200):
        points = [(round(generator.uniform(1, 2), 2), round(generator.uniform(0, 1), 2)) for _ in range(6)]
        loss = generator.uniform(0.9, 2.1)
        assert forgetting_curves.kl_at(loss, points) == pytest.approx(_cheapest(loss, points))


def _row(run: str, seed: int, easy: float, kl: float, wiki: float = 3.5) -> dict[str, Any]:
    return {
        "run": run, "seed": seed, "easy_loss": easy, "hard_loss": 5.0, "wiki_loss": wiki, "kl": kl,
        "easy_loss_before": 4.0, "wiki_loss_before": 3.0,
    }  # fmt: skip


def test_the_headline_compares_at_equal_loss(bench: Any) -> None:
    half: list[dict[str, Any]] = []
    for seed, size in ((0, 1.0), (1, 2.0)):
        curve = zip(bench.RATES, (3.0, 2.0, 2.2), (0.4, 0.8, 1.6), strict=True)  # the last is beaten in both
        half += [_row(f"SFT {rate:g}", seed, loss, kl * size) for rate, loss, kl in curve]
        half += [_row("WiSE-FT 0.8", seed, 2.5, 0.4 * size), _row("FLOW ess:0.6", seed, 2.5, 0.3 * size)]
        half += [_row("context-free 1", seed, 2.0, 0.4 * size), _row("exact 1 tenth", seed, 3.0, 0.1 * size)]
        half += [_row("FLOW permuted", seed, 2.0, 0.01 * size), _row("context-free 0.25", seed, 3.9, 0.001)]
        half += [_row(f"budget {budget:g}", seed, 2.0, budget * (0.9 if seed else 1.3)) for budget in bench.BUDGETS]
    alike = [_row(f"SFT {bench.RATES[1]:g}", 0, 2.0, 0.8), _row("FLOW ess:0.6", 0, 2.0, 0.8)]
    long = [_row(f"SFT {rate:g}", 0, 1.0 + i, 2.0 - i / 2) for i, rate in enumerate(reversed(bench.LONG_RATES))]
    long += [_row("context-free 1", 0, 1.3, 0.5), _row("WiSE-FT 0.8", 0, 1.3, 1.0)]
    headline = bench.headline_of({"half": half, "alike": alike, "long": long})
    assert headline["seeds"] == 2
    assert headline["sft_wiki_rise"] == 0.5
    assert headline["flow_kl_over_sft"] == pytest.approx(0.3 / 0.6)  # at 2.5, half way from 3.0 to 2.0
    assert headline["flow_kl_over_wise_ft"] == pytest.approx(0.3 / 0.4)
    assert headline["flow_kl_over_sft_alike"] == 1.0
    assert headline["context_free_kl_over_sft"] == pytest.approx(0.5 / 1.85, abs=1e-4)
    assert headline["context_free_kl_over_wise_ft"] == 0.5
    assert headline["context_free_gain_over_sft"] == pytest.approx(2.7 / 3.0)
    assert headline["best_ours"] == "budget 0.05"
    assert headline["kl_best_ours_over_best_rival"] == pytest.approx((0.065 / 0.8 + 0.045 / 1.6) / 2, abs=1e-4)
    assert headline["exact_tenth_over_sampled_all"] == pytest.approx((0.1 / 0.4) / (0.4 / 0.8))
    assert headline["budget_worst_error"] == pytest.approx(0.1)
    assert "half" in bench.table_of({"half": half})
