"""What any trainer of classifiers here must do. A new method joins with one line in `registry.CLASSIFIERS`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from hf_ext.losses.label_noise import forward_loss_func
from tests.conformance.loading import PICKLES, check_training_loads_no_pickle_and_no_code
from tests.conformance.registry import CLASSIFIERS, Classifier
from tests.trainers.classifiers import CHANNEL
from tests.trainers.runs import Snapshot, assert_same_weights, train, weights_of

every_classifier = pytest.mark.parametrize("method", CLASSIFIERS, ids=lambda method: method.name)
every_one_with_a_channel = pytest.mark.parametrize(
    "method", [method for method in CLASSIFIERS if method.channel], ids=lambda method: method.name
)
STEPS, EPOCH_STEPS = 24, 8  # 32 rows in batches of 4
OPTIMISERS: dict[str, tuple[dict[str, Any], float]] = {
    "sgd": ({"optim": "sgd", "learning_rate": 0.1}, 1e-6),
    "adamw": ({"optim": "adamw_torch", "learning_rate": 1e-2}, 1e-5),
}


def build_parent(method: Classifier, folder: Path, loss: Any = None, **changes: Any) -> Any:
    """The parent on the same rows, from the same weights."""
    fields: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "seed": 7,
        "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **(fields | changes))
    return method.parent(method.model(), args, train_dataset=method.rows(32), compute_loss_func=loss)


def mean_of_the_step(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy over the labels of the whole accumulated batch, which the host counts."""
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 2])
@every_classifier
def test_it_equals_its_parent_with_the_same_loss_bit_for_bit(
    method: Classifier, accumulation: int, tmp_path: Path
) -> None:
    changes = {"gradient_accumulation_steps": accumulation, "max_steps": 6}
    ours = method.build(tmp_path, 32, **changes)
    loss = forward_loss_func(method.channel) if method.channel else mean_of_the_step
    theirs = build_parent(method, tmp_path / "parent", loss, **changes)
    assert train(ours) == train(theirs)
    assert_same_weights(ours.model, theirs.model)


@every_classifier
def test_neutral_it_is_its_parent_s_cross_entropy_and_not_neutral_it_is_not(
    method: Classifier, tmp_path: Path
) -> None:
    plain = train(build_parent(method, tmp_path / "parent", max_steps=8))
    neutral = train(method.build(tmp_path / "neutral", 32, max_steps=8, kwargs={"channel": None}))
    assert np.abs(np.subtract(plain, neutral)).max() < 1e-6
    rows = method.rows(32) if method.channel else method.rows(32).add_column("weight", [0.5, 2.0] * 16)
    assert np.abs(np.subtract(plain, train(method.build(tmp_path, rows, max_steps=8)))).max() > 1e-3


def changes_of(optimiser: str, batch: int, accumulation: int) -> dict[str, Any]:
    return OPTIMISERS[optimiser][0] | {
        "max_steps": STEPS, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "constant",
    }  # fmt: skip


def two_process_jobs(folder: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"{method.name}/{optimiser}", "method": method.name, "folder": str(folder / method.name / optimiser),
         "rows": 32, "changes": changes_of(optimiser, 2, 1)}
        for method in CLASSIFIERS
        for optimiser in OPTIMISERS
    ]  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@every_classifier
def test_batch_four_is_two_times_two_is_two_processes(
    method: Classifier, optimiser: str, two_processes: dict, tmp_path: Path
) -> None:
    whole = train(method.build(tmp_path / "whole", 32, **changes_of(optimiser, 4, 1)))
    accumulated = train(method.build(tmp_path / "accumulated", 32, **changes_of(optimiser, 2, 2)))
    shared = two_processes[f"{method.name}/{optimiser}"]
    assert shared["world"] == 2
    assert len(whole) == len(shared["losses"]) == STEPS
    assert np.mean(whole[-EPOCH_STEPS:]) < np.mean(whole[:EPOCH_STEPS]) - 0.02, "nothing was learned"
    assert np.abs(np.subtract(whole, accumulated)).max() <= OPTIMISERS[optimiser][1]
    assert np.abs(np.subtract(whole, shared["losses"])).max() <= OPTIMISERS[optimiser][1]


@every_classifier
def test_weights_are_rows_that_are_there_as_often(method: Classifier, tmp_path: Path) -> None:
    """Weights 2, 1, 0, 1 in steps of four rows, however accumulated: rows repeated, and others left out."""
    rows = method.rows(16)
    weighted = rows.add_column("weight", [2.0, 1.0, 0.0, 1.0] * 4)
    repeated = rows.select([i for start in range(0, 16, 4) for i in (start, start, start + 1, start + 3)])
    order = {"train_sampling_strategy": "sequential", "max_steps": 4}
    once = train(method.build(tmp_path / "a", weighted, **order))
    cut = train(method.build(
        tmp_path / "b", weighted, per_device_train_batch_size=1, gradient_accumulation_steps=4, **order
    ))  # fmt: skip
    other = train(method.build(tmp_path / "c", repeated, **order))
    assert np.abs(np.subtract(once, other)).max() < 1e-6
    assert np.abs(np.subtract(once, cut)).max() < 1e-6


@every_classifier
def test_a_nan_stops_before_the_optimiser_step_and_names_the_row(method: Classifier, tmp_path: Path) -> None:
    rows = method.rows(24).add_column("__hf_ext_row__", np.arange(24)).add_column("weight", [1.0] * 24)
    trainer = method.build(tmp_path, rows, max_steps=20)
    collate, before = trainer.data_collator, Snapshot()
    trainer.add_callback(before)

    def spoil(batch: list[dict]) -> dict[str, Any]:
        found = collate(batch)
        found["weight"] = torch.where(found["__hf_ext_row__"] == 13, math.nan, found["weight"])
        return found

    trainer.data_collator = spoil
    with pytest.raises(NonFiniteError, match="weight") as stopped:
        trainer.train()
    assert stopped.value.row_indices == [13]
    for name, value in trainer.model.named_parameters():
        assert torch.isfinite(value).all()
        assert torch.equal(value, before.weights[name])


@every_one_with_a_channel
def test_a_row_of_an_unknown_channel_is_named(method: Classifier, tmp_path: Path) -> None:
    rows = method.rows(8).add_column("label_dp_channel", [*["a"] * 5, "b", "a", "a"])
    with pytest.raises(RowError, match="row 5, column 'label_dp_channel': 'b' is none of the channels") as found:
        method.build(tmp_path, rows, kwargs={"channel": {"a": CHANNEL}})
    assert found.value.row_index == 5
    with pytest.raises(ValueError, match="no column 'label_dp_channel'"):
        method.build(tmp_path, method.rows(8), kwargs={"channel": {"a": CHANNEL}})


@every_one_with_a_channel
def test_each_row_s_loss_is_that_of_its_own_channel(method: Classifier, tmp_path: Path) -> None:
    from hf_ext.data.relabeling import RRChannel

    channels = {"a": RRChannel(0.5, 3), "b": RRChannel(4.0, 3)}
    names = ["a", "b", "b", "a"] * 2
    rows = method.rows(8).add_column("label_dp_channel", names)
    model = method.model()
    with torch.no_grad():
        probs = model.eval()(input_ids=torch.tensor(rows["input_ids"][:])).logits.double().softmax(-1).numpy()
    mixed = [
        sum(probs[i, y] * channels[names[i]].matrix()[y, label] for y in range(3))
        for i, label in enumerate(rows["label"][:])
    ]
    order = {"train_sampling_strategy": "sequential", "max_steps": 2, "learning_rate": 0.0}
    losses = train(method.build(tmp_path, rows, model=model, kwargs={"channel": channels}, **order))
    expected = [-np.log(mixed[:4]).mean(), -np.log(mixed[4:]).mean()]
    assert losses == pytest.approx(expected, rel=1e-5)


@every_classifier
def test_lora_trains_the_adapter_and_the_head_and_reloads_with_stock_classes(
    method: Classifier, tmp_path: Path
) -> None:
    trainer = method.build(tmp_path, 32, max_steps=16, learning_rate=1.0, kwargs={"peft_config": method.adapter()})
    own = ("lora", "modules_to_save")
    frozen = {n: v for n, v in weights_of(trainer.model).items() if not any(word in n for word in own)}
    losses = train(trainer)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert all(torch.equal(v, frozen[n]) for n, v in weights_of(trainer.model).items() if n in frozen)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(method.model(), tmp_path / "saved")
    ids = torch.tensor(method.rows(4)["input_ids"][:])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, trainer.model.eval()(ids).logits)
        assert not torch.equal(loaded(ids).logits, method.model().eval()(ids).logits)


@every_classifier
def test_the_saved_folder_is_stock_has_a_card_and_no_pickle(method: Classifier, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 16, max_steps=2, model_license="apache-2.0")
    train(trainer)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(folder), trainer.model)
    assert not [path for path in folder.rglob("*") if path.name.endswith(PICKLES)]
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-classification"
    assert {"hf-ext", method.name} <= set(card.data.tags)
    assert "trl" not in card.data.tags
    assert str(tmp_path) not in card.content, "the card names a place on this machine"


@every_classifier
def test_training_saving_and_resuming_load_no_pickle_and_no_code_of_a_model(
    method: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training_loads_no_pickle_and_no_code(method, tmp_path, monkeypatch)
