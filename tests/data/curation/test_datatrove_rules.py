"""`profile="datatrove"` without spaCy: its rules on words of a stand-in, against its verdicts and cases by hand."""

from __future__ import annotations

import sys

import pytest

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.guards.extras import MissingExtraError
from tests.data.curation.edges import ROUGH_WORDS

QUALITY = GopherQuality(profile="datatrove")
REPETITION = GopherRepetition(profile="datatrove")


@pytest.fixture
def rough_words(monkeypatch):
    monkeypatch.setattr(datatrove_rules, "spacy_words", ROUGH_WORDS.findall)


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
