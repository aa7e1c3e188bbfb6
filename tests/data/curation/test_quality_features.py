"""What the quality classifier sees of a document, counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hf_ext.data.curation.quality_features import features_of


@pytest.mark.parametrize("text", ["", " \n", "One fish two fish ONE\tfish", "a " * 500, "\ud800 \0 é"])
def test_features_count_ngrams_of_lower_case_words_over_their_length(text):
    words = text.lower().split()
    counts = Counter(gram for n in (1, 2) for gram in zip(*(words[start:] for start in range(n)), strict=False))
    features = features_of(text, longest_ngram=2, log_buckets=40, seed=3)
    norm = sum(count * count for count in counts.values()) ** 0.5
    assert sorted(features.values.tolist()) == pytest.approx(sorted(count / norm for count in counts.values()))
    assert (np.diff(features.buckets) > 0).all()
    assert features.num_words == len(words)


def test_statistics_of_a_text_counted_by_hand():
    text = "- One two # 3\nOne two three...\n- One two # 3\nthe END"
    features = features_of(text, longest_ngram=1, log_buckets=18, seed=0)
    expected = [
        np.log1p(15),  # words: 5, 3, 5, 2
        sum(map(len, text.split())) / 15,
        3 / 15,  # two # and one ellipsis
        2 / 4,  # lines with a bullet
        6 / 15,  # - # 3, twice
        1 / 15,  # "the"
        2 / 4,  # the first and the third line are the same
        0.0,  # no 5-gram of words twice: a line has three
        np.log1p(15 / 4),
        6 / len(text),  # O O O E N D
        2 / len(text),
        len(set(text.lower().split())) / 15**0.5,
    ]
    assert features.statistics == pytest.approx(expected)
