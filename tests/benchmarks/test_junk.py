"""The generator of junk: each kind is what it says, half of all, and no copy stands before its original."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def junk():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import junk

        yield junk
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("junk", None)


@pytest.fixture(scope="module")
def rows(junk):
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 9))) for _ in range(400)]
    lines = [[" ".join(rng.choice(words, 12)) for _ in range(20)] for _ in range(60)]
    good = [{"id": f"good-{i}", "source": "made", "text": "\n".join(lines[i])} for i in range(60)]
    foreign = [" ".join(rng.choice(words, 300)) + f" {i}" for i in range(40)]
    return junk.mixed(good, foreign, 0)


def test_half_the_characters_are_junk_and_its_kinds_have_equal_parts(junk, rows):
    chars: Counter[str] = Counter()
    for row in rows:
        chars[row["kind"]] += len(row["text"])
    assert set(chars) == {"good", *junk.KINDS}
    share = chars["good"] / len(junk.KINDS)
    for kind in junk.KINDS:
        assert share <= chars[kind] <= share + 10_000  # up to the page with which it is full
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_copy_stands_behind_its_original_and_is_as_alike_as_its_kind_says(rows):
    places = {row["id"]: place for place, row in enumerate(rows)}
    texts = {row["id"]: row["text"] for row in rows}

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return set(zip(*(words[i:] for i in range(5)), strict=False))

    copies = [row for row in rows if row["copy_of"]]
    assert {row["kind"] for row in copies} == {"exact_duplicate", "near_duplicate"}
    for row in copies:
        original = texts[row["copy_of"]]
        assert places[row["id"]] > places[row["copy_of"]]
        if row["kind"] == "exact_duplicate":
            assert row["text"] == original
        else:
            first, second = shingles(original), shingles(row["text"])
            assert 0.5 < len(first & second) / len(first | second) < 1


def test_no_page_in_another_language_comes_twice(rows):
    foreign = [row["text"] for row in rows if row["kind"] == "other_language"]
    assert len(set(foreign)) == len(foreign)


def test_repeated_ngrams_repeat_and_word_salad_does_not(rows):
    def top_share(text: str) -> float:
        words = text.split()
        trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
        return max(trigrams.values()) / len(words)

    shares = {
        kind: [top_share(row["text"]) for row in rows if row["kind"] == kind]
        for kind in ("repeated_ngrams", "word_salad")
    }
    assert min(shares["repeated_ngrams"]) > 0.05 > max(shares["word_salad"])


def test_the_same_seed_makes_the_same_rows(junk):
    good = [{"id": str(i), "source": "made", "text": f"some words of document {i} " * 40} for i in range(6)]
    assert junk.mixed(good, ["ein Satz"], 3) == junk.mixed(good, ["ein Satz"], 3)
    assert junk.mixed(good, ["ein Satz"], 3) != junk.mixed(good, ["ein Satz"], 4)
