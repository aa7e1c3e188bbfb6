"""The picks of every method on one set of rows, as the first release made them."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_ext.data.pruning import select_rows

CASES = json.loads(Path(__file__).with_name("picks.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows():
    rows = np.random.RandomState(0).standard_normal((150, 12)).astype(np.float32)  # a frozen stream
    rows[:, 0] += 1.0
    return rows


@pytest.mark.filterwarnings("ignore:Target unreachable")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['method']}-{case['options']}-{case['labels']}")
def test_picks_are_those_of_the_first_release(rows, case):
    labels = [f"label {i % 4}" for i in range(150)] if case["labels"] else None
    scores = np.random.RandomState(1).standard_normal(150) if case["method"] == "score" else None
    matching = select_rows(case["method"], rows, 16, groups=labels, seed=3, scores=scores, **case["options"])
    assert matching.indices.tolist() == case["picks"]
