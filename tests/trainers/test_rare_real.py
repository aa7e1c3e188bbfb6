"""RARe on real data: what exemplars give away on scifact, and a decoder behind a chat template."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from hf_ext.data.exemplars import Exclude, ExemplarStore, Target
from hf_ext.data.exemplars.sources import read_lines, read_qrels
from hf_ext.recipes.retrieval import beir_rows
from tests.trainers.retrieval import config, trainer

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def scifact(real_data: Path) -> Dataset:
    return beir_rows(str(real_data / "retrieval" / "scifact"), "train")


def golds_of(folder: Path, split: str) -> dict[str, set[str]]:
    golds: dict[str, set[str]] = {}
    for query, document, grade in read_qrels(folder, split):
        if grade > 0:
            golds.setdefault(query, set()).add(document)
    return golds


def test_more_than_half_of_scifact_s_test_claims_are_shown_the_abstract_they_look_for(real_data: Path) -> None:
    """56.5 % of them among three neighbours, counted by another implementation; another tokeniser moves a few."""
    folder = real_data / "retrieval" / "scifact"
    golds, queries = golds_of(folder, "test"), {row["_id"]: row["text"] for row in read_lines(folder, "queries")}
    hits = ExemplarStore.from_beir(folder, "train").search([queries[name] for name in golds], 3)
    shown = [bool(own & {hit.doc_id for hit in row}) for own, row in zip(golds.values(), hits, strict=True)]
    assert np.mean(shown) == pytest.approx(0.565, abs=0.015)


def test_half_of_scifact_s_training_rows_would_be_shown_their_own_abstract(scifact: Dataset, tmp_path: Path) -> None:
    """51.5 % of the rows with exemplars in a run of another implementation, three of them to a row."""
    settings = {"example_rate": 1.0, "n_examples": 3, "max_query_tokens": 256}

    def share(**changes: object) -> float:
        built = trainer(tmp_path, scifact, **settings, **changes)
        built.data_collator.formatter = built.data_collator.formatter.__class__(max_tokens=None)
        made, _ = built.data_collator.augment(list(built.train_dataset))
        own = zip(scifact["doc_id"], made, strict=True)
        return float(np.mean([name in {hit.doc_id for hit in one.shown} for name, one in own]))

    assert share(exclude=["self", "same_text"]) == pytest.approx(0.515, abs=0.03)
    assert share() == 0.0


def bm25_matrix(texts: list[str], k1: float = 0.9, b: float = 0.4) -> np.ndarray:
    """Scores of every text for every other, in the form of Lucene's documentation, by dense arrays."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    column = {word: place for place, word in enumerate(dict.fromkeys(word for row in words for word in row))}
    counts = np.zeros((len(texts), len(column)))
    for row, found in enumerate(words):
        for word in found:
            counts[row, column[word]] += 1
    containing, lengths = (counts > 0).sum(axis=0), counts.sum(axis=1)
    idf = np.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    return counts @ (idf * counts / (counts + norm[:, None])).T


def test_leak_table_of_english_xquad(real_data: Path) -> None:
    """Of 870 questions on 240 paragraphs most are shown their own paragraph: docs/rare.md has the table."""
    rows = load_dataset("json", data_files=str(real_data / "xquad_en" / "test.jsonl.gz"), split="train")
    questions, contexts = rows["question"][:], rows["context"][:]
    scores = bm25_matrix(questions)
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores, axis=1, kind="stable")
    store = ExemplarStore({"id": rows["id"][:], "query": questions, "document": contexts})
    targets = [Target(id=name) for name in rows["id"]]
    hits = store.search(questions, 5, targets=targets, exclude=Exclude(True, True, False, False))
    for k, documented in ((1, 0.523), (3, 0.654), (5, 0.700)):
        pairs = zip(contexts, hits, nearest, strict=True)
        leaks = [
            (own in {hit.document for hit in row[:k]}, own in {contexts[i] for i in by[:k]}) for own, row, by in pairs
        ]
        ours, oracle = np.mean(leaks, axis=0)
        assert ours == pytest.approx(oracle, abs=0.01)
        assert ours == pytest.approx(documented, abs=0.001)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_decoder_with_a_chat_template_trains_on_plain_text(scifact: Dataset, smollm2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

    from hf_ext.trainers.rare import RareTrainer

    model = SentenceTransformer(str(smollm2), device="cpu", model_kwargs={"dtype": "float32"})
    args = config(
        tmp_path, max_steps=5, learning_rate=2e-4, optim="adamw_torch", max_query_tokens=128, max_document_tokens=32,
        instruction="Given a claim, find the abstract", n_examples=2, example_rate=1.0,
    )  # fmt: skip
    adapter = LoraConfig(task_type="FEATURE_EXTRACTION", r=8, target_modules="all-linear")
    built = RareTrainer(model, args, train_dataset=scifact, peft_config=adapter)
    batch = built.data_collator([built.train_dataset[0]])
    text = model.tokenizer.decode(batch["query_input_ids"][0][batch["query_attention_mask"][0].bool()])
    assert text.startswith("Instruct: Given a claim, find the abstract\nQuery: ")
    assert "<|im_start|>" not in text
    built.train()
    built.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    query = [scifact[0]["query"]]
    assert np.allclose(saved.encode_query(query), model.eval().encode_query(query), atol=1e-5)
