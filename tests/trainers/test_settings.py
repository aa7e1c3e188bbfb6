"""Settings of the host that meet the weights: each either equals `SFTTrainer` or the loop, in every trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PrefixTuningConfig, PromptTuningConfig
from transformers import MixtralConfig, MixtralForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_ext.data.weighting import prepare_sft_rows
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.conformance.registry import BY_NAME, TRAINERS
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.oracle import document, step_loss, token_losses
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, logged, train

PAIRS = ((SFTTrainer, SFTConfig), (WeightedSFTTrainer, WeightedSFTConfig))
every_trainer = pytest.mark.parametrize("method", TRAINERS, ids=lambda method: method.name)


def rows(n: int = 24) -> Dataset:
    return tiny_prompt_completion_dataset(n, seed=3)


def assert_equals_sft(tmp_path: Path, make_model: Any = lambda: tiny_model(TOKENIZER), **settings: Any) -> Any:
    kwargs = settings.pop("kwargs", lambda: {})
    found = []
    for trainer_class, config_class in PAIRS:
        args = config_of(config_class, tmp_path / config_class.__name__, **settings)
        torch.manual_seed(0)
        trainer = build(trainer_class, args, rows(), model=make_model(), **kwargs())
        found.append((train(trainer), trainer))
    assert found[0][0] == found[1][0]
    assert_same_weights(found[0][1].model, found[1][1].model)
    return found[0][1], found[1][1]


SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"max_steps": -1, "num_train_epochs": 2.0},
    "last_accumulation_is_short": {"gradient_accumulation_steps": 4, "max_steps": 5},
    "bf16_autocast": {"bf16": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "columns_kept": {"remove_unused_columns": False},
    "padded_to_eight": {"pad_to_multiple_of": 8},
    "clipped": {"max_grad_norm": 0.1},
    "two_preparing_processes": {"dataset_num_proc": 2},
    "dropout_of_rest": {"dataloader_drop_last": True, "per_device_train_batch_size": 5},
}


@pytest.mark.filterwarnings("ignore:bf16 is set with use_cpu")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_host_gives_sft_bit_for_bit(setting: str, tmp_path: Path) -> None:
    assert_equals_sft(tmp_path, **SETTINGS[setting])


def mixture() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True,
        router_aux_loss_coef=0.5, max_position_embeddings=256, bos_token_id=1, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    return MixtralForCausalLM(config).float()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_balance_loss_of_a_mixture_of_experts_is_sfts(accumulation: int, tmp_path: Path) -> None:
    _, ours = assert_equals_sft(tmp_path, mixture, gradient_accumulation_steps=accumulation)
    assert min(logged(ours, "aux_loss")) > 0


VIRTUAL = {
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_give_sft_bit_for_bit(kind: str, tmp_path: Path) -> None:
    assert_equals_sft(tmp_path, kwargs=lambda: {"peft_config": VIRTUAL[kind]()})


@every_trainer
def test_every_trainer_trains_virtual_tokens(method: Any, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 16, kwargs={"peft_config": VIRTUAL["prompt"]()}, max_steps=3)
    assert np.isfinite(train(trainer)).all()


def test_virtual_tokens_do_not_move_the_weights_off_their_tokens(tmp_path: Path) -> None:
    weights = [float(i % 4) for i in range(8)]
    dataset = tiny_text_dataset(8).add_column("weight", weights)
    args = config_of(
        WeightedSFTConfig, tmp_path, max_steps=1, learning_rate=0.0, per_device_train_batch_size=8, max_length=128
    )
    trainer = build(WeightedSFTTrainer, args, dataset, peft_config=VIRTUAL["prompt"]())
    (loss,) = train(trainer)
    numerator = denominator = 0.0
    trainer.model.eval()
    for text, weight in zip(dataset["text"], weights, strict=True):
        ids = torch.tensor([TOKENIZER(text + TOKENIZER.eos_token)["input_ids"]])
        with torch.no_grad():
            log_probs = trainer.model(input_ids=ids).logits[0, 5:].double().log_softmax(-1)  # after the virtual ones
        nll = -log_probs[:-1].gather(-1, ids[0, 1:, None]).sum()
        numerator += weight * float(nll)
        denominator += weight * (ids.shape[1] - 1)
    assert loss == pytest.approx(numerator / denominator, abs=2e-6)


def test_flow_scores_the_model_without_its_virtual_tokens(tmp_path: Path) -> None:
    trainer = BY_NAME["flow"].build(
        tmp_path, tiny_text_dataset(9), kwargs={"peft_config": VIRTUAL["prompt"]()}, max_steps=1
    )
    train(trainer)
    ids = [TOKENIZER(text + TOKENIZER.eos_token)["input_ids"][:64] for text in tiny_text_dataset(9)["text"]]
    means = [np.mean([nll for nll, _ in token_losses(tiny_model(TOKENIZER), document(one))]) for one in ids]
    assert trainer.flow_statistics["flow/tau"] == pytest.approx(np.median(means), rel=1e-6)


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_compute_metrics_sees_what_sft_shows_it(tmp_path: Path) -> None:
    found = []
    for trainer_class, config_class in PAIRS:
        trainer = build(
            trainer_class, config_of(config_class, tmp_path / config_class.__name__), rows(8), eval_dataset=rows(6),
            compute_metrics=lambda p: {"sum": float(np.asarray(p.predictions, dtype=np.float64).sum())},
        )  # fmt: skip
        found.append(trainer.evaluate())
    assert found[0]["eval_sum"] == found[1]["eval_sum"]
    assert found[0]["eval_loss"] == found[1]["eval_loss"]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["int", "bool_like", "float32", "int_lists"])
def test_weights_of_any_number_type_are_those_numbers(kind: str, packing: bool, tmp_path: Path) -> None:
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_text_dataset(8)["text"]]
    numbers: list[Any] = [i % 3 for i in range(8)]
    if kind == "bool_like":
        numbers = [i % 2 for i in range(8)]
    column: Any = {"float32": np.array(numbers, dtype=np.float32)}.get(kind, numbers)
    if kind == "int_lists":
        column = numbers = [[(t + i) % 4 for t in range(len(row))] for i, row in enumerate(ids)]
    dataset = Dataset.from_dict({"input_ids": ids}).add_column("weight", column)
    args = config_of(
        WeightedSFTConfig, tmp_path, max_steps=1, learning_rate=0.0, per_device_train_batch_size=8, max_length=128,
        packing=packing,
    )  # fmt: skip
    trainer = build(WeightedSFTTrainer, args, dataset)
    (loss,) = train(trainer)
    docs = [document(row, None, weight) for row, weight in zip(ids, numbers, strict=True)]
    assert loss == pytest.approx(step_loss(trainer.model, docs), abs=2e-6)


def test_rows_the_user_prepared_and_the_trainer_must_not_touch_keep_their_weights(tmp_path: Path) -> None:
    prepared = prepare_sft_rows(rows(8).add_column("weight", [float(i) for i in range(8)]), TOKENIZER)
    settings = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 8}
    found = []
    for name, extra in (("a", {}), ("b", {"dataset_kwargs": {"skip_prepare_dataset": True}})):
        args = config_of(WeightedSFTConfig, tmp_path / name, **settings, **extra)
        found += train(build(WeightedSFTTrainer, args, prepared))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
