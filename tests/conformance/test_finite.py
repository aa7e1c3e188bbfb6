"""Whichever trainer and whichever tensor: a NaN stops the run before the optimiser step, and names step and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_ext.guards.finite import NonFiniteError
from tests.conformance.registry import TRAINERS, Method
from tests.trainers.runs import Snapshot

every_trainer = pytest.mark.parametrize("method", TRAINERS, ids=lambda method: method.name)
STEP = 3


def stopped(trainer: Any, broken: str = "") -> NonFiniteError:
    """Train until the error comes; parameters but the `broken` one are those from before the step, bit for bit."""
    snapshot = Snapshot()
    trainer.add_callback(snapshot)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    for name, value in trainer.model.named_parameters():
        assert name == broken or torch.equal(value, snapshot.weights[name]), f"{name} moved in the stopped step"
    assert caught.value.step == trainer.state.global_step == STEP
    assert f"at step {STEP} on rank 0" in str(caught.value)
    return caught.value


@every_trainer
def test_one_log_probability_names_its_row(method: Method, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 24, max_steps=6)
    forward, spoilt = trainer.model.forward, []

    def spoil(*args: Any, **inputs: Any) -> Any:
        outputs = forward(*args, **inputs)
        if trainer.state.global_step == STEP and inputs.get("fused_lm_head") and not spoilt:
            spoilt.append(1)
            outputs.log_probs = outputs.log_probs.clone()
            outputs.log_probs[0, int(outputs.label_mask[0].nonzero()[0])] = float("nan")
        return outputs

    trainer.model.forward = spoil
    error = stopped(trainer)
    assert error.name == "log-probability"
    assert len(error.row_indices) == 1
    assert 0 <= error.row_indices[0] < 24


@every_trainer
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_model_that_broke_names_the_rows_of_the_batch(method: Method, accumulation: int, tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == STEP:
                with torch.no_grad():
                    model.model.norm.weight[0] = torch.inf

    trainer = method.build(
        tmp_path, 24, max_steps=6, train_sampling_strategy="sequential", gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
    )  # fmt: skip
    trainer.add_callback(Break())
    first = 4 * STEP
    error = stopped(trainer, broken="model.norm.weight")
    assert error.row_indices == list(range(first, first + 4 // accumulation))
