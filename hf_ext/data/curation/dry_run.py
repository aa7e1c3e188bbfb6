"""What a curation would do, judged on a sample: every rule sees every document, and nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from hf_ext.data.curation.counts import CurationCounts, RuleCounts, SourceCounts, StepCounts
from hf_ext.data.curation.document_sample import DocumentSample, draw_documents
from hf_ext.data.curation.report import CurationReport, DropExample, SampleFacts
from hf_ext.data.curation.running import document_name, step_names
from hf_ext.data.curation.sources import DatasetShard, Shard, StreamShard, shards_of
from hf_ext.data.curation.steps import Drop, Judgement, Notes, RowStep, Rule, SetStep, Step, Values
from hf_ext.data.curation.workers import peak_bytes

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Mask = npt.NDArray[np.bool_]  # (documents,)
Columns = dict[str, list[Any]]

EXAMPLES_PER_RULE = 3
EXCERPT_LENGTH = 300  # characters
_WARM_UP_ROWS = 4  # the first call compiles a kernel or loads a model, which says nothing of the whole set


def dry_run(
    dataset: Dataset | IterableDataset | str | os.PathLike[str],
    steps: Sequence[Step],
    *,
    sample: int = 2000,
    seed: int = 0,
    id_column: str | None = None,
    source_column: str | None = None,
    on_bad_row: str = "raise",
    show_progress: bool = True,
) -> CurationReport:
    """
    Judge a sample of documents by every step, and write nothing.

    Args:
        dataset (`Dataset`, `IterableDataset`, `str` or `os.PathLike`):
            As of [`~hf_ext.data.curation.curate`].
        steps (`Sequence[Step]`):
            The chain.
        sample (`int`, *optional*, defaults to 2,000):
            Documents to draw from all shards.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.
        id_column, source_column, on_bad_row:
            As of [`~hf_ext.data.curation.curate`].
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar of the steps.

    Returns:
        [`CurationReport`]: with examples, and with what the sample says of the whole set. Of duplicates a sample shows
        too few: a document and its copy are rarely both in it.

    Raises:
        ValueError: if there is no document, or a setting or a shard cannot be used.
        RowError: if a document of the sample is none, and `on_bad_row` is `"raise"`.
    """
    shards = _shards(dataset, on_bad_row)
    document_sample = draw_documents(shards, sample, seed)
    if not document_sample.documents:
        raise ValueError(f"There is no document to draw a sample from in {dataset!s:.80}.")
    names = dict.fromkeys(name for document in document_sample.documents for name in document.row)
    columns = {name: [document.row.get(name) for document in document_sample.documents] for name in names}
    for setting, name in (("id_column", id_column), ("source_column", source_column)):
        if name is not None and name not in columns:
            raise ValueError(f"{setting}={name!r} is no column of the documents; they have {sorted(columns)}.")
    ids = [
        document_name(document.shard, document.row_number, None if id_column is None else document.row.get(id_column))
        for document in document_sample.documents
    ]
    if on_bad_row == "drop":
        steps = [replace(step, on_bad_row="drop") for step in steps]
    report = judge_sample(columns, ids, steps, source_column, show_progress)
    report.counts.peak_bytes = peak_bytes()
    notes = list(document_sample.notes)
    set_steps = ", ".join(step.name for step in steps if isinstance(step, SetStep))
    if set_steps:
        notes.append(f"{set_steps}: of the whole set more goes, for a sample rarely has both of two copies.")
    return replace(report, sample=_facts(document_sample, report.counts, seed), notes=notes)


def _shards(dataset: Dataset | IterableDataset | str | os.PathLike[str], on_bad_row: str) -> list[Shard]:
    if isinstance(dataset, str | os.PathLike):
        return [*shards_of(dataset, on_bad_row == "drop")]
    return [DatasetShard(dataset) if hasattr(dataset, "num_rows") else StreamShard(dataset)]


def _facts(document_sample: DocumentSample, counts: CurationCounts, seed: int) -> SampleFacts:
    """What the sample says of the whole set."""
    num_rows = len(document_sample.documents)
    facts = SampleFacts(num_rows, document_sample.num_shards, seed)
    if document_sample.rows_of_set is None:
        return facts
    scale = document_sample.rows_of_set / num_rows
    seconds = sum(step.seconds for step in counts.steps) * scale
    # a filter is sized by the n-grams, of which a larger set has more in proportion
    sizes = {step.name: round(float(step.notes.get("filter_bytes", 0)) * scale) for step in counts.steps}
    bloom_bytes = {name: size for name, size in sizes.items() if size}
    return replace(facts, rows_of_set=document_sample.rows_of_set, seconds=seconds, bloom_bytes=bloom_bytes)


def judge_sample(
    columns: Mapping[str, Sequence[Any]],
    ids: Sequence[str],
    steps: Sequence[Step],
    source_column: str | None = None,
    show_progress: bool = False,
) -> CurationReport:
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
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a bar of the steps.

    Returns:
        [`CurationReport`]: what a rule measured is of every document that could be read, whatever earlier steps say;
        `num_dropped_alone` counts documents that no other rule of any step drops; with a few examples of each rule.

    Raises:
        RowError: if a document is none, and its step raises for such.
    """
    sample = _Sample({name: list(values) for name, values in columns.items()}, list(ids), steps[-1].text_column)
    with tqdm(total=len(steps), desc=f"Judging {len(ids):,} documents", unit="step", disable=not show_progress) as bar:
        for step, name in zip(steps, step_names(steps), strict=True):
            bar.set_postfix_str(name)
            sample.judge(step, name)
            bar.update()
    return CurationReport(sample.counts(source_column), sample.examples)


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

    def num_words(self) -> int | None:
        """Words between white space of the documents that are in; `None` where there is no text yet."""
        texts = self.columns.get(self.text_column)
        if texts is None:
            return None
        return sum(len(text.split()) for text, is_in in zip(texts, self.is_in, strict=True) if is_in and text)

    def judge(self, step: Step, name: str) -> None:
        """One step: verdicts, examples, and the columns that it rewrites."""
        positions = np.flatnonzero(self.is_in if isinstance(step, SetStep) else self.is_in | self._can_be_read(step))
        batch: Columns = {name: [column[position] for position in positions] for name, column in self.columns.items()}
        counts = StepCounts(name, int(self.is_in.sum()), tokens_in=self.num_words())
        if isinstance(step, RowStep) and len(positions):
            few: Columns = {name: column[:_WARM_UP_ROWS] for name, column in batch.items()}
            step.judge(few, positions[:_WARM_UP_ROWS].tolist())
        start = time.perf_counter()
        if isinstance(step, RowStep):
            columns, values, drops = step.judge(batch, positions.tolist())
        else:
            columns, values, drops = _decide(step, batch, positions.tolist(), counts.notes)
        seconds_a_row = (time.perf_counter() - start) / max(len(positions), 1)
        for verdict in self._verdicts(step, positions, values, drops):
            self._add_examples(step, name, verdict, dict(zip(positions.tolist(), drops, strict=True)))
            counts.rules[verdict.counts.rule.name] = verdict.counts
            self.verdicts.append(verdict)
            self.is_in &= ~verdict.goes
            for position in np.flatnonzero(verdict.goes):
                self.reasons[position] = name
        for column_name, column in columns.items():
            merged = self.columns.setdefault(column_name, [None] * len(self.ids))
            for position, value in zip(positions, column, strict=True):
                merged[position] = value
        counts.rows_out = int(self.is_in.sum())
        counts.tokens_out = self.num_words()
        counts.seconds = seconds_a_row * counts.rows_in
        self.steps.append(counts)

    def counts(self, source_column: str | None) -> CurationCounts:
        """The counts, once every step has judged."""
        num_broken = sum((verdict.breaks.astype(int) for verdict in self.verdicts), np.zeros(len(self.ids), dtype=int))
        for verdict in self.verdicts:
            verdict.counts.num_dropped_alone = int((verdict.goes & (num_broken == 1)).sum())
        counts = CurationCounts(steps=self.steps)
        for source, reason in zip(self.columns[source_column], self.reasons, strict=True) if source_column else ():
            part = SourceCounts(1, {} if reason is None else {reason: 1})
            counts.merge(CurationCounts(sources={str(source): part}))
        return counts

    def _can_be_read(self, step: Step) -> Mask:
        """Documents that the step can judge though they are out: those that an earlier one left something of."""
        texts = self.columns.get(step.read_column, self.ids)
        is_document = [isinstance(text, str | bytes) and bool(text) and not text.isspace() for text in texts]
        return self.is_legible & np.array(is_document, dtype=bool)

    def _verdicts(
        self, step: Step, positions: npt.NDArray[np.intp], values: Mapping[str, Values], drops: Sequence[Drop | None]
    ) -> list[_Verdict]:
        nobody = np.zeros(len(self.ids), dtype=bool)
        verdicts = {rule.name: _Verdict(RuleCounts(rule), nobody.copy(), nobody.copy()) for rule in step.rules}
        rule_names = set(verdicts)
        for name, numbers in values.items():
            if name in verdicts:
                verdicts[name].counts.values.add(numbers)
                verdicts[name].breaks[positions] = verdicts[name].counts.rule.broken_by(numbers)
        for position, drop in zip(positions, drops, strict=True):
            if drop is None:
                continue
            verdict = verdicts.setdefault(
                drop.rule, _Verdict(RuleCounts(Rule(drop.rule)), nobody.copy(), nobody.copy())
            )
            verdict.breaks[position] = True
            verdict.goes[position] = self.is_in[position]
            self.is_legible[position] &= drop.rule in rule_names  # else nothing could be measured
        for verdict in verdicts.values():
            verdict.counts.num_dropped = int(verdict.goes.sum())
        return list(verdicts.values())

    def _add_examples(self, step: Step, name: str, verdict: _Verdict, drops: Mapping[int, Drop | None]) -> None:
        texts = self.columns.get(step.read_column, self.ids)
        for position in np.flatnonzero(verdict.goes)[:EXAMPLES_PER_RULE]:
            text = texts[position]
            text = text[:EXCERPT_LENGTH].decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            drop = drops[int(position)] or Drop(verdict.counts.rule.name)
            excerpt = text[:EXCERPT_LENGTH]
            self.examples.append(DropExample(self.ids[position], name, drop.rule, drop.value, drop.threshold, excerpt))


def _decide(step: SetStep, batch: Columns, positions: Sequence[int], notes: Notes) -> Judgement:
    """What a step that needs every document does with those at hand."""
    drops = step.unreadable(batch, positions)
    readable = [position for position, drop in enumerate(drops) if drop is None]
    documents = {name: [column[position] for position in readable] for name, column in batch.items()}
    tables = [step.features(documents[step.read_column], documents)]
    return step.judge(batch, drops, chain.from_iterable(step.decide(tables, notes)))
