"""Pretraining on packed sequences: every step against a plain loop, the schedule, the plan, bad shards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainingArguments

from hf_ext.data.curation.packing import pack
from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from hf_ext.trainers.pretraining.architecture import new_model, num_parameters
from hf_ext.trainers.pretraining.config import PretrainingConfig
from hf_ext.trainers.pretraining.schedule import warmup_cosine
from hf_ext.trainers.pretraining.trainer import PretrainingTrainer
from tests.trainers.pretraining import LENGTH, TINY, config, sequences
from tests.trainers.runs import TOKENIZER, logged, train, weights_of


def dclm_rate(step: int, base: float, warmup: int, steps: int, end: float) -> float:
    """The learning rate of DCLM's runs, as its training code has it."""
    if step < warmup:
        return base * (step + 1) / warmup
    return end + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (base - end)


def plain_loop(model: Any, rows: Dataset, args: PretrainingConfig) -> list[dict[str, float]]:
    """Pretraining without a trainer: rows in their order, AdamW by hand of torch."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
    gains = [p for name, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), eps=args.adam_epsilon)
    ids = torch.tensor(rows["input_ids"][:])
    steps = []
    for step in range(args.max_steps):
        rate = dclm_rate(step, args.learning_rate, 3, args.max_steps, args.cooldown_learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = ids[(step * 4) % len(ids) :][:4]
        logits = model(input_ids=batch[:, :-1]).logits
        nll = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        squares = logits.logsumexp(-1).square().mean()
        optimizer.zero_grad()
        (nll + args.z_loss_weight * squares).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        steps.append({"nll": nll.item(), "z": squares.item(), "rate": rate})
    return steps


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_step_is_that_of_a_plain_loop(accumulation: int, tmp_path: Path) -> None:
    args = config(
        tmp_path, optim="adamw_torch", learning_rate=1e-2, weight_decay=0.033, warmup_steps=3, max_steps=8,
        z_loss_weight=0.01, cooldown_learning_rate=1e-3, train_sampling_strategy="sequential",
        per_device_train_batch_size=4 // accumulation, sequences_per_step=4,
    )  # fmt: skip
    assert args.gradient_accumulation_steps == accumulation
    rows = sequences(32)
    trainer = PretrainingTrainer(new_model(TINY, TOKENIZER), args, rows, processing_class=TOKENIZER)
    losses = train(trainer)
    expected = plain_loop(model := new_model(TINY, TOKENIZER), rows, args)
    totals = [step["nll"] + 0.01 * step["z"] for step in expected]
    assert losses == pytest.approx(totals, abs=1e-5)
    assert logged(trainer, "loss/next_token") == pytest.approx([step["nll"] for step in expected], abs=1e-5)
    assert logged(trainer, "loss/z") == pytest.approx([step["z"] for step in expected], rel=1e-4)
    assert logged(trainer, "learning_rate") == pytest.approx([step["rate"] for step in expected], rel=1e-12)
    assert losses[-1] < losses[0] - 0.3
    for name, value in weights_of(trainer.model).items():
        torch.testing.assert_close(value, weights_of(model)[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("warmup", "steps", "base"), [(2000, 7851, 3e-3), (5000, 54925, 3e-3), (0, 10, 2e-3)])
def test_the_schedule_is_dclm_s(warmup: int, steps: int, base: float) -> None:
    for step in {*range(0, steps, 97), 0, max(warmup - 1, 0), warmup, steps - 1}:
        factor = warmup_cosine(step, num_warmup_steps=warmup, num_steps=steps, end_ratio=3e-5 / base)
        assert base * factor == pytest.approx(dclm_rate(step, base, warmup, steps, 3e-5), rel=1e-12)


def test_a_plain_configuration_of_the_host_keeps_its_schedule(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", lr_scheduler_type="linear")
    with pytest.raises(RowError, match=r"row 0, column 'input_ids': 33 tokens, and sequence_length=2,048 needs 2,049"):
        PretrainingTrainer(new_model(TINY, TOKENIZER), args, sequences(8))
    trainer = PretrainingTrainer(
        new_model(TINY, TOKENIZER), config(tmp_path, lr_scheduler_type="constant", cooldown_learning_rate=None),
        sequences(8),
    )  # fmt: skip
    train(trainer)
    assert set(logged(trainer, "learning_rate")) == {0.1}


def test_held_out_loss_is_the_mean_over_all_tokens_without_the_z_loss(tmp_path: Path) -> None:
    rows = sequences(10)
    model = new_model(TINY, TOKENIZER)
    trainer = PretrainingTrainer(model, config(tmp_path, z_loss_weight=10.0), rows, rows)
    found = trainer.evaluate()["eval_loss"]
    ids = torch.tensor(rows["input_ids"][:])
    with torch.no_grad():
        expected = model(input_ids=ids[:, :-1]).logits
    assert found == pytest.approx(float(cross_entropy(expected.flatten(0, 1), ids[:, 1:].flatten())), abs=1e-5)


def test_what_pack_writes_is_trained_on_and_the_saved_model_is_stock(tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import ModelCard

    from tests.tiny import tiny_text_dataset

    pack(tiny_text_dataset(120), TOKENIZER, tmp_path / "shards", sequence_length=LENGTH)
    rows = load_dataset(str(tmp_path / "shards"), split="train", cache_dir=str(tmp_path / "cache"))
    args = config(
        tmp_path / "out", architecture=TINY, token_budget=4 * LENGTH * 3 - 5, max_steps=-1, model_license="mit"
    )
    trainer = PretrainingTrainer(args=args, train_dataset=rows, processing_class=TOKENIZER)
    assert len(train(trainer)) == 3
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in weights_of(trainer.model).items():
        assert torch.equal(weights_of(model)[name], value)
    assert model.config.eos_token_id == TOKENIZER.eos_token_id
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "trained from scratch" in card.text
    assert "fine-tun" not in card.text.lower()
    assert f"| `tokens` | {3 * 4 * LENGTH:,} |" in card.text
    assert f"| `parameters` | {num_parameters(model)[0]:,} |" in card.text


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_number_of_tokens_and_ids_of_every_row_is_checked(tmp_path: Path) -> None:
    rows = sequences(8).to_list()
    rows[5]["input_ids"] = rows[5]["input_ids"][:-1]
    model = new_model(TINY, TOKENIZER)
    with pytest.raises(RowError, match=r"row 5, column 'input_ids': 32 tokens") as caught:
        PretrainingTrainer(model, config(tmp_path), Dataset.from_list(rows))
    assert caught.value.row_index == 5
    for token in (len(TOKENIZER), -1):
        rows = sequences(8).to_list()
        rows[5]["input_ids"][7] = token
        with pytest.raises(RowError, match=r"no embedding|none of the model's"):
            PretrainingTrainer(model, config(tmp_path), Dataset.from_list(rows)).train()
        stream = Dataset.from_list(rows).to_iterable_dataset()
        with pytest.raises(RowError, match="packed with another tokenizer"):
            PretrainingTrainer(model, config(tmp_path), stream).train()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            Dataset.from_dict({"text": ["a"]}),
            "no set of packed sequences: it has no column 'input_ids', but \\['text'\\]",
        ),
        (Dataset.from_dict({"input_ids": []}), "has no row"),
        (Dataset.from_list([{"input_ids": [1] * 33}, {"input_ids": None}]), "row 1, column 'input_ids': 0 tokens"),
    ],
)
def test_a_set_that_is_no_packed_one_is_refused(rows: Dataset, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PretrainingTrainer(new_model(TINY, TOKENIZER), config(tmp_path), rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sequences_per_step": 6}, "sequences_per_step=6 is no multiple of the 4 sequences"),
        ({"sequences_per_step": 8, "gradient_accumulation_steps": 3}, "gradient_accumulation_steps=3 does not give"),
        ({"cooldown_learning_rate": 1.0}, "is above learning_rate=0.1"),
        ({"lr_scheduler_type": "linear"}, "is the end of a cosine, and lr_scheduler_type is 'linear'"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "has no effect with cooldown_learning_rate"),
        ({"z_loss_weight": -1.0}, "z_loss_weight must be"),
        ({"token_budget": 0}, "token_budget must be"),
        ({"sequence_length": 0}, "sequence_length must be"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"hidden_size": 8}, "needs a model_type"),
        ({"model_type": "qwen33"}, "no model_type 'qwen33'"),
        ({"model_type": "qwen3", "hiden_size": 8}, "qwen3 has no field 'hiden_size'"),
        (TINY | {"vocab_size": 100}, "tokens, and the architecture has room for 100"),
        (TINY | {"hidden_size": "wide"}, "architecture cannot be used"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        new_model(architecture, TOKENIZER)


def test_an_unusable_loss_names_the_rows(tmp_path: Path) -> None:
    trainer = PretrainingTrainer(
        new_model(TINY, TOKENIZER), config(tmp_path, train_sampling_strategy="sequential"), sequences(16)
    )

    def spoil(model: Any, args: Any, outputs: Any) -> None:
        if trainer.state.global_step == 2:
            outputs.logits = outputs.logits.clone()
            outputs.logits[1, 3, 0] = torch.nan

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="loss") as caught:
        trainer.train()
    assert caught.value.row_indices == [9]


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    first, again, other = (new_model(TINY, TOKENIZER, seed=seed) for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights_of(first)[name], weights_of(again)[name])
    assert not torch.equal(weights_of(first)[name], weights_of(other)[name])
