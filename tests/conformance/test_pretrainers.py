"""What any trainer on packed sequences here must do. A new method joins with one line in `registry.PRETRAINERS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainingArguments

from tests.conformance.loading import PICKLES, check_training_loads_no_pickle_and_no_code
from tests.conformance.registry import PRETRAINERS, Pretrainer
from tests.trainers.runs import assert_same_weights, train, weights_of

every_pretrainer = pytest.mark.parametrize("method", PRETRAINERS, ids=lambda method: method.name)
STEPS = 24
OPTIMISERS: dict[str, tuple[dict[str, Any], float]] = {
    "sgd": ({"optim": "sgd", "learning_rate": 0.3}, 1e-6),
    "adamw": ({"optim": "adamw_torch", "learning_rate": 1e-2}, 1e-5),
}


def with_labels(rows: Dataset) -> Dataset:
    """The same sequences for the host, whose models shift labels themselves."""
    return rows.map(lambda row: {"labels": row["input_ids"]})


@pytest.mark.parametrize("accumulation", [1, 2])
@every_pretrainer
def test_without_a_z_loss_it_is_its_parent_and_with_one_it_is_not(
    method: Pretrainer, accumulation: int, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "gradient_accumulation_steps": accumulation, "max_steps": 6, "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, learning_rate=0.1, optim="sgd", seed=7, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False, **fields,
    )  # fmt: skip
    parent = train(method.parent(method.model(), args, train_dataset=with_labels(method.rows(48))))
    ours = train(method.build(tmp_path / "ours", 48, z_loss_weight=0.0, **fields))
    assert np.abs(np.subtract(ours, parent)).max() < 1e-6
    assert np.abs(np.subtract(train(method.build(tmp_path, 48, z_loss_weight=0.01, **fields)), parent)).max() > 1e-3


def changes_of(optimiser: str, batch: int, accumulation: int) -> dict[str, Any]:
    return OPTIMISERS[optimiser][0] | {
        "max_steps": STEPS, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "z_loss_weight": 0.01,
    }  # fmt: skip


def two_process_jobs(folder: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"{method.name}/{optimiser}", "method": method.name, "folder": str(folder / method.name / optimiser),
         "rows": 32, "changes": changes_of(optimiser, 2, 1)}
        for method in PRETRAINERS
        for optimiser in OPTIMISERS
    ]  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@every_pretrainer
def test_batch_four_is_two_times_two_is_two_processes(
    method: Pretrainer, optimiser: str, two_processes: dict, tmp_path: Path
) -> None:
    whole = train(method.build(tmp_path / "whole", 32, **changes_of(optimiser, 4, 1)))
    accumulated = train(method.build(tmp_path / "accumulated", 32, **changes_of(optimiser, 2, 2)))
    shared = two_processes[f"{method.name}/{optimiser}"]
    assert shared["world"] == 2
    assert len(whole) == len(shared["losses"]) == STEPS
    assert np.mean(whole[-8:]) < np.mean(whole[:8]) - 0.02, "nothing was learned"
    assert np.abs(np.subtract(whole, accumulated)).max() <= OPTIMISERS[optimiser][1]
    assert np.abs(np.subtract(whole, shared["losses"])).max() <= OPTIMISERS[optimiser][1]


@every_pretrainer
def test_lora_trains_the_adapter_alone(method: Pretrainer, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 32, max_steps=4, learning_rate=1.0, kwargs={"peft_config": method.adapter()})
    frozen = {name: value for name, value in weights_of(trainer.model).items() if "lora" not in name}
    train(trainer)
    assert all(bool((weights_of(trainer.model)[name] == value).all()) for name, value in frozen.items())
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(PeftModel.from_pretrained(method.model(), tmp_path / "saved"), trainer.model)


@every_pretrainer
def test_the_saved_folder_is_stock_and_has_no_pickle(method: Pretrainer, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 16, max_steps=2)
    train(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), trainer.model)
    assert not [path for path in (tmp_path / "saved").rglob("*") if path.name.endswith(PICKLES)]
    assert str(tmp_path) not in (tmp_path / "saved" / "README.md").read_text()


@every_pretrainer
def test_training_saving_and_resuming_load_no_pickle_and_no_code_of_a_model(
    method: Pretrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training_loads_no_pickle_and_no_code(method, tmp_path, monkeypatch)
