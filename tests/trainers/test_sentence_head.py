"""A sentence encoder with a head: its logits by hand, its folder opened by stock sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import Trainer, set_seed

from hf_ext.data.relabeling import RRChannel
from hf_ext.rounds.consensus import ConsensusRecipe
from hf_ext.trainers.consensus import SentenceHead
from tests.trainers import retrieval
from tests.trainers.classifiers import consensus_config

TEXTS = ["where is the calm kite", "the old mill", "a"]


def head(**kwargs: object) -> SentenceHead:
    set_seed(0)
    return SentenceHead(retrieval.encoder(), 3, **kwargs)


def test_its_logits_are_a_linear_layer_on_the_pooled_tokens() -> None:
    model = head().eval()
    batch = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    encoder = retrieval.encoder()
    with torch.no_grad():
        states = encoder[0](dict(batch))["token_embeddings"]
        mask = batch["attention_mask"][..., None]
        mean = (states * mask).sum(1) / mask.sum(1)
        linear = model.modules_in_order[-1].linear
        expected = mean @ linear.weight.T + linear.bias
        found = model(**batch)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_saved_folder_is_stock_and_encode_gives_the_logits(tmp_path: Path) -> None:
    model = head(label_names=["a", "b", "c"]).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = model(**model.tokenizer(TEXTS, padding=True, return_tensors="pt"))["logits"].numpy()
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), ours, atol=1e-5)
    assert json.loads((tmp_path / "labels.json").read_text()) == ["a", "b", "c"]
    assert not list(tmp_path.rglob("*.bin"))
    assert "hf_ext" not in (tmp_path / "modules.json").read_text(), "a module of ours would need trust_remote_code"


@pytest.mark.parametrize("frozen", [False, True])
def test_the_recipe_trains_it_and_a_frozen_encoder_stays_as_it_was(frozen: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 24)
    words = [["kite"], ["mill"], ["calm"]]
    model = head()
    rows = Dataset.from_list(
        [{**model.tokenizer(f"the {words[label][0]} {i}"), "label": int(label)} for i, label in enumerate(labels)]
    )
    args = consensus_config(
        tmp_path, mode="consensus", budget="epochs", select_on_noisy_eval=False, num_train_epochs=3, learning_rate=0.05
    )
    recipe = ConsensusRecipe(
        Trainer, lambda: head(freeze_encoder=frozen), args, rows, channel=RRChannel(3.0, 3),
        processing_class=model.tokenizer,
    )  # fmt: skip
    result = recipe.run()
    before = dict(head().named_parameters())
    moved = {n for n, v in result.trainer.model.named_parameters() if not torch.equal(v, before[n])}
    assert any(name.startswith("modules_in_order") and "linear" in name for name in moved)
    assert (not [name for name in moved if "linear" not in name]) == frozen
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "library_name: sentence-transformers" in card
    assert "SentenceTransformer(" in card
    logits = SentenceTransformer(str(tmp_path), device="cpu").encode(["the kite 1"])
    assert logits.shape == (1, 3)
