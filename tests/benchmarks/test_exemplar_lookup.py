"""The look-up benchmark: its brute-force scorer against the formula, its committed result computed a second time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "exemplar_lookup.json"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import exemplar_lookup

    yield exemplar_lookup
    for name in ("exemplar_lookup", "common"):
        sys.modules.pop(name, None)


def test_the_brute_force_scorer_ranks_by_lucenes_formula(script):
    texts = ["red cat", "red red dog", "blue cat cat cat and more", "nothing"]
    words = [text.split() for text in texts]
    mean = np.mean([len(row) for row in words])

    def score(query: str, row: list[str]) -> float:
        total = 0.0
        for word in query.split():
            n = sum(word in other for other in words)
            tf = row.count(word)
            total += math.log(1 + (4 - n + 0.5) / (n + 0.5)) * tf / (tf + 0.9 * (0.6 + 0.4 * len(row) / mean))
        return total

    for query in ("red cat", "cat", "red red", "more blue cat"):
        scores = [score(query, row) for row in words]
        order = [i for i in sorted(range(4), key=lambda i: (-scores[i], i)) if scores[i] > 0]
        assert script.BruteForce(texts).best(query, 4) == order


def test_the_headline_follows_from_the_rows(script):
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    rows, found = result["rows"], result["headline"]
    assert found == script.headline(rows)
    assert found["ms_per_query"] == round(sorted(rows["single_ms"])[499] / 2 + sorted(rows["single_ms"])[500] / 2, 3)
    assert rows["exemplars"] == 100_000
    assert len(rows["single_ms"]) == 1000
    assert len(rows["order_equal"]) == 200
    assert found["order_equal"] == sum(rows["order_equal"]) / 200 == 1
    assert found["ms_per_query"] <= 1
