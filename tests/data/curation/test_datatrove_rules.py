"""`profile="datatrove"` without spaCy: its rules on words of a stand-in, against its verdicts and cases by hand."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.guards.extras import MissingExtraError

QUALITY = GopherQuality(profile="datatrove")
REPETITION = GopherRepetition(profile="datatrove")
WORDS = re.compile(r"\.\.+|\w+(?:[-.@/:'’]\w+)*|[^\w\s]")  # near spaCy's, which takes contractions apart, too


@pytest.fixture
def rough_words(monkeypatch):
    monkeypatch.setattr(datatrove_rules, "spacy_words", WORDS.findall)


def rules_broken(step, *texts):
    return [drop and drop.rule for drop in step.judge({"text": list(texts)}).drops]


@pytest.mark.real
def test_on_rough_words_most_verdicts_are_datatroves_and_all_that_do_not_hang_on_words(rough_words, text_docs):
    texts = [row["text"] for row in text_docs]
    quality = rules_broken(QUALITY, *texts)
    repetition = rules_broken(REPETITION, *texts)
    verdicts = [(a and f"q:{a}") or (b and f"r:{b}") for a, b in zip(quality, repetition, strict=True)]
    expected = [row["datatrove"] for row in text_docs]
    assert sum(a == b for a, b in zip(verdicts, expected, strict=True)) >= 570
    for verdict, peer in zip(verdicts, expected, strict=True):
        if peer and (peer.startswith("r:") or "ellipsis" in peer):
            assert verdict == peer


def prose(num_words):
    return " ".join(["the", "of", *(f"w{k:03}x" for k in range(num_words - 2))])


# A text at the bound, which stays, and one beyond. Every mark is a word of the stand-in, as it is of spaCy's.
EDGES = [
    ("gopher_short_doc", prose(50) + " ! ? ;", prose(49) + " ! ? ;"),
    ("gopher_below_avg_threshold", "the of abcd " + "abc " * 60, "the of abc " + "abc " * 60),
    (
        "gopher_above_avg_threshold",
        "the of " + "abcdefghij " * 58 + "a" * 25,
        "the of " + "abcdefghij " * 58 + "a" * 26,
    ),
    ("gopher_too_many_hashes", prose(90) + " #" * 10, prose(80) + " #" * 9),
    ("gopher_too_many_ellipsis", prose(89) + " ..." * 5 + " …" * 5 + " x", prose(79) + " …" * 9 + " x"),
    ("gopher_too_many_bullets", "\n".join([f"- {prose(9)}"] * 9 + [prose(9)]), "\n".join([f" • {prose(9)}"] * 9)),
    ("gopher_too_many_bullets", "\n".join([f"* {prose(9)}"] * 9), "\n".join([f"-{prose(9)}"] * 9)),
    ("gopher_too_many_end_ellipsis", f"{prose(30)}…\n" * 3 + "\n" * 7, f"{prose(30)}...\n" * 4 + "\n" * 9),
    ("gopher_below_alpha_threshold", prose(80) + " ." * 20, prose(79) + " ." * 20),
    ("gopher_enough_stop_words", prose(60), prose(60).replace("of", "The the")),
]


@pytest.mark.parametrize(("rule", "staying", "going"), EDGES)
def test_quality_keeps_at_the_bound_and_drops_beyond(rough_words, rule, staying, going):
    assert rules_broken(QUALITY, staying, going) == [None, rule]


def test_repetition_is_counted_without_the_first_copy_in_shares_of_the_whole_text(rough_words):
    _, values = REPETITION.measure(["ab cd\n\nx\n\nab cd\n\n\nab cd"], {})
    assert values["dup_para_frac"].item() == 2 / 4
    assert values["dup_para_char_frac"].item() == 10 / 23
    assert values["dup_line_frac"].item() == 2 / 4
    assert values["top_2_gram"].item() == 3 * len("ab cd") / 23
    assert values["top_4_gram"].item() == len("ab cd x ab") / 23  # of those that occur once, the first


def test_repeated_ngrams_are_skipped_whole_and_glued(rough_words):
    run = "one two three four five "
    text = run * 3 + "six"
    _, values = REPETITION.measure([text], {})
    assert values["duplicated_5_n_grams"].item() == 2 * len("onetwothreefourfive") / len(text)
    # one..six words from the second copy: `two..one` is seen again at the second copy's second word, then nothing fits
    assert values["duplicated_6_n_grams"].item() == len("onetwothreefourfiveone") / len(text)
    assert values["duplicated_10_n_grams"].item() == len("onetwothreefourfive" * 2) / len(text)


def test_three_of_ten_lines_may_be_copies(rough_words):
    step = replace(REPETITION, max_top_ngram_shares=(9, 9, 9), max_repeated_ngram_shares=(9,) * 6)
    others = "\n".join(f"{number:012}" for number in range(6))
    assert rules_broken(step, "ab\n" * 4 + others, "ab\n" * 5 + others) == [None, "dup_line_frac"]


def test_tokens_of_punctuation_and_controls_alone_are_no_words_to_count():
    marks = datatrove_rules.punctuation()
    assert marks.issuperset("!?…。\u2060"[:4] + "\x00\x9f①"[:2] + "１\u17d4")
    assert not marks & set("a0²é漢ー\n\t ")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    datatrove_rules.spacy_english.cache_clear()
    with pytest.raises(MissingExtraError, match="pip install spacy"):
        QUALITY.judge({"text": ["a text"]})
    with pytest.raises(MissingExtraError, match="pip install spacy"):
        _ = REPETITION.versions
    with pytest.raises(ValueError, match='profile must be "dclm" or "datatrove"'):
        GopherQuality(profile="gopher")
