"""A sample judged by every rule: the funnel is that of the steps one after another, the rest is counted by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from hf_ext.data.curation.dry_run import EXAMPLES_PER_RULE, judge_sample
from hf_ext.data.curation.steps import Batch, Decision, Drop, RowStep, Rule, SetStep, Values
from hf_ext.guards.rows import RowError


@dataclass(frozen=True, kw_only=True)
class Words(RowStep):
    """Two to six words, of at most five letters in the mean; the last word is cut off."""

    name: ClassVar[str] = "words"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("few", minimum=2), Rule("many", maximum=6), Rule("long", maximum=5.0))

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        counts = np.array([len(text.split()) for text in texts], dtype=float)
        means = np.array([np.mean([len(word) for word in text.split()]) for text in texts], dtype=float)
        cut = [" ".join(text.split()[:-1]) for text in texts]
        return {"text": cut}, {"few": counts, "many": counts, "long": means}


@dataclass(frozen=True, kw_only=True)
class Letters(RowStep):
    """At most eight different letters."""

    name: ClassVar[str] = "letters"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("letters", maximum=8),)

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        return {}, {"letters": np.array([len(set(text) - {" "}) for text in texts], dtype=float)}


@dataclass(frozen=True, kw_only=True)
class Unique(SetStep):
    """The first of equal documents stays."""

    name: ClassVar[str] = "unique"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("duplicate"),)

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        return pa.table({"text": texts})

    def decide(self, tables: Sequence[pa.Table]) -> Iterator[list[Decision]]:
        texts: set[str] = set()
        for table in tables:
            decisions = []
            for text in table["text"].to_pylist():
                decisions.append(Decision(Drop("duplicate") if text in texts else None))
                texts.add(text)
            yield decisions


STEPS = [Words(), Letters(), Unique()]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = ["a", "bb", "ccc", "abcdef", "ghijklmn", "op"]
    documents = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(400)]
    return [*documents, "", " \n ", *documents[:20]]


def funnel(texts: list[str]) -> tuple[list[int], dict[str, int]]:
    """The steps one after another on what is left, in plain Python: rows after each, and drops by reason."""
    reasons: Counter[str] = Counter()
    rows = texts
    sizes = []
    for step in STEPS[:2]:
        judgement = step.judge({"text": rows})
        reasons.update(f"{step.name}:{drop.rule}" for drop in judgement.drops if drop is not None)
        new_texts = judgement.columns.get("text", rows)
        rows = [text for text, drop in zip(new_texts, judgement.drops, strict=True) if drop is None]
        sizes.append(len(rows))
    unique = list(dict.fromkeys(rows))
    reasons["unique:duplicate"] = len(rows) - len(unique)
    return [*sizes, len(unique)], dict(reasons)


def judged(texts: list[str], **columns: list):
    return judge_sample({"text": texts, **columns}, [f"id{i}" for i in range(len(texts))], STEPS, *columns)


def test_rows_after_each_step_and_drops_are_those_of_the_steps_one_after_another(texts):
    counts = judged(texts).counts
    sizes, reasons = funnel(texts)
    assert [step.rows_out for step in counts.steps] == [len(texts), *sizes]
    assert [step.rows_in for step in counts.steps[1:]] == [len(texts), *sizes[:-1]]
    drops = {f"{step}:{rule.rule.name}": rule.dropped for step, rule in counts.rules() if rule.dropped}
    assert drops == {name: count for name, count in reasons.items() if count}
    assert sum(drops.values()) + counts.rows_kept == counts.rows_read


def test_a_document_counts_as_one_rule_s_alone_if_it_breaks_no_other_rule_of_any_step(texts):
    broken = []
    for text in texts:
        words = text.split()
        names = []
        if not words:
            names = ["empty"]
        else:
            cut = " ".join(words[:-1])
            names += ["few"] * (len(words) < 2) + ["many"] * (len(words) > 6)
            names += ["long"] * (sum(map(len, words)) > 5 * len(words))
            names += ["letters"] * (len(set(cut) - {" "}) > 8)
        broken.append(names)
    alone = Counter(names[0] for names in broken if len(names) == 1)
    counted = {rule.rule.name: rule.dropped_alone for _, rule in judged(texts).counts.rules()}
    for name in ("empty", "few", "many", "long", "letters"):
        assert counted[name] == alone[name] > 0, name


def test_a_rule_measures_every_document_that_can_be_read(texts):
    rules = {rule.rule.name: rule for _, rule in judged(texts).counts.rules()}
    assert rules["few"].values.total == len(texts) - 2
    # of one word nothing is left for the next step
    assert rules["letters"].values.total == sum(len(text.split()) > 1 for text in texts)


def test_words_are_those_of_the_documents_that_are_in(texts):
    steps = judged(texts).counts.steps
    assert steps[0].tokens_out == sum(len(text.split()) for text in texts)
    kept = [text for text, drop in zip(texts, STEPS[0].judge({"text": texts}).drops, strict=True) if drop is None]
    assert steps[1].tokens_out == sum(len(text.split()) - 1 for text in kept)


def test_examples_name_documents_that_go_by_the_rule_with_value_bound_and_text(texts):
    result = judged(texts)
    rules = {(step, rule.rule.name): rule for step, rule in result.counts.rules()}
    numbers = Counter((example.step, example.rule) for example in result.examples)
    assert numbers == {key: min(rule.dropped, EXAMPLES_PER_RULE) for key, rule in rules.items() if rule.dropped}
    for example in result.examples:
        text = texts[int(example.id.removeprefix("id"))]
        if example.rule == "many":
            assert (example.value, example.threshold, example.excerpt) == (len(text.split()), 6.0, text[:300])


def test_documents_are_counted_by_their_source(texts):
    sources = ["odd" if i % 2 else "even" for i in range(len(texts))]
    counts = judged(texts, source=sources).counts
    assert {name: source.rows_read for name, source in counts.sources.items()} == Counter(sources)
    for step in counts.steps[1:]:
        dropped = sum(source.dropped.get(step.name, 0) for source in counts.sources.values())
        assert dropped == step.rows_in - step.rows_out


def test_a_document_that_is_none_is_an_error_or_counted():
    with pytest.raises(RowError, match="row 1"):
        judge_sample({"text": ["a b", None]}, ["0", "1"], [Words()])
    counts = judge_sample({"text": ["a b", None]}, ["0", "1"], [Words(on_bad_row="drop"), Letters()]).counts
    assert {rule.rule.name: rule.dropped for _, rule in counts.rules()}["error:NoneType"] == 1
