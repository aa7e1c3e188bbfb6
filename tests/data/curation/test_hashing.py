"""Hashes of words and n-grams, against dictionaries of the words themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation import hashing
from hf_ext.data.curation.hashing import ngram_hashes, word_hashes, word_spans
from hf_ext.data.curation.unicode_tables import code_points


def hashes_of(text, seed=0):
    points = code_points(text)
    is_space = np.array([character.isspace() for character in text], dtype=bool)
    starts, ends = word_spans(~is_space)
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == text.split()
    return word_hashes(points, starts, ends, seed)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab\0\x01 \n\u3000é\U0001f600\ud800"), max_size=60))
def test_words_and_ngrams_have_the_same_number_where_they_are_the_same(text):
    words = text.split()
    hashes = hashes_of(text)
    for length in (1, 2, 3):
        grams = list(zip(*(words[start:] for start in range(length)), strict=False))
        numbers = ngram_hashes(hashes, length).tolist()
        assert len(numbers) == max(len(words) - length + 1, 0)
        assert len(set(zip(numbers, grams, strict=True))) == len(set(numbers)) == len(set(grams))


def test_a_word_longer_than_the_table_of_powers_has_its_own_number():
    long = "a" * 9000
    hashes = hashes_of(f"{long} {long}a {long} {long[:-1]}b")
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3


def test_ngrams_of_different_lengths_and_another_seed_have_other_numbers():
    hashes = hashes_of("to be or not to be")
    numbers = [number for length in range(1, 7) for number in ngram_hashes(hashes, length).tolist()]
    assert len(set(numbers)) == 4 + 4 + 4 + 3 + 2 + 1
    assert not set(hashes.tolist()) & set(hashes_of("to be or not to be", seed=1).tolist())


@pytest.mark.parametrize("num_words", [0, 1, 5_000])
def test_compiled_and_plain_hashes_are_the_same(num_words, monkeypatch):
    pytest.importorskip("numba")
    lengths = np.random.default_rng(num_words).integers(1, 200, num_words)
    text = " ".join("\x00é\ud800x"[length % 4] * length for length in [*lengths.tolist(), 300_000][: num_words + 1])
    results = []
    for _ in range(2):
        words = hashes_of(text, seed=2**64 - 1)
        results.append([words.tolist(), ngram_hashes(words, 1).tolist(), ngram_hashes(words, 7).tolist()])
        monkeypatch.setattr(hashing, "compiled_module", lambda name: None)
    assert results[0] == results[1]
    assert len(results[0][0]) == num_words + 1
