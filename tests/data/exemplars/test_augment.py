"""How many exemplars a query is shown, and the callable that writes them into a dataset."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict
from scipy.stats import binom, chisquare

from hf_ext.data.exemplars import (
    AddInContextExamples,
    ExampleDraw,
    ExemplarStore,
    RareFormatter,
    add_in_context_examples,
    augment,
)
from tests.tiny import tiny_tokenizer

pytest.importorskip("bm25s")

UNLIMITED = RareFormatter(max_tokens=None, max_example_query_tokens=None, max_example_document_tokens=None)
PAIRS = Dataset.from_dict(
    {"id": [f"q{i}" for i in range(30)], "query": [f"cat {i % 5} of {i}" for i in range(30)],
     "positive": [f"document {i // 3}" for i in range(30)], "label": list(range(30))}
)  # fmt: skip


def test_the_share_of_augmented_queries_is_within_binomial_bounds():
    draw, n = ExampleDraw(5, "fixed", 0.7), 4000
    shown = sum(draw.count(f"query {i}", "epoch 0") > 0 for i in range(n))
    low, high = binom.ppf([0.0005, 0.9995], n, 0.7)
    assert low <= shown <= high
    assert {draw.count(f"query {i}") for i in range(200)} == {0, 5}


def test_uniform_numbers_are_uniform_from_zero_to_k():
    draw = ExampleDraw(5, "uniform", 1.0)
    counts = [0] * 6
    for i in range(6000):
        counts[draw.count(f"query {i}")] += 1
    assert chisquare(counts).pvalue > 1e-3


def test_a_draw_follows_seed_salt_and_text_alone():
    draw = ExampleDraw(5, "uniform", 0.5)
    texts = [f"query {i}" for i in range(100)]
    first = [draw.count(text, "a") for text in texts]
    assert [draw.count(text, "a") for text in reversed(texts)] == first[::-1]
    assert [draw.count(text, "b") for text in texts] != first
    assert [ExampleDraw(5, "uniform", 0.5, seed=1).count(text, "a") for text in texts] != first


@pytest.mark.parametrize("settings", [{"k": -1}, {"k_mode": "some"}, {"rate": 1.5}])
def test_draws_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="ExampleDraw needs"):
        ExampleDraw(**settings)


def test_augment_draws_searches_and_formats():
    store = ExemplarStore({"query": ["cat a", "cat b"], "document": ["on a", "on b"]})
    made = augment(store, UNLIMITED, ["cat b b", "zzz"], prompt="Query: ", draw=ExampleDraw(1, rate=1.0))
    assert [one.body for one in made] == ["cat b\nPositive Document: on b\n\nQuery: cat b b", "zzz"]
    assert augment(store, UNLIMITED, ["cat b"], draw=ExampleDraw(1, rate=0.0))[0].body == "cat b"
    with pytest.raises(ValueError, match="pass the model's tokenizer"):
        augment(store, RareFormatter(), ["cat"])


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 7}, {"num_proc": 2}])
def test_rows_do_not_depend_on_batches_or_processes(settings):
    store = ExemplarStore.from_dataset(PAIRS)
    add = AddInContextExamples(
        store, UNLIMITED, draw=ExampleDraw(3, "uniform", 0.6), positive_column="positive", id_column="id",
        shown_column="shown",
    )  # fmt: skip
    expected = PAIRS.map(add, batched=True)
    assert PAIRS.map(add, batched=True, **settings).to_dict() == expected.to_dict()
    assert expected.remove_columns(["query", "shown"]).to_dict() == PAIRS.remove_columns("query").to_dict()
    for row, before in zip(expected, PAIRS, strict=True):
        assert row["query"].endswith(before["query"])
        shown = json.loads(row["shown"])
        positives = {PAIRS["positive"][int(name[1:])] for name in shown}
        assert before["positive"] not in positives  # neither itself nor another query of its document
        assert len(shown) <= 3


def test_negatives_of_a_row_are_not_shown():
    rows = PAIRS.add_column("negative", ["document 1"] * 30)
    store = ExemplarStore.from_dataset(PAIRS)
    add = AddInContextExamples(store, UNLIMITED, negative_columns=("negative",))
    assert not any("document 1\n" in text for text in rows.map(add, batched=True)["query"])
    assert any(
        "document 1\n" in text for text in rows.map(AddInContextExamples(store, UNLIMITED), batched=True)["query"]
    )


def test_the_function_takes_datasets_dicts_of_splits_and_streams():
    whole = add_in_context_examples(PAIRS)
    assert whole.column_names == PAIRS.column_names
    splits = add_in_context_examples(DatasetDict({"train": PAIRS, "test": PAIRS.select(range(3))}))
    assert splits["train"]["query"][:] == whole["query"][:]
    assert splits["test"]["query"][:] == PAIRS["query"][:3]
    store = ExemplarStore.from_dataset(PAIRS)
    stream = add_in_context_examples(PAIRS.to_iterable_dataset(), store)
    assert [row["query"] for row in stream] == whole["query"][:]
    short = add_in_context_examples(PAIRS, tokenizer=tiny_tokenizer(), prompt="Instruct: x\nQuery: ")
    assert short["query"][0].endswith(PAIRS["query"][0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add_in_context_examples(PAIRS.to_iterable_dataset()), TypeError, "without a store needs the rows"),
        (lambda: add_in_context_examples(DatasetDict({"a": PAIRS})), ValueError, "split 'train' is missing"),
        (lambda: add_in_context_examples(PAIRS, query_column="label"), TypeError, "'label' is not text"),
        (lambda: add_in_context_examples(PAIRS, query_column="none"), ValueError, "column 'none' is missing"),
        (lambda: add_in_context_examples(PAIRS, formatter=RareFormatter()), ValueError, "pass the model's tokenizer"),
        (lambda: AddInContextExamples(ExemplarStore.from_dataset(PAIRS)), ValueError, "pass the model's tokenizer"),
    ],
)
def test_what_cannot_be_augmented_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
