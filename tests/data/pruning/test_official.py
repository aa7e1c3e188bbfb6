import json
from pathlib import Path

import numpy as np
import pytest

from hf_ext.data.pruning import gm_matching, gm_official

CASES = json.loads(Path(__file__).with_name("official_picks.json").read_text(encoding="utf-8"))


def rows_of(seed):
    rows = np.random.RandomState(seed).standard_normal((150, 12)).astype(np.float32)  # a frozen stream
    rows[:, 0] += 1.0
    return rows


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_same_picks_as_the_released_function(case):
    matching = gm_official(rows_of(case["seed"]), 25, first=case["first"])
    assert matching.indices.tolist() == case["picks"]
    assert matching.method == "gm_official"


def test_released_target_cannot_be_matched_and_the_result_says_so():
    rows = rows_of(0)
    official, ours = gm_official(rows, 30), gm_matching(rows, 30)
    assert (official.verdict, ours.verdict) == ("target unreachable", "matched")
    assert official.theta_norm[29] > 1.8 * official.theta_norm[14]  # linear growth
    assert ours.theta_norm[29] < 1.3 * ours.theta_norm[14]
    assert official.indices.tolist() != ours.indices.tolist()


def test_start_is_drawn_from_the_seed_one_a_group():
    rows, groups = rows_of(1), np.arange(150) % 3
    one, two = (gm_official(rows, 25, groups=groups, seed=4) for _ in range(2))
    assert one.indices.tolist() == two.indices.tolist()
    assert len(one.indices) == 25  # the released code would keep 24: it loses the remainder
    with pytest.raises(ValueError, match="fixes center"):
        gm_official(rows, 5, center="mean")
