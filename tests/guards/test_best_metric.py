"""Which way a metric is better: the best checkpoint and early stopping go by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback
from trl import DPOConfig, SFTConfig

from hf_ext import InfoPOConfig, InfoPOTrainer, InfoPOUnpairedConfig, RareConfig, WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers.preference import pairs, start
from tests.trainers.runs import TOKENIZER, build, config_of

LOWER = {
    WeightedSFTConfig: ["loss", "eval_loss", "loss_weighted", "eval_loss_weighted", "eval_easy_loss_weighted"],
    InfoPOConfig: ["eval_infopo/loss_weighted", "infopo/rejected_delta", "eval_a_infopo/squeeze", "rewards/rejected"],
    InfoPOUnpairedConfig: ["eval_infopo/chosen_dropped", "kl", "eval_b_kl", "infopo/clipped"],
    RareConfig: ["eval_loss", "eval_NanoMSMARCO_loss", "eval_rare/empty_hits"],
}
HIGHER = {
    WeightedSFTConfig: ["mean_token_accuracy", "eval_mean_token_accuracy"],
    InfoPOConfig: ["eval_infopo/mi", "infopo/mi_js", "eval_rewards/accuracies", "eval_a_rewards/margins"],
    InfoPOUnpairedConfig: ["infopo/chosen_delta", "eval_rewards/chosen"],
    RareConfig: ["eval_NanoMSMARCO_cosine_ndcg@10", "cosine_mrr@10"],
}


def test_every_metric_has_its_direction_and_the_users_own_stands(tmp_path: Path) -> None:
    for table, is_higher in ((LOWER, False), (HIGHER, True)):
        for config_class, metrics in table.items():
            for metric in metrics:
                fields: dict[str, Any] = {
                    "output_dir": str(tmp_path), "report_to": "none", "bf16": False, "metric_for_best_model": metric,
                }  # fmt: skip
                assert config_class(**fields).greater_is_better is is_higher, metric
                for own in (True, False):
                    assert config_class(**fields, greater_is_better=own).greater_is_better is own, metric


def evaluated(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss_weighted", "learning_rate": 3.0,
    } | changes  # fmt: skip


def rows(n: int = 8, seed: int = 0) -> Dataset:
    return tiny_prompt_completion_dataset(n, seed).add_column("weight", [1.0, 2.0] * (n // 2))


@pytest.mark.parametrize("config_class", [WeightedSFTConfig, SFTConfig])
def test_the_checkpoint_of_the_lowest_weighted_loss_is_the_best_and_stopping_waits_for_it(
    config_class: Any, tmp_path: Path
) -> None:
    """A learning rate so high that the loss rises again: a plain configuration of the host is read alike."""
    args = config_of(config_class, tmp_path, **evaluated(tmp_path))
    stopper = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = build(WeightedSFTTrainer, args, rows(), eval_dataset=rows(), callbacks=[stopper])
    trainer.train()
    losses = [entry["eval_loss_weighted"] for entry in trainer.state.log_history if "eval_loss_weighted" in entry]
    rises = [later >= min(losses[:i]) for i, later in enumerate(losses) if i]
    assert trainer.state.best_metric == min(losses)
    assert trainer.state.best_global_step == 1 + losses.index(min(losses))
    assert len(losses) == (rises.index(True) + 2 if any(rises) else 4)
    assert trainer.evaluate()["eval_loss_weighted"] == pytest.approx(min(losses), abs=1e-6)


def test_several_sets_keep_their_own_values_under_the_prefix_of_the_call(tmp_path: Path) -> None:
    sets = {"easy": rows(4), "hard": rows(6, seed=5)}
    changes = evaluated(
        tmp_path, max_steps=2, metric_for_best_model="eval_hard_loss_weighted", prediction_loss_only=True
    )
    trainer = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path, **changes), rows(), eval_dataset=sets)
    trainer.train()
    history = [entry["eval_hard_loss_weighted"] for entry in trainer.state.log_history if "eval_hard_loss" in entry]
    assert trainer.state.best_metric == min(history)
    together = trainer.evaluate()
    for name in sets:
        alone = trainer.evaluate(eval_dataset=trainer.eval_dataset[name], metric_key_prefix="test")
        predicted = trainer.predict(trainer.eval_dataset[name]).metrics
        for metric in ("loss", "loss_weighted", "mean_token_accuracy"):
            assert alone[f"test_{metric}"] == pytest.approx(together[f"eval_{name}_{metric}"])
        assert predicted["test_loss_weighted"] == pytest.approx(alone["test_loss_weighted"])
        assert "eval_loss_weighted" not in alone
    assert together["eval_easy_loss_weighted"] != together["eval_hard_loss_weighted"]


@pytest.mark.parametrize("name", ["loss_weighted", "loss", "mean_token_accuracy"])
def test_a_metric_that_names_none_of_several_sets_is_refused_before_training(name: str, tmp_path: Path) -> None:
    changes = evaluated(tmp_path, metric_for_best_model=f"eval_{name}")
    trainer = build(
        WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path, **changes), rows(),
        eval_dataset={"easy": rows(4), "hard": rows(4)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"pass 'eval_easy_{name}' or 'eval_hard_{name}'"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_preference_run_watches_each_of_several_sets(tmp_path: Path) -> None:
    sets = {"a": pairs(4, seed=1), "b": pairs(4, seed=2)}
    changes = {"eval_strategy": "steps", "eval_steps": 1, "likelihood_guard": "stop", "guard_patience": 2}
    swapped = pairs(8).rename_columns({"chosen": "rejected", "rejected": "chosen"})  # so that the chosen ones fall
    trainer = start(
        InfoPOTrainer, InfoPOConfig, tmp_path, swapped, max_steps=6, learning_rate=0.3, kwargs={"eval_dataset": sets},
        **changes,
    )  # fmt: skip
    trainer.train()
    values = {
        name: [entry[key] for entry in trainer.state.log_history if key in entry]
        for name in sets
        for key in [f"eval_{name}_infopo/chosen_delta"]
    }
    low = [all(value < 0 for value in series[-2:]) for series in values.values()]
    assert any(low) == (trainer.state.global_step < 6)
    assert values["a"] != values["b"]
    assert not any("eval_infopo/chosen_delta" in entry for entry in trainer.state.log_history)


def test_a_plain_configuration_of_the_host_has_the_direction_of_the_metric(tmp_path: Path) -> None:
    fields = {"metric_for_best_model": "eval_infopo/loss_weighted", "max_steps": 1}
    args = config_of(DPOConfig, tmp_path, **fields)
    assert args.greater_is_better, "the host's guess"
    trainer = build(InfoPOTrainer, args, pairs(4), ref_model=tiny_model(TOKENIZER))
    assert trainer.args.greater_is_better is False
