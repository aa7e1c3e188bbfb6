"""Adapters on the output head, and on embeddings tied to it: trained, measured with, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_ext import (
    InfoPOConfig,
    InfoPOTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
    add_original_losses,
    likelihood_report,
)
from tests.tiny import tiny_model, tiny_text_dataset
from tests.trainers.preference import pairs
from tests.trainers.runs import TOKENIZER, build, config_of, weights_of

TOKENS = {"embed_tokens": [5, 6, 300]}


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings))


def changed(config: LoraConfig, tied: bool = True) -> Any:
    """A `PeftModel` whose every trainable parameter is somewhere else than at the start."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(TOKENIZER, tie_word_embeddings=tied), config)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape)
    return model


@pytest.mark.parametrize("indices", [TOKENS, {"lm_head": [5]}], ids=["tied embeddings", "the head itself"])
def test_tokens_of_the_head_are_refused_by_name_before_training(indices: Any, tmp_path: Path) -> None:
    for trainer, config, rows in (
        (WeightedSFTTrainer, WeightedSFTConfig, tiny_text_dataset(4)),
        (InfoPOTrainer, InfoPOConfig, pairs(4)),
    ):
        args, peft_config = config_of(config, tmp_path), lora(trainable_token_indices=indices)
        with pytest.raises(ValueError, match=r"trainable_token_indices.*ensure_weight_tying=True"):
            build(trainer, args, rows, peft_config=peft_config)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_what_can_be_trained_is_trained_and_the_loss_is_that_of_the_logits(tmp_path: Path) -> None:
    """The remedies of that refusal, and adapters of embeddings whose head stays as it is."""
    both = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    cases = {
        "trainable_tokens_delta": (lora(trainable_token_indices=TOKENS), False),
        "modules_to_save": (lora(**both), True),
        "lora_embedding_A": (lora(target_modules=["embed_tokens"]), True),
    }
    for part, (config, tied) in cases.items():
        model = tiny_model(TOKENIZER, tie_word_embeddings=tied)
        args = config_of(WeightedSFTConfig, tmp_path / part, max_steps=1)
        trainer = build(WeightedSFTTrainer, args, tiny_text_dataset(4), model=model, peft_config=config)
        weights = weights_of(trainer.model)
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), abs=1e-5), part
        moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, weights[name])]
        assert any(part in name for name in moved), part


HEADS = {
    "lora": (lora(target_modules=["q_proj", "lm_head"]), False),
    "saved": (lora(modules_to_save=["lm_head"]), False),
    "tokens": (lora(trainable_token_indices=TOKENS), True),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_report_measures_the_model_with_what_is_on_its_head_and_the_original_without(kind: str) -> None:
    """Against the same model as plain weights, where an adapter can be merged; TRL's fused head would leave it out."""
    config, tied = HEADS[kind]
    quiet = {"show_progress": False}
    adapted = likelihood_report(changed(config, tied), None, pairs(4), TOKENIZER, **quiet)
    merged = changed(config, tied).merge_and_unload()
    start = tiny_model(TOKENIZER, tie_word_embeddings=tied)
    plain = likelihood_report(merged, start, pairs(4), TOKENIZER, **quiet)
    assert adapted.measures.keys() == plain.measures.keys()
    for name, value in plain.measures.items():
        assert adapted.measures[name].mean == pytest.approx(value.mean, abs=1e-5), name
    args = WeightedSFTConfig(output_dir="unused", max_length=64, bf16=False, use_cpu=True, report_to="none")
    scores = [
        add_original_losses(tiny_text_dataset(4), model, TOKENIZER, args, **quiet)["original_nll_sum"]
        for model in (changed(config, tied), start)
    ]
    assert list(scores[0]) == pytest.approx(list(scores[1]), abs=1e-4)
