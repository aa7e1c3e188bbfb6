"""A document at the bound of a rule stays, one just beyond goes by that rule: every rule, both ways of counting."""

from __future__ import annotations

import pytest

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.data.curation.steps import RowStep
from hf_ext.data.curation.words import words_uax
from tests.data.curation import slow_rules
from tests.data.curation.edges import (
    DATATROVE_QUALITY_EDGES,
    DATATROVE_REPETITION_EDGES,
    QUALITY_EDGES,
    REPETITION_EDGES,
    ROUGH_WORDS,
    Edge,
)


def rules_broken(step: RowStep, edge: Edge) -> list[str | None]:
    return [drop and drop.rule for drop in step.judge({"text": edge.texts}).drops]


def named(edges: list[Edge]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("edge", edges, ids=[edge.rule for edge in edges])


@named(QUALITY_EDGES)
def test_quality_keeps_at_the_bound_and_drops_beyond(counters, edge):
    assert rules_broken(GopherQuality(), edge) == edge.verdicts
    assert [slow_rules.quality_verdict(slow_rules.quality(text)) for text in edge.texts] == edge.verdicts
    assert slow_rules.quality(edge.at_bound)[edge.rule] in slow_rules.QUALITY_BOUNDS[edge.rule]


@named(REPETITION_EDGES)
def test_repetition_keeps_at_the_bound_and_drops_beyond(counters, edge):
    assert rules_broken(GopherRepetition(), edge) == edge.verdicts
    slow_values = [slow_rules.repetition(text, words_uax(text)) for text in edge.texts]
    assert list(map(slow_rules.repetition_verdict, slow_values)) == edge.verdicts
    assert slow_values[1][edge.rule] == slow_rules.REPETITION_BOUNDS[edge.rule]


@named(DATATROVE_QUALITY_EDGES)
def test_datatroves_quality_keeps_at_the_bound_and_drops_beyond(monkeypatch, edge):
    monkeypatch.setattr(datatrove_rules, "spacy_words", ROUGH_WORDS.findall)
    assert rules_broken(GopherQuality(profile="datatrove"), edge) == edge.verdicts


@named(DATATROVE_REPETITION_EDGES)
def test_datatroves_repetition_keeps_at_the_bound_and_drops_beyond(monkeypatch, edge):
    monkeypatch.setattr(datatrove_rules, "spacy_words", ROUGH_WORDS.findall)
    step = GopherRepetition(profile="datatrove")
    assert rules_broken(step, edge) == edge.verdicts
    values = step.measure([edge.at_bound], {})[1]
    (bound,) = (rule.maximum for rule in step.rules if rule.name == edge.rule)
    assert values[edge.rule].item() == bound


def test_every_rule_has_an_edge():
    for step, edges in (
        (GopherQuality(), QUALITY_EDGES),
        (GopherRepetition(), REPETITION_EDGES),
        (GopherQuality(profile="datatrove"), DATATROVE_QUALITY_EDGES),
        (GopherRepetition(profile="datatrove"), DATATROVE_REPETITION_EDGES),
    ):
        assert {edge.rule for edge in edges} == {rule.name for rule in step.rules}
