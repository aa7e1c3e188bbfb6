"""Rules of lines against the same rules written down slowly, one document at a time."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation.lines import LineRules
from tests.data.curation import slow_rules


def outcomes(step, texts):
    """The text that is left and the rule that drops it, for each."""
    judgement = step.judge({"text": texts})
    return [(text, drop and drop.rule) for text, drop in zip(judgement.columns["text"], judgement.drops, strict=True)]


def assert_as_slow(texts, replicate_bugs=False):
    step = LineRules(replicate_bugs=replicate_bugs)
    for text, outcome in zip(texts, outcomes(step, texts), strict=True):
        slow_text, slow_rule = slow_rules.delete_lines(text, replicate_bugs)
        assert outcome[1] == slow_rule, ascii(text)
        if slow_rule in (None, "removed_words"):
            assert outcome[0] == slow_text, ascii(text)
        else:
            assert outcome[0] == text


@pytest.mark.real
@pytest.mark.parametrize("replicate_bugs", [False, True])
def test_real_documents_are_cut_as_by_the_slow_rules(counters, text_docs, replicate_bugs):
    assert_as_slow([row["text"] for row in text_docs], replicate_bugs)


PROSE = "\n".join(["a line of plain words that nobody would want to delete"] * 6)

# A line and what is left of it in the middle of prose; None if the line goes.
LINES = [
    ("AB cd", "AB cd"), ("ABC de", "ABC de"), ("ABCD e", None), ("ÀÉÈ d", None), ("12345", None), ("12a 45", "12a 45"),
    ("٣٤", None),
    ("3 likes", None), ("1 like", None), ("(1,024.5k   Views!)", None), ("3 likes and more", "3 likes and more"),
    ("3likes here", "3likes here"), ("word", None), ("", ""), ("two words", "two words"), ("  \t", None),
    ("your 2 Items in Cart now", "your 2 now"), ("items in cart", None), ("itemſ in Kart", "itemſ in Kart"),
    ("and ıtems in cart", "and"), ("items in cart " * 3, None), ("items in cart" + " word" * 8,) * 2,
    ("some text Read more...", "some text"), ("Read More...", None), ("Read more... of it", "Read more... of it"),
    ("we read more of it", "we read more of it"), ("Sign-in to see", "to see"), ("please Sign-in", "please Sign-in"),
    ("ſIGN-ıN now", "now"), ("x Sign-in", "x Sign-in"), ("Sign-iitems in cartn now read more...", "now"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "remainder"), LINES)
def test_lines_are_cut_by_hand_worked_rules(counters, line, remainder):
    kept = PROSE if remainder is None else f"{PROSE}\n{remainder}\n{PROSE}"
    text = f"{PROSE}\n{line}\n{PROSE}"
    expected = f"{PROSE}\n{PROSE}" if remainder is None else kept
    assert outcomes(LineRules(max_removed_words=1.0), [text]) == [(expected, None)]
    assert_as_slow([text])


def test_the_letter_of_dclm_keeps_singular_counters_and_cuts_ordinary_words(counters):
    text = f"{PROSE}\n1 like\nwe read more of\n{PROSE}"
    assert outcomes(LineRules(replicate_bugs=True, max_removed_words=1.0), [text]) == [
        (f"{PROSE}\n1 like\nwe\n{PROSE}", None)
    ]
    assert outcomes(LineRules(max_removed_words=1.0), [text]) == [(f"{PROSE}\nwe read more of\n{PROSE}", None)]


@pytest.mark.parametrize(("text", "rule"), [
    ("ALL UPPER\n\nCASE", "uppercase_lines"), ("12\n34", "numeric_lines"), ("3 likes\n4 views", "counter_lines"),
    ("one\n\n\ntwo", "short_lines"), ("items in cart\n\nITEMS IN CART", "items_in_cart"),
    ("Read more...", "read_more"),
    ("Sign-in Sign-in", "removed_words"), ("sign-in \n ab cd\nABC", "removed_words"),
])  # fmt: skip
def test_a_document_of_which_nothing_is_left_goes_by_the_rule_that_took_the_last_line(counters, text, rule):
    assert [drop for _, drop in outcomes(LineRules(), [text])] == [rule]
    assert_as_slow([text])


def test_a_document_may_lose_a_twentieth_of_its_words(counters):
    lines = "\n".join(["five words in a line"] * 19)
    texts = [lines + "\nABC\nDEF\nGHI\nJKL\nMNO", lines + "\nABC\nDEF\nGHI\nJKL\nMNO\nPQR"]
    judgement = LineRules().judge({"text": texts})
    assert [drop and drop.rule for drop in judgement.drops] == [None, "removed_words"]
    assert judgement.values["removed_words"].tolist() == [5 / 100, 6 / 101]
    assert judgement.values["uppercase_lines"].tolist() == pytest.approx([5 / 24, 6 / 25])


PIECES = ["AB", "ab", " ", "\n", "\n\n", "1", "23", "4 likes", "5 view", "items in cart", "Read more...",
          "read more of", "Sign-in", "Sign-in ", "\u00a0", "word two", "\t", "é", "\x1c", "... ",
          "two words of prose\n", "\0", "\ud800"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25), st.booleans())
def test_texts_of_awkward_pieces_are_cut_as_by_the_slow_rules(pieces, replicate_bugs):
    text = "".join(pieces)
    if text.strip():
        assert_as_slow([text], replicate_bugs)


def test_the_step_pickles_and_names_the_versions_that_decide():
    step = LineRules(replicate_bugs=True)
    assert pickle.loads(pickle.dumps(step)) == step
    assert set(step.versions) == {"unicodedata", "regex"}
