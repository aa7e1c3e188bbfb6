"""RARe on real data: what exemplars give away on scifact, and a decoder behind a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_ext.recipes.retrieval import beir_rows
from tests.trainers.retrieval import config, trainer

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def scifact(real_data: Path) -> Dataset:
    return beir_rows(str(real_data / "retrieval" / "scifact"), "train")


def test_half_of_scifact_s_training_rows_would_be_shown_their_own_abstract(scifact: Dataset, tmp_path: Path) -> None:
    """Of the claims 62.7 % have a gold among five neighbouring claims; here it is five neighbouring pairs."""
    settings = {"example_rate": 1.0, "n_examples": 5, "max_query_tokens": 256}

    def share(**changes: object) -> float:
        built = trainer(tmp_path, scifact, **settings, **changes)
        built.data_collator.formatter = built.data_collator.formatter.__class__(max_tokens=None)
        made, _ = built.data_collator.augment(list(built.train_dataset))
        golds: dict[str, set[str]] = {}
        for row in scifact:
            golds.setdefault(row["id"], set()).add(row["doc_id"])
        own = zip(scifact["id"], made, strict=True)
        return float(np.mean([bool(golds[name] & {hit.doc_id for hit in one.shown}) for name, one in own]))

    assert 0.5 < share(exclude=["self", "same_text"]) < 0.627
    assert share() == 0.0


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
