"""The cut at a share, against a loop that takes one document after the other."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from hf_ext.data.curation.thresholds import share_cut


def kept_by_loop(scores, weights, keys, keep_share):
    order = sorted(range(len(scores)), key=lambda number: (-scores[number], keys[number]))
    kept = set()
    weight = 0
    for number in order:
        if Decimal(weight) >= Decimal(str(keep_share)) * sum(weights):
            break
        kept.add(number)
        weight += weights[number]
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_the_cut_keeps_what_a_loop_over_documents_keeps(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 60))
    scores = generator.integers(0, 8, count) / 8  # many ties
    weights = generator.integers(0, 50, count) + (np.arange(count) == 0)
    keys = generator.permutation(count).astype(np.uint64)
    for keep_share in (0.01, 0.07, 0.1, 0.3, 1 / 3, 0.5, 0.9, 1.0):
        cut = share_cut(scores, weights, keys, keep_share)
        kept = kept_by_loop(scores.tolist(), weights.tolist(), keys.tolist(), keep_share)
        assert set(np.flatnonzero(cut.is_kept)) == kept
        assert cut.threshold == min(scores[number] for number in kept)
        assert cut.kept_share == pytest.approx(sum(weights[number] for number in kept) / weights.sum())
        assert cut.kept_share >= keep_share - 1e-12


def test_seven_of_a_hundred_equal_documents_are_seven():
    # 0.07 * 100 is 7.000000000000001 in floating point
    cut = share_cut(np.full(100, 0.5), np.ones(100, int), np.arange(100).astype(np.uint64), 0.07)
    assert cut.is_kept.sum() == 7


def test_the_same_documents_stay_in_any_order():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, 200) / 4
    weights = generator.integers(1, 9, 200)
    keys = generator.permutation(200).astype(np.uint64)
    order = generator.permutation(200)
    cut = share_cut(scores, weights, keys, 0.4)
    shuffled = share_cut(scores[order], weights[order], keys[order], 0.4)
    assert set(keys[cut.is_kept]) == set(keys[order][shuffled.is_kept])


@pytest.mark.parametrize("keep_share", [0, 1.01, -0.1, float("nan"), "all"])
def test_what_is_no_share_is_refused(keep_share):
    with pytest.raises(ValueError, match="keep_share must be a number above 0 and at most 1"):
        share_cut(np.ones(3), np.ones(3, int), np.arange(3).astype(np.uint64), keep_share)


def test_a_set_without_words_and_a_score_that_is_nan_are_refused():
    keys = np.arange(2).astype(np.uint64)
    with pytest.raises(ValueError, match="no document with a word"):
        share_cut(np.ones(2), np.zeros(2, int), keys, 0.5)
    with pytest.raises(ValueError, match="score 1 is NaN"):
        share_cut(np.array([0.5, np.nan]), np.ones(2, int), keys, 0.5)
