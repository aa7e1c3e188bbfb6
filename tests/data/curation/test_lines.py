"""Rules of lines against the same rules written down slowly, one document at a time."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation.lines import LineRules
from tests.data.curation import slow_rules
from tests.data.curation.edges import LINE_CASES, LINE_PIECES, MILLION_DIGITS, PROSE


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


@pytest.mark.parametrize(("line", "remainder"), LINE_CASES, ids=lambda value: repr(value)[:40])
def test_lines_are_cut_by_hand_worked_rules(counters, line, remainder):
    kept = PROSE if remainder is None else f"{PROSE}\n{remainder}\n{PROSE}"
    text = f"{PROSE}\n{line}\n{PROSE}"
    expected = f"{PROSE}\n{PROSE}" if remainder is None else kept
    assert outcomes(LineRules(max_removed_words=1.0), [text]) == [(expected, None)]
    assert_as_slow([text])


def test_of_a_million_digits_one_may_be_something_else():
    at_bound, beyond = outcomes(LineRules(max_removed_words=1.0), [f"{PROSE}\n{line}" for line in MILLION_DIGITS])
    assert (at_bound, beyond) == ((f"{PROSE}\n{MILLION_DIGITS[0]}", None), (PROSE, None))


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


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(LINE_PIECES), min_size=1, max_size=25), st.booleans())
def test_texts_of_awkward_pieces_are_cut_as_by_the_slow_rules(pieces, replicate_bugs):
    text = "".join(pieces)
    if text.strip():
        assert_as_slow([text], replicate_bugs)


def test_the_step_pickles_and_names_the_versions_that_decide():
    step = LineRules(replicate_bugs=True)
    assert pickle.loads(pickle.dumps(step)) == step
    assert set(step.versions) == {"unicodedata", "regex"}
