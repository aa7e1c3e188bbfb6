"""A value that is not finite stops the run before the optimiser step, and names step, process and dataset rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_ext.guards.finite import NonFiniteError
from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from hf_ext.trainers.weighted_sft import trainer as trainer_module
from tests.tiny import tiny_prompt_completion_dataset
from tests.trainers.runs import Snapshot, build, config_of

N, BAD_ROW, MARK = 24, 11, 0.777
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "shuffled": {"shuffle_dataset": True},
    "packed": {"packing": True, "max_length": 96, "per_device_train_batch_size": 1},
    "packed_and_shuffled": {
        "packing": True, "shuffle_dataset": True, "max_length": 96, "per_device_train_batch_size": 1,
    },
    "padding_free": {"padding_free": True, "max_length": None},
}  # fmt: skip


def trainer_of(tmp_path: Any, **settings: Any) -> tuple[Any, Snapshot]:
    dataset = tiny_prompt_completion_dataset(N, seed=1)
    dataset = dataset.add_column("weight", [MARK if i == BAD_ROW else 1.0 for i in range(N)])
    snapshot = Snapshot()
    args = config_of(WeightedSFTConfig, tmp_path, **({"max_steps": 40} | settings))
    return build(WeightedSFTTrainer, args, dataset, callbacks=[snapshot]), snapshot


def stop(trainer: Any, snapshot: Snapshot) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, snapshot.weights[name]), f"{name} moved in the step that was stopped"
    error = stopped.value
    assert f"step {trainer.state.global_step}" in str(error)
    assert "rank 0" in str(error)
    assert error.step == trainer.state.global_step
    return error


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_names_its_dataset_row(layout: str, value: float, tmp_path: Any) -> None:
    trainer, snapshot = trainer_of(tmp_path, **LAYOUTS[layout])
    collate = trainer.data_collator

    def spoil(rows: list[dict]) -> dict[str, Any]:
        batch = collate(rows)
        batch["weight"][(batch["weight"] - MARK).abs() < 1e-6] = value  # found by its value, not by our own index
        return batch

    trainer.data_collator = spoil
    error = stop(trainer, snapshot)
    assert error.name == "weight"
    assert error.row_indices == [BAD_ROW]
    assert f"dataset rows: {BAD_ROW}" in str(error)
    for weights in trainer.model.parameters():
        assert torch.isfinite(weights).all()


@pytest.mark.parametrize("layout", ["padded", "packed_and_shuffled"])
def test_a_log_probability_names_the_rows_it_is_of(layout: str, tmp_path: Any) -> None:
    trainer, snapshot = trainer_of(tmp_path, **LAYOUTS[layout])
    forward, marked = trainer.model.forward, []

    def spoilt(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        if inputs.get("fused_lm_head") and trainer.state.global_step == 3:
            position = int(outputs.label_mask[0].nonzero()[0])
            outputs.log_probs = outputs.log_probs.clone()
            outputs.log_probs[0, position] = float("nan")
            marked.append(inputs["input_ids"][0, : position + 2].tolist())
        return outputs

    trainer.model.forward = spoilt
    error = stop(trainer, snapshot)
    assert error.name == "log-probability"
    (row,) = error.row_indices
    # An oracle that knows nothing of row_index: the row's own ids end where the spoilt token stands.
    prepared = trainer_of(tmp_path / "plain")[0].train_dataset
    ids = prepared[row]["input_ids"]
    assert any(ids[:n] == marked[0][-n:] for n in range(3, len(ids) + 1))


def test_a_broken_model_weight_names_the_whole_batch(tmp_path: Any) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight[0] = float("nan")

    trainer, snapshot = trainer_of(tmp_path, train_sampling_strategy="sequential")
    trainer.add_callback(Break())
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    assert stopped.value.row_indices == [8, 9, 10, 11]
    assert stopped.value.step == 2
    for name, value in trainer.model.named_parameters():
        if name != "model.norm.weight":
            assert torch.equal(value, snapshot.weights[name])


def test_a_loss_that_overflows_names_the_rows_of_the_batch(tmp_path: Any) -> None:
    dataset = tiny_prompt_completion_dataset(8).add_column("weight", [1.0] * 4 + [3e38] + [1.0] * 3)
    snapshot = Snapshot()
    args = config_of(
        WeightedSFTConfig, tmp_path, normalize="tokens", train_sampling_strategy="sequential", max_steps=2
    )
    trainer = build(WeightedSFTTrainer, args, dataset, callbacks=[snapshot])
    error = stop(trainer, snapshot)
    assert (error.name, error.step, error.row_indices) == ("loss", 1, [4, 5, 6, 7])


def test_a_nan_loss_stops_under_accumulation_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], trainer_module.weighted_nll

    def spoilt(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(trainer_module, "weighted_nll", spoilt)
    trainer, snapshot = trainer_of(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=2)
    error = stop(trainer, snapshot)
    assert (error.name, error.step, len(error.row_indices)) == ("loss", 1, 2)
