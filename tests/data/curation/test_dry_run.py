"""A sample judged by every rule: the funnel is that of the steps one after another, the rest is counted by hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from datasets import Dataset

from hf_ext.data.curation.document_sample import draw_documents
from hf_ext.data.curation.dry_run import EXAMPLES_PER_RULE, dry_run, judge_sample
from hf_ext.data.curation.sources import shards_of
from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, RowStep, Rule, SetStep, Values
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

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
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
    drops = {f"{step}:{rule.rule.name}": rule.num_dropped for step, rule in counts.rules() if rule.num_dropped}
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
    counted = {rule.rule.name: rule.num_dropped_alone for _, rule in judged(texts).counts.rules()}
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
    assert numbers == {
        key: min(rule.num_dropped, EXAMPLES_PER_RULE) for key, rule in rules.items() if rule.num_dropped
    }
    for example in result.examples:
        text = texts[int(example.id.removeprefix("id"))]
        if example.rule == "many":
            assert (example.value, example.threshold, example.excerpt) == (len(text.split()), 6.0, text[:300])


def test_documents_are_counted_by_their_source(texts):
    sources = ["odd" if i % 2 else "even" for i in range(len(texts))]
    counts = judged(texts, source=sources).counts
    assert {name: source.rows_read for name, source in counts.sources.items()} == Counter(sources)
    for step in counts.steps[1:]:
        dropped = sum(source.drops_by_step.get(step.name, 0) for source in counts.sources.values())
        assert dropped == step.rows_in - step.rows_out


def test_a_document_that_is_none_is_an_error_or_counted():
    with pytest.raises(RowError, match="row 1"):
        judge_sample({"text": ["a b", None]}, ["0", "1"], [Words()])
    counts = judge_sample({"text": ["a b", None]}, ["0", "1"], [Words(on_bad_row="drop"), Letters()]).counts
    assert {rule.rule.name: rule.num_dropped for _, rule in counts.rules()}["error:NoneType"] == 1


# --- the sample ------------------------------------------------------------------------------------------------------


def write_shards(folder, sizes: dict[str, int]) -> None:
    """Files whose documents say which they are."""
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        rows = [{"text": f"{name} {i}"} for i in range(size)]
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows, pa.schema([("text", pa.string())])), folder / name)
            continue
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def draw(folder, size: int, seed: int = 0):
    return draw_documents(shards_of(folder, False), size, seed)


def test_a_sample_is_of_all_shards_without_a_document_twice_and_its_numbers_are_true(tmp_path):
    write_shards(tmp_path / "s", {"a.jsonl": 90, "b.parquet": 80, "c.jsonl.gz": 3, "d.jsonl": 0})
    sample = draw(tmp_path / "s", 60)
    assert [document.row["text"] for document in sample.documents] == [
        f"{document.shard} {document.row_number}" for document in sample.documents
    ]
    counts = Counter(document.shard for document in sample.documents)
    assert len({document.row["text"] for document in sample.documents}) == sum(counts.values()) == 60
    assert counts["c.jsonl.gz"] == 3
    assert min(counts["a.jsonl"], counts["b.parquet"]) >= 15
    assert (sample.rows_of_set, sample.num_shards, sample.notes) == (173, 3, [])
    assert draw(tmp_path / "s", 60) == sample
    assert draw(tmp_path / "s", 60, seed=1) != sample


def test_every_document_has_the_same_chance(tmp_path):
    write_shards(tmp_path / "s", {"a.jsonl": 40})
    counts = Counter(d.row_number for seed in range(400) for d in draw(tmp_path / "s", 10, seed).documents)
    expected = 400 * 10 / 40
    # each count is binomial with 400 draws of probability 1/4; chi-square of 40 cells, fixed total
    statistic = sum((counts[i] - expected) ** 2 / (expected * 0.75) for i in range(40))
    assert scipy.stats.chi2.sf(statistic, 39) > 1e-4


def test_of_long_files_a_part_is_read_and_the_number_of_documents_reckoned(tmp_path):
    write_shards(tmp_path / "s", {"a.jsonl": 9000, "b.jsonl.gz": 9000, "c.parquet": 9000})
    sample = draw(tmp_path / "s", 30)
    assert sample.rows_of_set == pytest.approx(27_000, rel=0.5)
    assert sorted(note.split()[1] for note in sample.notes) == ["a.jsonl", "b.jsonl.gz"]
    assert {d.row_number < 2000 for d in sample.documents if d.shard != "c.parquet"} == {True}
    places = [
        d.row_number for seed in range(20) for d in draw(tmp_path / "s", 30, seed).documents if d.shard[0] == "c"
    ]
    assert min(places) < 2000 < 7000 < max(places)


def test_with_more_shards_than_documents_wanted_the_shards_are_drawn(tmp_path):
    write_shards(tmp_path / "s", {f"{i:02d}.jsonl": 5 for i in range(20)})
    sample = draw(tmp_path / "s", 8)
    assert len({document.shard for document in sample.documents}) == len(sample.documents) == 8
    assert sample.rows_of_set == pytest.approx(100, rel=0.1)


def test_a_dry_run_of_files_and_of_a_dataset_is_the_same_and_says_what_to_expect(tmp_path, texts):
    (tmp_path / "s").mkdir()
    with open(tmp_path / "s" / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    reports = [
        dry_run(tmp_path / "s", STEPS, sample=50),
        dry_run(Dataset.from_dict({"text": texts}), STEPS, sample=50),
    ]
    funnels = [[step.rows_out for step in report.counts.steps] for report in reports]
    assert funnels[0] == funnels[1]
    facts = reports[0].sample
    seconds = sum(step.seconds for step in reports[0].counts.steps)
    assert facts.seconds == pytest.approx(seconds * len(texts) / 50)
    assert "unique: of the whole set more goes" in reports[0].warnings()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"s"}
    with pytest.raises(ValueError, match="id_column='key' is no column of the documents"):
        dry_run(tmp_path / "s", STEPS, id_column="key")
    write_shards(tmp_path / "none", {"a.jsonl": 0})
    with pytest.raises(ValueError, match="no document to draw a sample from"):
        dry_run(tmp_path / "none", STEPS)


def test_records_that_cannot_be_read_are_counted_and_the_steps_shown(tmp_path, capsys):
    lines = [json.dumps({"text": f"one two three {i}"}) for i in range(20)]
    lines[3:3] = ["{broken", "[1]"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    report = dry_run(tmp_path / "a.jsonl", STEPS, on_bad_row="drop")
    (note,) = [note for note in report.warnings() if "cannot be read" in note]
    assert note.startswith("2 of 22 records cannot be read (error:JSONDecodeError 1, error:ValueError 1)")
    assert f"{len(STEPS)}/{len(STEPS)}" in capsys.readouterr().err
