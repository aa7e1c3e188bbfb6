"""The text a retriever reads: golden strings, and budgets that never touch the target."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hf_ext.data.exemplars import Exemplar, RareFormatter, TokenCounter
from tests.tiny import tiny_tokenizer

PROMPT = "Instruct: Given a claim, find the abstract that decides it.\nQuery: "
UNLIMITED = {"max_tokens": None, "max_example_query_tokens": None, "max_example_document_tokens": None}
FIVE = [Exemplar(i, 5.0 - i, f"claim {i}", f"abstract {i}", negative=f"wrong {i}") for i in range(5)]

K0 = "Instruct: Given a claim, find the abstract that decides it.\nQuery: the target"
K1 = """\
Instruct: Given a claim, find the abstract that decides it.
Query: claim 0
Positive Document: abstract 0

Query: the target"""
K5 = """\
Instruct: Given a claim, find the abstract that decides it.
Query: claim 4
Positive Document: abstract 4

Query: claim 3
Positive Document: abstract 3

Query: claim 2
Positive Document: abstract 2

Query: claim 1
Positive Document: abstract 1

Query: claim 0
Positive Document: abstract 0

Query: the target"""
NEGATIVES = """\
Query: claim 0
Positive Document: abstract 0
Negative Document: wrong 0

Query: claim 1
Positive Document: abstract 1
Negative Document: wrong 1

Query: the target"""
BRACKETS = """\
Instruct: Given a claim, find the abstract that decides it.
Query: [claim 0]
Positive Document: abstract 0

Query: [the target]"""


@pytest.mark.parametrize(("k", "golden"), [(0, K0), (1, K1), (5, K5)])
def test_golden_strings(k, golden):
    assert PROMPT + RareFormatter(**UNLIMITED)("the target", FIVE[:k], prompt=PROMPT).body == golden


def test_golden_string_with_negatives_nearest_first_behind_no_prompt():
    formatter = RareFormatter(order="nearest_first", with_negatives=True, **UNLIMITED)
    assert formatter("the target", FIVE[:2]).body == NEGATIVES


def test_golden_string_with_brackets():
    formatter = RareFormatter(brackets=("[", "]"), **UNLIMITED)
    assert PROMPT + formatter("the target", FIVE[:1], prompt=PROMPT).body == BRACKETS
    assert formatter("the target", prompt=PROMPT).body == "[the target]"


@given(query=st.text(), prompt=st.text())
def test_without_exemplars_prompt_and_body_are_the_instruct_baseline_byte_for_byte(query, prompt):
    body = RareFormatter(**UNLIMITED)(query, prompt=prompt).body
    assert (prompt + body).encode("utf-8", "surrogatepass") == (prompt + query).encode("utf-8", "surrogatepass")


# --- budgets ---------------------------------------------------------------------------------------------------------


def word_pieces() -> Tokenizer:
    """Word pieces of at most three letters, [CLS] and [SEP] added, truncation and padding on as models ship it."""
    letters = "abcdefghijklmnopqrstuvwxyzQPD:0123456789."
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "##the", "cat", "##at", "Que", "##ry", "##ery"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *letters, *(f"##{x}" for x in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32, pad_id=3, pad_token="[PAD]")
    return tokenizer


BYTES = tiny_tokenizer()  # adds no special tokens; every text comes back from its tokens
PIECES = word_pieces()
PLAIN_PIECES = Tokenizer.from_str(PIECES.to_str())
PLAIN_PIECES.no_truncation()
PLAIN_PIECES.no_padding()
COUNTERS = {
    "bytes": (TokenCounter(BYTES), lambda text: len(BYTES(text)["input_ids"])),
    "pieces": (TokenCounter(PIECES), lambda text: len(PLAIN_PIECES.encode(text).ids)),
}
TEXT = st.one_of(
    st.text(st.sampled_from("the cat Query:\n."), min_size=1, max_size=80),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(["Ada counts 12 apples at home. " * 9, "thecat" * 30, "猫が好き" * 10, "🙂👩‍🚀é" * 8]),
)
EXEMPLARS = st.lists(st.tuples(TEXT, TEXT), max_size=6).map(
    lambda pairs: [Exemplar(i, float(-i), query, document) for i, (query, document) in enumerate(pairs)]
)


@settings(max_examples=300, deadline=None)
@given(
    query=TEXT,
    exemplars=EXEMPLARS,
    prompt=st.sampled_from(["", PROMPT, "Instruct: x\n"]),
    limits=st.tuples(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["bytes", "pieces"]),
    order=st.sampled_from(["nearest_last", "nearest_first"]),
)
def test_the_target_is_never_cut_and_the_budget_is_kept(query, exemplars, prompt, limits, kind, order):
    counter, count = COUNTERS[kind]
    whole, of_query, of_document = limits
    settings_ = {"max_example_query_tokens": of_query, "max_example_document_tokens": of_document, "order": order}
    formatter = RareFormatter(max_tokens=whole, **settings_)
    made = formatter(query, exemplars, prompt=prompt, tokenizer=counter)
    assert made.body.endswith(query)
    assert made.shown == tuple(exemplars[: len(made.shown)])  # the nearest ones
    assert len(made.shown) + made.dropped == len(exemplars)
    if made.shown:
        assert count(prompt + made.body) <= whole
    else:
        assert made.body == query
    if kind == "bytes":  # what the model reads ends with the target, token by token
        assert BYTES.decode(BYTES(prompt + made.body)["input_ids"]).endswith(query)
    if made.dropped:  # one more would not have fitted
        longer = RareFormatter(max_tokens=None, **settings_)
        assert (
            count(prompt + longer(query, exemplars[: len(made.shown) + 1], prompt=prompt, tokenizer=counter).body)
            > whole
        )


@settings(max_examples=300, deadline=None)
@given(text=TEXT, limit=st.integers(1, 40), kind=st.sampled_from(["bytes", "pieces"]))
def test_a_clipped_text_is_the_beginning_of_the_text_and_within_its_limit(text, limit, kind):
    counter, count = COUNTERS[kind]
    specials = count("")
    clipped = counter.clip(text, limit)
    assert text.startswith(clipped)
    assert count(clipped) - specials <= limit
    if count(text) - specials <= limit:
        assert clipped == text


def test_a_clip_is_as_long_as_the_limit_allows():
    counter, count = COUNTERS["bytes"]
    text = "Ada counts 12 apples at home. Ben sells 7 boats by the river."
    for limit in range(1, count(text)):
        assert limit - 2 <= count(counter.clip(text, limit)) <= limit


def test_exemplars_are_cut_to_their_own_limits_and_keep_their_characters():
    counter, _ = COUNTERS["bytes"]
    exemplar = Exemplar(0, 1.0, "Where DOES  Ada\tlive?" * 5, "Ada paints 3 boats. " * 20, negative="n" * 500)
    formatter = RareFormatter(
        max_tokens=None, max_example_query_tokens=9, max_example_document_tokens=5, with_negatives=True
    )
    body = formatter("target", [exemplar], tokenizer=counter).body
    first, positive, negative, *_ = body.split("\n")
    assert counter.count(first.removeprefix("Query: ")) <= 9
    assert counter.count(positive.removeprefix("Positive Document: ")) <= 5
    assert counter.count(negative.removeprefix("Negative Document: ")) <= 5
    assert exemplar.query.startswith(first.removeprefix("Query: "))


def test_a_model_tokenizer_is_left_as_it_is():
    before = PIECES.to_str()
    assert TokenCounter(PIECES).count("the cat the cat the cat the cat") == 10
    assert PIECES.to_str() == before


@given(exemplars=EXEMPLARS, query=TEXT)
@settings(max_examples=50, deadline=None)
def test_a_formatter_that_went_through_json_writes_the_same(exemplars, query):
    assume(query)
    formatter = RareFormatter(brackets=("<", ">"), max_tokens=90, order="nearest_first")
    again = RareFormatter.from_dict(json.loads(json.dumps(formatter.to_dict())))
    counter = COUNTERS["bytes"][0]
    assert again == formatter
    assert again(query, exemplars, tokenizer=counter) == formatter(query, exemplars, tokenizer=counter)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RareFormatter(order="random"), ValueError, "order must be one of"),
        (lambda: RareFormatter(max_tokens=0), ValueError, "max_tokens is a number of tokens above 0"),
        (lambda: RareFormatter()("query"), ValueError, "pass the model's tokenizer, or set them to None"),
        (lambda: RareFormatter()("query", tokenizer=str), TypeError, "needs? character offsets"),
        (lambda: RareFormatter.from_dict({"colour": "red"}), ValueError, "no setting 'colour'"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
