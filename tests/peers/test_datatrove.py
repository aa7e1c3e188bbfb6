"""`profile="datatrove"` against datatrove's own filters, on real documents and on texts made to be awkward."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

from hf_ext.data.curation.datatrove_rules import punctuation, spacy_words
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from tests.data.curation.documents import text_docs
from tests.data.curation.edges import DATATROVE_QUALITY_EDGES, DATATROVE_REPETITION_EDGES

PAIRS = [
    (GopherQuality(profile="datatrove"), GopherQualityFilter()),
    (GopherRepetition(profile="datatrove"), GopherRepetitionFilter()),
]


def verdict(peer, text):
    answer = peer.filter(Document(text=text, id="0"))
    return None if answer is True else answer[1]


@pytest.mark.real
@pytest.mark.parametrize(("step", "peer"), PAIRS, ids=["quality", "repetition"])
def test_verdict_and_rule_are_datatroves(real_data, step, peer):
    texts = [row["text"] for row in text_docs(real_data)]
    drops = step.judge({"text": texts}).drops
    assert [drop and drop.rule for drop in drops] == [verdict(peer, text) for text in texts]


@pytest.mark.real
def test_461_of_600_documents_stay(real_data):
    rows = text_docs(real_data)
    quality, repetition = (step.judge({"text": [row["text"] for row in rows]}).drops for step, _ in PAIRS)
    verdicts = [(a and f"q:{a.rule}") or (b and f"r:{b.rule}") for a, b in zip(quality, repetition, strict=True)]
    assert verdicts == [row["datatrove"] for row in rows]
    assert verdicts.count(None) == 461


PIECES = [
    "the ",
    "of ",
    "word ",
    "don't ",
    "- ",
    "…",
    "... ",
    "#",
    "\n",
    "\n\n",
    "• item",
    "3.5 ",
    "ab cd ",
    "U.S. ",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=150))
def test_texts_of_awkward_pieces_are_judged_as_by_datatrove(pieces):
    text = "x " + "".join(pieces)
    assert spacy_words(text) == split_into_words(text)
    for step, peer in PAIRS:
        drop = step.judge({"text": [text]}).drops[0]
        assert (drop and drop.rule) == verdict(peer, text)


@pytest.mark.parametrize("edges", [DATATROVE_QUALITY_EDGES, DATATROVE_REPETITION_EDGES], ids=["quality", "repetition"])
def test_both_sides_of_each_bound_are_judged_as_by_datatrove(edges):
    step, peer = PAIRS[edges is DATATROVE_REPETITION_EDGES]
    for edge in edges:
        assert [drop and drop.rule for drop in step.judge({"text": edge.texts}).drops] == edge.verdicts
        assert [verdict(peer, text) for text in edge.texts] == edge.verdicts


def test_punctuation_is_datatroves():
    assert punctuation() == PUNCTUATION_SET
