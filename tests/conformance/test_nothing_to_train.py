"""A run that could move nothing is refused before it begins; one without a step saves no model. By every trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.conformance.registry import BY_NAME, WITH_GRADIENT
from tests.tiny import tiny_model, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, build, config_of


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.suffix == ".safetensors" and "store" not in str(path)}


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_a_frozen_model_is_refused_before_the_first_step_and_a_new_adapter_is_not(name: str, tmp_path: Path) -> None:
    method = BY_NAME[name]
    frozen = method.model()
    frozen.requires_grad_(False)
    trainer = method.build(tmp_path, 8, model=frozen)
    with pytest.raises(ValueError, match=r"No parameter of the model is trainable.*requires_grad_\(True\)"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not files_of(tmp_path / "out"), "nothing was scored, nothing saved"
    fresh = method.model()
    fresh.requires_grad_(False)
    trainer = method.build(tmp_path / "new", 8, model=fresh, max_steps=1, kwargs={"peft_config": method.adapter()})
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("name", ["weighted_sft", "flow", "infopo", "infopo_unpaired"])
def test_an_adapter_loaded_for_inference_is_refused_by_the_name_of_the_remedy(name: str, tmp_path: Path) -> None:
    method = BY_NAME[name]
    get_peft_model(tiny_model(TOKENIZER), method.adapter()).save_pretrained(tmp_path / "adapter")
    for is_trainable in (False, True):
        model = PeftModel.from_pretrained(tiny_model(TOKENIZER), tmp_path / "adapter", is_trainable=is_trainable)
        args = config_of(method.config, tmp_path / f"out-{is_trainable}", max_steps=1, **method.settings)
        trainer = build(method.trainer, args, method.plain(8), model=model)
        if is_trainable:
            trainer.train()
            assert trainer.state.global_step == 1
            continue
        with pytest.raises(ValueError, match=r"is_trainable=True.*peft_config="):
            trainer.train()
        assert not files_of(tmp_path / "out-False")


def test_an_adapter_that_transformers_loaded_is_named_alike_and_can_be_evaluated(tmp_path: Path) -> None:
    tiny_model(TOKENIZER).save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora).save_pretrained(tmp_path / "lora")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lora")
    trainer = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path), tiny_text_dataset(4), model=model)
    with pytest.raises(ValueError, match="is_trainable=True"):
        trainer.train()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0


def test_an_optimizer_of_other_parameters_is_refused_and_one_of_the_models_is_not(tmp_path: Path) -> None:
    """Made before an adapter was added, it holds the frozen base alone."""
    base = tiny_model(TOKENIZER)
    optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=1)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = build(
        WeightedSFTTrainer, args, tiny_text_dataset(8), model=base, peft_config=lora, optimizers=(optimizer, None)
    )
    with pytest.raises(ValueError, match=r"optimizer in optimizers= holds no parameter that is trained"):
        adapted.train()
    model = tiny_model(TOKENIZER)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = build(WeightedSFTTrainer, args, tiny_text_dataset(8), model=model, optimizers=(optimizer, None))
    trainer.train()
    trainer.train()  # the host has wrapped it by now


def bad_texts() -> Iterator[dict[str, Any]]:
    yield from ({"text": None} for _ in range(8))


SOURCE: list[dict[str, Any]] = []


def from_source() -> Iterator[dict[str, Any]]:
    yield from SOURCE


def two_texts() -> Iterator[dict[str, Any]]:
    yield from tiny_text_dataset(2)


def train_after_the_source_has_ended(args: Any, dataset: Any) -> None:
    SOURCE[:] = list(tiny_text_dataset(4))
    trainer = build(WeightedSFTTrainer, args, dataset)
    SOURCE.clear()
    trainer.train()


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        (bad_texts, {"on_bad_row": "drop"}, "gave no row"),
        (two_texts, {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, "gradient_accumulation"),
        (from_source, {}, "gave no row"),
        (None, {"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs=0"),
        (None, {"dataloader_drop_last": True, "per_device_train_batch_size": 5}, "the 4 rows .* do not fill one of 5"),
    ],
    ids=[
        "every row of a stream is dropped",
        "a stream shorter than a step",
        "a stream at its end",
        "no epoch",
        "no full batch",
    ],
)
def test_a_run_without_a_step_raises_and_saves_no_model(
    rows: Any, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    dataset = tiny_text_dataset(4) if rows is None else IterableDataset.from_generator(rows)
    saving = {"save_strategy": "epoch", "bad_rows_path": str(tmp_path / "bad.jsonl")}
    args = config_of(WeightedSFTConfig, tmp_path / "out", **(saving | changes))
    with pytest.raises(ValueError, match=reason):
        train_after_the_source_has_ended(args, dataset)
    assert not files_of(tmp_path)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["infopo", "infopo_unpaired"])
def test_a_stream_of_preferences_whose_rows_are_all_dropped_raises(name: str, tmp_path: Path) -> None:
    method = BY_NAME[name]
    rows = [row | {"prompt": None} for row in method.plain(4)]
    changes = {"on_bad_row": "drop"} | ({"positive_fraction": 0.5} if name == "infopo_unpaired" else {})
    with pytest.raises(ValueError, match="gave no row"):
        method.build(tmp_path, IterableDataset.from_generator(lambda: iter(rows)), **changes).train()
    assert not files_of(tmp_path)
