"""With all weights 1 the weighted trainer is `SFTTrainer`, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_messages_dataset, tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, train

# A short max_length, so that some rows are cut, split or packed.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"max_length": 24},
    "keep_end": {"max_length": 24, "truncation_mode": "keep_end"},
    "packing_bfd": {"max_length": 32, "packing": True, "per_device_train_batch_size": 2},
    "packing_bfd_split": {
        "max_length": 16,
        "packing": True,
        "packing_strategy": "bfd_split",
        "per_device_train_batch_size": 2,
    },
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "padding_free": {"padding_free": True, "max_length": None},
    "shuffled": {"shuffle_dataset": True, "packing": True, "max_length": 48, "per_device_train_batch_size": 2},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "weight_decay": 0.1},
}


def rows() -> Dataset:
    return tiny_prompt_completion_dataset(24, seed=3)


def with_ones(dataset: Dataset) -> Dataset:
    return dataset.add_column("weight", [1.0] * len(dataset))


def run(
    trainer_class: Any, config_class: Any, folder: Any, dataset: Dataset, model: Any = None, **settings: Any
) -> Any:
    trainer = build(trainer_class, config_of(config_class, folder, **settings), dataset, model=model)
    return train(trainer), trainer.model


@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
@pytest.mark.parametrize("column", [False, True], ids=["no_column", "ones"])
@pytest.mark.parametrize("normalize", ["weights", "tokens"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_of_one_give_sft_bit_for_bit(setting: str, normalize: str, column: bool, tmp_path: Any) -> None:
    settings = SETTINGS[setting]
    theirs, their_model = run(SFTTrainer, SFTConfig, tmp_path / "sft", rows(), **settings)
    dataset = with_ones(rows()) if column else rows()
    ours, our_model = run(
        WeightedSFTTrainer, WeightedSFTConfig, tmp_path / "weighted", dataset, normalize=normalize, **settings
    )
    assert len(ours) == 4
    assert ours == theirs
    assert_same_weights(our_model, their_model)


@pytest.mark.parametrize("normalize", ["weights", "tokens"])
@pytest.mark.parametrize("packing", [False, True])
def test_weights_of_one_give_sft_bit_for_bit_with_lora(normalize: str, packing: bool, tmp_path: Any) -> None:
    results = []
    for trainer_class, config_class, extra in (
        (SFTTrainer, SFTConfig, {}),
        (WeightedSFTTrainer, WeightedSFTConfig, {"normalize": normalize}),
    ):
        args = config_of(config_class, tmp_path / config_class.__name__, packing=packing, **extra)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
        trainer = build(trainer_class, args, rows(), peft_config=lora)
        results.append((train(trainer), trainer.model))
    (theirs, their_model), (ours, our_model) = results
    assert ours == theirs
    assert_same_weights(our_model, their_model)


def test_a_peft_model_passed_in_gives_sft_bit_for_bit(tmp_path: Any) -> None:
    results = []
    for trainer_class, config_class in ((SFTTrainer, SFTConfig), (WeightedSFTTrainer, WeightedSFTConfig)):
        torch.manual_seed(3)  # the adapter's initialisation draws on the global state: the same for both
        model = get_peft_model(tiny_model(TOKENIZER), LoraConfig(r=4, target_modules=["q_proj"]))
        results.append(run(trainer_class, config_class, tmp_path / config_class.__name__, rows(), model))
    assert results[0][0] == results[1][0]
    assert_same_weights(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        (tiny_text_dataset(16), {}),
        (tiny_messages_dataset(16), {}),
        (tiny_messages_dataset(16), {"assistant_only_loss": True}),
        (tiny_prompt_completion_dataset(16, conversational=True), {}),
        (tiny_prompt_completion_dataset(16), {"completion_only_loss": False}),
    ],
    ids=["text", "messages", "assistant_only", "conversational_prompt_completion", "whole_row"],
)
def test_every_data_type_gives_sft_bit_for_bit(dataset: Dataset, settings: dict, tmp_path: Any) -> None:
    theirs, their_model = run(SFTTrainer, SFTConfig, tmp_path / "sft", dataset, **settings)
    ours, our_model = run(WeightedSFTTrainer, WeightedSFTConfig, tmp_path / "ours", with_ones(dataset), **settings)
    assert ours == theirs
    assert_same_weights(our_model, their_model)


def test_a_formatting_function_gives_sft_bit_for_bit(tmp_path: Any) -> None:
    dataset = Dataset.from_dict({"q": [f"Question {i}?" for i in range(16)], "a": ["yes", "no"] * 8})
    results = []
    for trainer_class, config_class in ((SFTTrainer, SFTConfig), (WeightedSFTTrainer, WeightedSFTConfig)):
        args = config_of(config_class, tmp_path / config_class.__name__)
        trainer = build(trainer_class, args, dataset, formatting_func=lambda row: f"{row['q']} {row['a']}")
        results.append((train(trainer), trainer.model))
    assert results[0][0] == results[1][0]
    assert_same_weights(results[0][1], results[1][1])


def test_the_comparison_can_fail(tmp_path: Any) -> None:
    theirs, _ = run(SFTTrainer, SFTConfig, tmp_path / "sft", rows())
    uneven = rows().add_column("weight", [1.0, 2.0] * 12)
    ours, _ = run(WeightedSFTTrainer, WeightedSFTConfig, tmp_path / "ours", uneven)
    assert ours != theirs
