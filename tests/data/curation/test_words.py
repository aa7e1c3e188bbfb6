"""Word boundaries against cases worked out from the rules of UAX#29, and compiled against plain."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation import plain
from hf_ext.data.curation.unicode_tables import NUM_CODE_POINTS, WORD_BREAK_CLASSES, unicode_tables
from hf_ext.data.curation.words import segments_uax, words_ft, words_uax
from tests.data.curation.slow_rules import words_by_regex

# Boundaries as |, worked out by hand from rules WB3 to WB999, each with the rule that it is for.
CASES = [
    ("WB3", "a|\r\n|b"), ("WB3a", "\n|\r|\u0308"), ("WB3b", "a|\u2028|a"),
    ("WB3c", "☺\u200d☺"), ("WB3c", "a\u200dⓂ|\u0020|☺|☺"), ("WB3c", "ab\u200d☺|a"),
    ("WB3d", "a|   |b"), ("WB3d", "  \u0308| |b"),
    ("WB4", "a\u0308b"), ("WB4", "a\u200d\u0308b|!"), ("WB4", "\u0308|a"), ("WB4", "a|\n|\u0308\u0308|a"),
    ("WB5", "straße"), ("WB5", "Ⓜa"), ("WB6", "can't|.|'|a"), ("WB6", "a:b|:|:|c"), ("WB6", "a'\u0308b|'|1"),
    ("WB7a", "א'|!"), ("WB7a", "א'ב"), ("WB7a", "א'|1"), ("WB7b", 'א"ב|"|a'), ("WB7b", 'a|"|ב'),
    ("WB8", "١٢٣4"), ("WB9", "a1b2"), ("WB11", "3.14|,|x"), ("WB11", "1,000.5|.|.|5"), ("WB11", "1'2|:|3"),
    ("WB13", "カタ|漢|字"), ("WB13", "ア|a"), ("WB13a", "a_|!|_|!|1_2_ア_"), ("WB13b", "_a"),
    ("WB15", "🇩🇪🇫🇷"[:2] + "|" + "🇩🇪🇫🇷"[2:] + "|a"), ("WB16", "a|🇩🇪|🇫|a"), ("WB16", "🇩\u0308🇪|🇫"),
    ("WB999", "a|-|b|漢|字|\ud800|\0|😀"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "marked"), CASES)
def test_boundaries_are_where_the_rules_put_them(counters, rule, marked):
    assert segments_uax(marked.replace("|", "")) == marked.split("|")


def test_words_begin_with_a_letter_or_digit(counters):
    assert words_uax("“Don't”, she said: 3.5 l_ of _milk_ für 漢字!") == [
        "Don't", "she", "said", "3.5", "l_", "of", "für", "漢", "字",
    ]  # fmt: skip


def test_fasttext_words_are_split_at_ascii_white_space_and_nul_alone():
    text = 'one\u00a0two three\0four "five (six) 7th ...\nß\r\f\v-x'
    assert words_ft(text) == ["one\u00a0two", "three", "four", "7th", "ß"]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "...", "\0", "\ud800"])
def test_a_text_without_words_has_none(counters, text):
    assert words_uax(text) == words_ft(text) == []
    assert "".join(segments_uax(text)) == text


def test_compiled_and_plain_cut_random_strings_of_all_classes_alike():
    """Characters are drawn class by class: a class of one member is as frequent as one of a million."""
    kernel = pytest.importorskip("hf_ext.data.curation.kernel")
    generator = np.random.default_rng(0)
    classes = unicode_tables().word_break
    members = [np.flatnonzero(classes == number) for number in range(len(WORD_BREAK_CLASSES))]
    members.append(np.array([0x2139, 0x24C2, 0x1F600]))  # pictographs; the first two are letters, too
    points = np.stack([generator.choice(pool, 60_000) for pool in members])  # (classes, 60000)
    drawn = points[generator.integers(len(members), size=60_000), np.arange(60_000)].tolist()
    for start in range(0, 60_000, 10):
        text = "".join(map(chr, drawn[start : start + 10]))
        for words_only in (False, True):
            compiled_spans = kernel.segment_spans(text, words_only=words_only)
            plain_spans = plain.segment_spans(text, words_only=words_only)
            assert np.array_equal(compiled_spans, plain_spans), ascii(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None), max_size=40))
def test_segments_are_the_text(text):
    assert "".join(segments_uax(text)) == text
    assert all(word[0].isalnum() for word in words_uax(text))


@pytest.mark.real
def test_words_of_real_documents_are_those_of_another_implementation(counters, text_docs):
    documents = [row["text"] for row in text_docs]
    assert [words_uax(text) for text in documents] == [words_by_regex(text) for text in documents]


def test_every_code_point_has_a_class_and_the_traits_of_str():
    tables = unicode_tables()
    for point in (*range(0x3000), *range(0x3000, NUM_CODE_POINTS, 997)):
        character = chr(point)
        has_traits = [tables.traits[point] & bit != 0 for bit in (1, 2, 4, 8, 16)]
        methods = (str.isalnum, str.isalpha, str.isspace, str.isupper, str.isdigit)
        assert has_traits == [method(character) for method in methods], hex(point)


def test_without_numba_the_plain_functions_count():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from hf_ext.data.curation import words\n"
        "print(words.counters().__name__, words.words_uax('a b'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["hf_ext.data.curation.plain", "['a', 'b']\n"]
