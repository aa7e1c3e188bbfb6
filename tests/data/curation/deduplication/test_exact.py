"""Exact deduplication against a dictionary in Python."""

from __future__ import annotations

import random

import pytest
from datasets import Dataset, DatasetDict, Value

from hf_ext.data.curation.deduplication import (
    BloomDeduplication,
    ExactDeduplication,
    MinHashDeduplication,
    deduplicate,
)
from hf_ext.data.curation.steps import Drop
from hf_ext.guards.rows import RowError


def first_positions(keys: list[str]) -> list[int]:
    return [keys.index(key) for key in keys]


def drawn_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["Ä", "ä ", "b", "B\n", "İ", "i̇", "\ud800", "\x00", "ﬀ", "ﬃ"]
    return ["x" + "".join(draw.choices(words, k=draw.randrange(1, 3))) for _ in range(200)]


@pytest.mark.parametrize("seed", range(5))
def test_the_first_of_equal_texts_stays_however_the_tables_are_cut(seed):
    texts = drawn_texts(seed)
    step = ExactDeduplication()
    survivors = first_positions([text.strip().lower() for text in texts])
    for size in (1, 7, 200):
        tables = [step.features(texts[i : i + size], {}) for i in range(0, 200, size)]
        decisions = [decision for table in step.decide(tables) for decision in table]
        assert [decision.columns["cluster_id"] for decision in decisions] == survivors
        assert [decision.drop is None for decision in decisions] == [a == b for a, b in enumerate(survivors)]


def test_urls_are_compared_as_they_stand_and_rows_without_stay():
    urls = ["http://a/", None, "http://A/", "http://a/", None, ""]
    rows = Dataset.from_dict({"text": [f"t{n}" for n in range(6)], "url": urls})
    assert deduplicate(rows, ExactDeduplication(url_column="url"))["text"] == ["t0", "t1", "t2", "t4", "t5"]
    with pytest.raises(ValueError, match=r"needs a column 'link'.*'url'"):
        deduplicate(rows, ExactDeduplication(url_column="link"))


def test_a_drop_names_the_document_that_stays():
    step = ExactDeduplication(id_column="id")
    table = step.features(["a", "b", "A "], {"id": ["first", 7, "third"]})
    notes = {}
    decisions = [decision for part in step.decide([table], notes) for decision in part]
    assert [decision.drop for decision in decisions] == [None, None, Drop("same_text", detail="first")]
    assert notes == {"clusters_of_several": 1, "largest_cluster": 2, "largest_cluster_example": "first"}


STEPS = [ExactDeduplication(), MinHashDeduplication(), BloomDeduplication(), BloomDeduplication(mode="both")]
LINE = " ".join(f"word{n}" for n in range(20))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_rows_keep_their_order_columns_and_types_and_the_result_no_trace_of_processes(step):
    features = {"n": Value("int8"), "text": Value("large_string")}
    texts = [LINE, "an other text", LINE, "a third", LINE.upper(), " ".join(reversed(LINE.split()))]
    rows = Dataset.from_dict({"n": range(6), "text": texts}).cast_column("n", features["n"])
    rows = rows.cast_column("text", features["text"])
    result = deduplicate(rows, step)
    assert result["n"] == ([0, 1, 3, 4, 5] if isinstance(step, BloomDeduplication) else [0, 1, 3, 5])
    assert {name: result.features[name] for name in features} == features
    assert result.to_dict() == deduplicate(rows, step, num_proc=2).to_dict()
    splits = deduplicate(DatasetDict(a=rows, b=rows), step, split="a")
    assert splits["a"].to_dict() == result.to_dict()
    assert splits["b"]["n"] == list(range(6))
    assert splits["b"].features == splits["a"].features


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_no_row_one_row_and_rows_that_are_no_documents(step):
    assert len(deduplicate(Dataset.from_dict({"text": []}), step)) == 0
    assert deduplicate(Dataset.from_dict({"text": ["a b"]}), step)["text"] == ["a b"]
    rows = Dataset.from_dict({"text": ["a b", None, " ", "c d"]})
    with pytest.raises(RowError, match=r"row 1, column 'text'.*None"):
        deduplicate(rows, step)
    lenient = type(step)(on_bad_row="drop")
    assert deduplicate(rows, lenient)["text"] == ["a b", "c d"]
    assert len(deduplicate(rows.select([1, 2]), lenient)) == 0


def test_what_is_no_dataset_at_hand_is_refused_with_a_remedy():
    rows = Dataset.from_dict({"text": ["a"]})
    with pytest.raises(TypeError, match=r"got IterableDataset.*from_generator"):
        deduplicate(rows.to_iterable_dataset(), ExactDeduplication())
    with pytest.raises(ValueError, match=r"split='train'.*'test'"):
        deduplicate(DatasetDict(test=rows), ExactDeduplication())
    with pytest.raises(ValueError, match=r"needs a column 'body'"):
        deduplicate(rows, ExactDeduplication(text_column="body"))
