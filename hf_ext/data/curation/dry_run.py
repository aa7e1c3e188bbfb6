"""What a curation would do, judged on a sample: every rule sees every document, and nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.counts import CurationCounts, RuleCounts, SourceCounts, StepCounts
from hf_ext.data.curation.report import DropExample
from hf_ext.data.curation.steps import Drop, RowStep, Rule, SetStep, Step, Values

Mask = npt.NDArray[np.bool_]  # (documents,)
Columns = dict[str, list[Any]]

EXAMPLES_PER_RULE = 3
EXCERPT_LENGTH = 300  # characters
_WARM_UP_ROWS = 4  # the first call compiles a kernel or loads a model, which says nothing of the whole set


class JudgedSample(NamedTuple):
    """
    What steps make of a sample.

    Args:
        counts ([`CurationCounts`]):
            As of a curation, but what a rule measured is of every document that could be read, whatever earlier steps
            say, and `dropped_alone` counts documents that no other rule of any step drops.
        examples (`list[DropExample]`):
            A few documents of each rule.
        seconds_a_row (`dict[str, float]`):
            Time of each step for a document that comes to it.
    """

    counts: CurationCounts
    examples: list[DropExample]
    seconds_a_row: dict[str, float]


def judge_sample(
    columns: Mapping[str, Sequence[Any]], ids: Sequence[str], steps: Sequence[Step], source_column: str | None = None
) -> JudgedSample:
    """
    Judge documents by every step, those that an earlier one drops too.

    Steps that need every document (duplicates, a share to keep) see those that are still in, as in a curation.

    Args:
        columns (`Mapping[str, Sequence]`):
            The documents.
        ids (`Sequence[str]`):
            Their ids.
        steps (`Sequence[Step]`):
            In their order.
        source_column (`str`, *optional*):
            Column of the source that the counts are by.

    Raises:
        RowError: if a document is none, and its step raises for such.
    """
    sample = _Sample({name: list(values) for name, values in columns.items()}, list(ids), steps[-1].text_column)
    for step in steps:
        sample.judge(step)
    return JudgedSample(sample.counts(source_column), sample.examples, sample.seconds_a_row)


class _Verdict(NamedTuple):
    """Of a rule: its counts, the documents that break it, and those of them that go by it."""

    counts: RuleCounts
    breaks: Mask
    goes: Mask


class _Sample:
    def __init__(self, columns: Columns, ids: list[str], text_column: str) -> None:
        self.columns = columns
        self.ids = ids
        self.text_column = text_column  # of the finished documents, whose words are counted
        self.is_in: Mask = np.ones(len(ids), dtype=bool)
        self.is_legible: Mask = np.ones(len(ids), dtype=bool)
        self.reasons: list[str | None] = [None] * len(ids)  # the step that each document goes by
        self.verdicts: list[_Verdict] = []
        self.steps = [StepCounts("read", len(ids), len(ids), self.num_words(), self.num_words())]
        self.examples: list[DropExample] = []
        self.seconds_a_row: dict[str, float] = {}

    def num_words(self) -> int | None:
        """Words between white space of the documents that are in; `None` where there is no text yet."""
        texts = self.columns.get(self.text_column)
        if texts is None:
            return None
        return sum(len(text.split()) for text, is_in in zip(texts, self.is_in, strict=True) if is_in and text)

    def judge(self, step: Step) -> None:
        """One step: verdicts, examples, and the columns that it rewrites."""
        places = np.flatnonzero(self.is_in if isinstance(step, SetStep) else self.is_in | self._can_be_read(step))
        batch: Columns = {name: [column[place] for place in places] for name, column in self.columns.items()}
        counts = StepCounts(step.name, int(self.is_in.sum()), tokens_in=self.num_words())
        if isinstance(step, RowStep) and len(places):
            step.judge(
                {name: column[:_WARM_UP_ROWS] for name, column in batch.items()}, places[:_WARM_UP_ROWS].tolist()
            )
        start = time.perf_counter()
        if isinstance(step, RowStep):
            columns, values, drops = step.judge(batch, places.tolist())
        else:
            columns, values, drops = _decide(step, batch)
        seconds_a_row = (time.perf_counter() - start) / max(len(places), 1)
        for verdict in self._verdicts(step, places, values, drops):
            self._add_examples(step, verdict, dict(zip(places.tolist(), drops, strict=True)))
            counts.rules[verdict.counts.rule.name] = verdict.counts
            self.verdicts.append(verdict)
            self.is_in &= ~verdict.goes
            for place in np.flatnonzero(verdict.goes):
                self.reasons[place] = step.name
        for name, column in columns.items():
            merged = self.columns.setdefault(name, [None] * len(self.ids))
            for place, value in zip(places, column, strict=True):
                merged[place] = value
        counts.rows_out = int(self.is_in.sum())
        counts.tokens_out = self.num_words()
        counts.seconds = seconds_a_row * counts.rows_in
        self.steps.append(counts)
        self.seconds_a_row[step.name] = seconds_a_row

    def counts(self, source_column: str | None) -> CurationCounts:
        """The counts, once every step has judged."""
        num_broken = sum((verdict.breaks.astype(int) for verdict in self.verdicts), np.zeros(len(self.ids), dtype=int))
        for verdict in self.verdicts:
            verdict.counts.dropped_alone = int((verdict.goes & (num_broken == 1)).sum())
        counts = CurationCounts(steps=self.steps)
        for source, reason in zip(self.columns[source_column], self.reasons, strict=True) if source_column else ():
            part = SourceCounts(1, {} if reason is None else {reason: 1})
            counts.merge(CurationCounts(sources={str(source): part}))
        return counts

    def _can_be_read(self, step: Step) -> Mask:
        """Documents that the step can judge though they are out: those that an earlier one left something of."""
        texts = self.columns.get(step.text_column, self.ids)
        is_document = [isinstance(text, str | bytes) and bool(text) and not text.isspace() for text in texts]
        return self.is_legible & np.array(is_document, dtype=bool)

    def _verdicts(
        self, step: Step, places: npt.NDArray[np.intp], values: Mapping[str, Values], drops: Sequence[Drop | None]
    ) -> list[_Verdict]:
        nobody = np.zeros(len(self.ids), dtype=bool)
        verdicts = {rule.name: _Verdict(RuleCounts(rule), nobody.copy(), nobody.copy()) for rule in step.rules}
        rule_names = set(verdicts)
        for name, numbers in values.items():
            if name in verdicts:
                verdicts[name].counts.values.add(numbers)
                verdicts[name].breaks[places] = verdicts[name].counts.rule.broken_by(numbers)
        for place, drop in zip(places, drops, strict=True):
            if drop is None:
                continue
            verdict = verdicts.setdefault(
                drop.rule, _Verdict(RuleCounts(Rule(drop.rule)), nobody.copy(), nobody.copy())
            )
            verdict.breaks[place] = True
            verdict.goes[place] = self.is_in[place]
            self.is_legible[place] &= drop.rule in rule_names  # else nothing could be measured
        for verdict in verdicts.values():
            verdict.counts.dropped = int(verdict.goes.sum())
        return list(verdicts.values())

    def _add_examples(self, step: Step, verdict: _Verdict, drops: Mapping[int, Drop | None]) -> None:
        texts = self.columns.get(step.text_column, self.ids)
        for place in np.flatnonzero(verdict.goes)[:EXAMPLES_PER_RULE]:
            text = texts[place]
            text = text[:EXCERPT_LENGTH].decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            rule, value, threshold = drops[int(place)] or Drop(verdict.counts.rule.name)
            excerpt = text[:EXCERPT_LENGTH]
            self.examples.append(DropExample(self.ids[place], step.name, rule, value, threshold, excerpt))


def _decide(step: SetStep, batch: Columns) -> tuple[Columns, dict[str, Values], list[Drop | None]]:
    """What a step that needs every document does with those at hand: columns, measurements and drops."""
    texts = batch[step.text_column]
    decisions = list(chain.from_iterable(step.decide([step.features(texts, batch)])))
    columns: Columns = {
        step.text_column: [
            text if decision.kept_pieces is None else step.rewrite(text, decision.kept_pieces)
            for text, decision in zip(texts, decisions, strict=True)
        ]
    }
    for name in {name for decision in decisions for name in decision.columns}:
        columns[name] = [decision.columns.get(name) for decision in decisions]
    return columns, {}, [decision.drop for decision in decisions]
