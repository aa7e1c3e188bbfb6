"""What stands in a batch of RARe: which queries carry exemplars, which ones, and that nothing else decides it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.stats import binom
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hf_ext.data.exemplars import ExemplarStore
from hf_ext.trainers.rare import RareDataCollator
from hf_ext.trainers.rare.collator import COUNTS
from tests.trainers.retrieval import encoder, pairs, texts_of, trainer

TASK = "Instruct: Find the place\nQuery: "


def query_texts(built: Any, epoch: int = 0) -> list[list[str]]:
    """The queries of every batch of an epoch, as the model reads them."""
    built.data_collator.set_epoch(epoch)
    loader = built.get_train_dataloader()
    loader.set_epoch(epoch)
    return [texts_of(batch, "query", built.model) for batch in loader]


def test_the_first_query_reads_as_the_paper_s_code_writes_it(tmp_path: Path) -> None:
    rows = Dataset.from_list(
        [
            {"query": "red cats", "positive": "on red cats"},
            {"query": "red dogs", "positive": "on red dogs"},
            {"query": "red old cats", "positive": "on old cats"},
        ]
    )
    built = trainer(tmp_path, rows, instruction="Find the place", example_rate=1.0)
    nearest_last = (
        "Instruct: Find the place\n"
        "Query: red dogs\nPositive Document: on red dogs\n\n"
        "Query: red old cats\nPositive Document: on old cats\n\n"
        "Query: red cats"
    )
    assert built.first_query() == f"--- First query with exemplars (2 shown) ---\n{nearest_last}\n---"
    batch = built.data_collator([built.train_dataset[0]])
    assert texts_of(batch, "query", built.model) == [nearest_last]
    assert texts_of(batch, "positive", built.model) == ["on red cats"]


def test_without_exemplars_queries_are_the_instruct_baseline_byte_for_byte(tmp_path: Path) -> None:
    built = trainer(tmp_path, instruction="Find the place", example_rate=0.0)
    seen = [text for batch in query_texts(built) for text in batch]
    assert sorted(seen) == sorted(TASK + query for query in pairs()["query"])


@pytest.mark.parametrize(
    "changes", [{}, {"n_examples_mode": "uniform", "n_examples": 3}, {"example_retriever": "random"}]
)
def test_batches_are_the_same_under_any_number_of_workers(changes: dict[str, Any], tmp_path: Path) -> None:
    by_workers = [
        [query_texts(trainer(tmp_path, dataloader_num_workers=workers, **changes), epoch) for epoch in (0, 1)]
        for workers in (0, 1, 2)
    ]
    assert by_workers[0] == by_workers[1] == by_workers[2]
    flat = [sorted(text for batch in epoch for text in batch) for epoch in by_workers[0]]
    assert flat[0] != flat[1], "another epoch draws afresh"


def test_living_workers_learn_the_epoch(tmp_path: Path) -> None:
    built = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    alone = trainer(tmp_path)
    loader = built.get_train_dataloader()
    for epoch in (0, 1, 2):
        built.data_collator.set_epoch(epoch)
        loader.set_epoch(epoch)
        assert [texts_of(batch, "query", built.model) for batch in loader] == query_texts(alone, epoch)


def test_without_resampling_an_epoch_shows_what_the_one_before_showed(tmp_path: Path) -> None:
    built = trainer(tmp_path, resample_each_epoch=False)
    first, second = ({text for batch in query_texts(built, epoch) for text in batch} for epoch in (0, 1))
    assert first == second


def test_the_share_of_augmented_queries_is_within_binomial_bounds(tmp_path: Path) -> None:
    built = trainer(tmp_path, 400, example_rate=0.7)
    counts = built.data_collator(list(built.train_dataset))[COUNTS]
    augmented = int((counts[:, 1] > 0).sum())
    assert binom.ppf(0.0005, 400, 0.7) <= augmented <= binom.ppf(0.9995, 400, 0.7)
    assert (counts[:, 1] == counts[:, 0]).all(), "each query that was to get exemplars got all of them"


def test_uniform_numbers_of_exemplars_are_uniform(tmp_path: Path) -> None:
    built = trainer(tmp_path, 400, example_rate=1.0, n_examples=3, n_examples_mode="uniform", max_query_tokens=None)
    wanted = np.bincount(built.data_collator(list(built.train_dataset))[COUNTS][:, 0].numpy(), minlength=4)
    low, high = binom.ppf(0.0001, 400, 0.25), binom.ppf(0.9999, 400, 0.25)
    assert ((wanted >= low) & (wanted <= high)).all()


def test_pools_of_two_data_sets_never_mix(tmp_path: Path) -> None:
    rows = DatasetDict({"a": pairs(16, mark="xx"), "b": pairs(12, mark="zz")})
    built = trainer(tmp_path, rows, instruction={"a": "Task A", "b": "Task B"}, example_rate=1.0)
    seen = [text for batch in query_texts(built) for text in batch]
    assert len(seen) == 28
    for text in seen:
        assert text.count("Query: ") == 3
        assert ("xx" in text) == text.startswith("Instruct: Task A\n")
        assert ("zz" in text) == text.startswith("Instruct: Task B\n")
        assert ("xx" in text) != ("zz" in text)


def shared_positives() -> Dataset:
    """Three queries a document, alike in words, so that a query's nearest neighbours have its own document."""
    rows = [
        {"query": f"what of {thing} {i}", "positive": f"all about {thing}"}
        for thing in ("kites", "lamps", "moss", "nails", "opals")
        for i in range(3)
    ]
    return Dataset.from_list(rows)


def test_an_exemplar_with_the_row_s_own_positive_is_shown_only_where_that_is_allowed(tmp_path: Path) -> None:
    def share(**changes: Any) -> float:
        built = trainer(tmp_path, shared_positives(), example_rate=1.0, **changes)
        made, _ = built.data_collator.augment(list(built.train_dataset))
        own = zip(built.train_dataset["positive"], made, strict=True)
        return float(np.mean([any(hit.document == positive for hit in one.shown) for positive, one in own]))

    assert share() == 0.0
    assert share(exclude=["self", "same_text", "negatives"]) == 1.0


def test_no_query_is_shown_itself_or_a_negative_of_its_own(tmp_path: Path) -> None:
    rows = pairs(12, ids=False).to_list()
    rows = [{**row, "negative": rows[(i + 1) % 12]["positive"]} for i, row in enumerate(rows)]
    built = trainer(tmp_path, Dataset.from_list(rows), example_rate=1.0, n_examples=10)
    built.data_collator.formatter = built.data_collator.formatter.__class__(max_tokens=None)
    made, _ = built.data_collator.augment(list(built.train_dataset))
    for i, one in enumerate(made):
        assert {hit.row for hit in one.shown} == set(range(12)) - {i, (i + 1) % 12}


def test_the_sampler_compares_texts_as_they_stand_in_the_data_set(tmp_path: Path) -> None:
    rows = shared_positives()
    changes = {"batch_sampler": "no_duplicates", "per_device_train_batch_size": 3}
    built = trainer(tmp_path, rows, example_rate=1.0, **changes)
    model = encoder()
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", seed=7, dataloader_pin_memory=False, **changes
    )
    stock = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=MultipleNegativesRankingLoss(model))
    ours, theirs = ([texts_of(b, "positive", model) for b in t.get_train_dataloader()] for t in (built, stock))
    assert ours == theirs
    assert all(len(set(batch)) == len(batch) for batch in ours)


def test_ids_are_kept_from_the_model_and_from_the_loss(tmp_path: Path) -> None:
    rows = pairs(8).add_column("doc_id", [f"d{i}" for i in range(8)])
    batch = trainer(tmp_path, rows).data_collator(list(trainer(tmp_path, rows).train_dataset))
    assert {key.split("_")[0] for key in batch} == {"query", "positive", "rare", ""}, "the last is of __hf_ext_row__"
    assert batch["__hf_ext_row__"].tolist() == list(range(8))


def test_a_collator_survives_pickling(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    rows = list(built.train_dataset)
    again: RareDataCollator = pickle.loads(pickle.dumps(built.data_collator))
    assert texts_of(again(rows), "query", built.model) == texts_of(built.data_collator(rows), "query", built.model)


def test_the_budget_drops_the_farthest_exemplars_and_never_the_query(tmp_path: Path) -> None:
    built = trainer(tmp_path, 40, example_rate=1.0, n_examples=5, max_query_tokens=150)
    batch = built.data_collator(list(built.train_dataset))
    counts = batch[COUNTS]
    assert (counts[:, 0] == counts[:, 1] + counts[:, 2]).all()
    assert 0 < int(counts[:, 1].sum()) < 200
    assert batch["query_attention_mask"].sum(dim=1).max() <= 150
    texts = texts_of(batch, "query", built.model)
    assert all(text.endswith(query) for text, query in zip(texts, built.train_dataset["query"], strict=True))


def test_a_query_without_a_hit_stands_alone_and_is_counted(tmp_path: Path) -> None:
    rows = [*pairs(6, ids=False), {"query": "zzz", "positive": "nothing alike"}]
    built = trainer(tmp_path, Dataset.from_list(rows), example_rate=1.0)
    batch = built.data_collator(list(built.train_dataset))
    assert texts_of(batch, "query", built.model)[-1] == "zzz"
    assert batch[COUNTS][:, 3].tolist() == [0] * 6 + [1]


@pytest.mark.parametrize("choice", ["dense", "hybrid"])
def test_dense_choice_takes_the_model_s_own_vectors_from_before_training(choice: str, tmp_path: Path) -> None:
    rows, model = pairs(20), encoder()
    vectors = model.encode(rows["query"], prompt=TASK, normalize_embeddings=True)
    cosines = vectors @ vectors.T - 2 * np.eye(20)
    built = trainer(
        tmp_path, rows, model=model, instruction="Find the place", example_rate=1.0, example_retriever=choice
    )
    built.train()
    made, _ = built.data_collator.augment(list(built.train_dataset))
    chosen = [[hit.row for hit in one.shown] for one in made]
    if choice == "dense":
        assert chosen == [list(np.argsort(-row)[:2]) for row in cosines]
    else:
        bm25 = ExemplarStore({"query": rows["query"], "document": rows["positive"]})
        words = [[h.row for h in hits if h.row != i][:2] for i, hits in enumerate(bm25.search(rows["query"], 3))]
        assert chosen != words
    pickle.loads(pickle.dumps(built.data_collator))


def test_evaluation_draws_the_same_every_time_and_leaves_training_alone(tmp_path: Path) -> None:
    built = trainer(tmp_path, kwargs={"eval_dataset": pairs(12, seed=3)})
    seen = []
    for epoch in (0, 1):
        built.data_collator.set_epoch(epoch)
        seen.append([texts_of(batch, "query", built.model) for batch in built.get_eval_dataloader()])
    assert seen[0] == seen[1]
    assert int(built.data_collator.epoch) == 1
