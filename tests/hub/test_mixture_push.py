"""Mixtures on the Hub: what is pushed opens from there, and what a run knows of its rows stays here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from hf_ext.moe.lora import LoraMixture
from tests.hub.fake_hub import FakeHub
from tests.moe.models import tiny_encoder
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainers.mixtures import mixture_trainer, text_rows
from tests.trainers.runs import TOKENIZER, assert_same_weights
from tests.trainers.test_moe_lora import mixture_trainer as lora_trainer

PICKLES = (".bin", ".pt", ".pth", ".pkl")


def test_a_mixture_is_used_by_its_name_on_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    settings = {
        "num_experts": 2,
        "ridge": 1e-2,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "hub_model_id": "me/mixture",
    }
    trainer = mixture_trainer(tmp_path / "out", text_rows(40), (tiny_encoder(), tiny_tokenizer()), **settings)
    trainer.train()
    trainer.plot_partition(tmp_path / "out")
    trainer.push_to_hub()
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained("me/mixture"), trainer.model)
    assert_same_weights(AutoModel.from_pretrained("me/mixture", subfolder="encoder"), tiny_encoder())
    assert pipeline("text-classification", "me/mixture")("a row")[0]["label"] in ("early", "late")
    assert 'model="me/mixture"' in ModelCard.load("me/mixture").text
    files = hub.files("me/mixture")
    private = ("checkpoint-", "partition.json", "partition.md", "training_args", "moe_fit")
    assert not [name for name in files if name.startswith(private) or name.endswith(PICKLES)]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]


def test_lora_experts_are_opened_by_their_name_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    trainer = lora_trainer(tmp_path / "out", rounds=1, push_to_hub=True, hub_model_id="me/experts")
    mixture = trainer.train()
    hub.fail("commit", "lost")  # applied, but the answer does not come
    trainer.push_to_hub()
    assert len(hub.titles("me/experts")) == 1
    pushed = LoraMixture.from_pretrained("me/experts", base_model=tiny_model(TOKENIZER))
    ids = torch.tensor([[7, 8, 9, 10]])
    assert torch.equal(pushed.gate_probabilities(ids), mixture.gate_probabilities(ids))
    for expert in ("expert_0", "expert_1"):
        pushed.model.set_adapter(expert)
        mixture.model.set_adapter(expert)
        assert torch.equal(pushed.model(ids).logits, mixture.model(ids).logits)
    assert "moe_lora" in ModelCard.load("me/experts").data.tags
    files = hub.files("me/experts")
    assert not [name for name in files if name.startswith("round-") or name.endswith(PICKLES)]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
