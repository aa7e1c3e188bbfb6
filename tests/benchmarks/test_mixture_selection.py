"""The benchmark of mixtures: its headline is plain arithmetic, its rivals draw as they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("common", "measured", "mixture_rivals", "mixture_selection", "tiny_lm")
SOURCES = {"a": Dataset.from_dict({"x": [1] * 30}), "b": Dataset.from_dict({"x": [2] * 10})}


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def row(model: str, arm: str, seed: int, nats: float, noise: float = 0.0, cost: float = 10.0) -> dict:
    shares = {"wikitext": 1 - noise, "gsm8k": 0.0, "instructions": 0.0, "repeats": noise / 2, "noise": noise}
    return {"model": model, "arm": arm, "seed": seed, "nats": nats, "shares_end": shares, "cpu_seconds": cost}


def rows() -> list[dict]:
    nats = {
        "mixture": (4.0, 4.2),
        "uniform": (4.5, 4.6),
        "odm": (4.9, 4.1),
        "proportional": (4.1, 4.5),
        "softmax": (5.0, 5.0),
        "target": (3.9, 4.0),
        "wikitext": (3.5, 4.5),
    }
    made = [row("tiny", arm, seed, value) for arm, values in nats.items() for seed, value in enumerate(values)]
    for entry, noise, cost in ((made[0], 0.04, 12.0), (made[1], 0.03, 13.0)):
        entry.update(row("tiny", "mixture", entry["seed"], entry["nats"], noise, cost))
    small = (("mixture", 3.0), ("uniform", 3.25), ("odm", 2.75))
    return [*made, *(row("smollm2", arm, 0, value) for arm, value in small)]


def test_the_headline_is_made_of_the_lowest_differences_and_the_highest_shares():
    from mixture_selection import headline_of

    assert headline_of(rows()) == {
        "benchmark": "mixture_selection",
        "seeds": 2,
        "uniform_minus_mixture_nats": 0.4,
        "odm_minus_mixture_nats": -0.1,
        "proportional_minus_mixture_nats": 0.1,
        "softmax_minus_mixture_nats": 0.8,
        "best_fixed_minus_mixture_nats": -0.15,  # 3.95 of "target", 4.1 of ours
        "best_fixed": "target",
        "harmful_share_end": 0.04,
        "useless_share_end": 0.02,
        "step_cost_ratio": 1.25,
        "smollm2_uniform_minus_mixture_nats": 0.25,
        "smollm2_odm_minus_mixture_nats": -0.25,
    }


def drawn(mixture, losses: dict[str, float], steps: int) -> np.ndarray:
    """Sources of the micro-batches of some steps whose losses are those of the sources."""
    mixture.lay_out([30, 10], 2, 2)
    for step in range(steps):
        sources = [mixture.rows_of(2 * step + place)[0] for place in range(2)]
        mixture.tell(step, [losses[mixture.names[source]] for source in sources])
    return np.array(mixture.batch_sources)


def test_fixed_shares_are_drawn_as_given_whatever_the_losses():
    from mixture_rivals import rival

    for name, share in (("uniform", 0.5), ("proportional", 0.25), ("mine", 0.1)):
        sources = drawn(rival(name, SOURCES, 3, {"mine": (9, 1)}), {"a": 1.0, "b": 9.0}, 600)
        assert sources.mean() == pytest.approx(share, abs=3 * (share * (1 - share) / 1200) ** 0.5)
    assert set(drawn(rival("alone", SOURCES, 3, {"alone": (0, 1)}), {"a": 1.0, "b": 1.0}, 20)) == {1}


def test_rivals_on_losses_go_where_losses_are_high():
    from mixture_rivals import rival

    for name in ("odm", "softmax"):
        mixture = rival(name, SOURCES, 3, {})
        sources = drawn(mixture, {"a": 2.0, "b": 5.0}, 300)
        assert sources[-200:].mean() > 0.8
        assert mixture.current_shares().sum() == pytest.approx(1)
    assert mixture.current_shares()[1] == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_the_first_update_of_online_data_mixing_is_that_of_exp3():
    from mixture_rivals import rival

    mixture = rival("odm", SOURCES, 3, {})
    mixture.learn(1, 4.0)
    weights = np.exp([0.0, 0.5 * 0.4 / 0.5])  # the exploration before, times a tenth of the loss over its probability
    exploration = min(0.5, np.sqrt(np.log(2) / 2))
    expected = (1 - 2 * exploration) * weights / weights.sum() + exploration
    assert mixture.current_shares() == pytest.approx(expected)


@pytest.mark.real
def test_what_is_reported_is_in_no_source_and_not_the_target(real_data):
    from mixture_selection import LENGTH, SOURCES, Documents, Size

    documents = Documents(Size(held_out=8))
    assert tuple(documents.sources) == SOURCES
    rows = {name: {tuple(ids) for ids in part["input_ids"]} for name, part in documents.sources.items()}
    report = {tuple(ids) for part in documents.report.values() for ids in part.tolist()}
    target = {tuple(ids) for ids in documents.target["input_ids"]}
    assert all(len(ids) == LENGTH for ids in report)
    assert (len(report), len(target)) == (16, 16)
    assert not report & target
    assert not any((report | target) & part for part in rows.values())
    assert all(len(set(ids)) == 1 for ids in rows["repeats"])


def test_committed_headline_follows_from_its_rows():
    path = ROOT / "benchmarks" / "results" / "mixture_selection.json"
    if not path.exists():
        pytest.skip("no result yet")
    from mixture_selection import headline_of

    result = json.loads(path.read_text(encoding="utf-8"))
    assert headline_of(result["rows"]) == result["headline"]
    assert result["headline"]["seeds"] == 5
