"""No broken step: a gradient that is not finite never reaches the optimiser, a model that is not is never saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hf_ext import ForwardCorrectedTrainer
from hf_ext.guards.checkpoints import checkpoints_in, find_damage
from hf_ext.guards.finite import NonFiniteError
from tests.conformance.registry import BY_NAME, WITH_GRADIENT
from tests.distributed.run_trainer import NanGradient
from tests.trainers.classifiers import CHANNEL, CLASSES, WORDS, consensus_config, labelled_rows
from tests.trainers.runs import Snapshot

every_method = pytest.mark.parametrize("method", WITH_GRADIENT.values(), ids=WITH_GRADIENT)
SFT = BY_NAME["weighted_sft"]
LAST = 3  # the step that is broken, of four: nothing after it would tell
ORDER = {"train_sampling_strategy": "sequential", "save_strategy": "no", "max_steps": LAST + 1}


def stopped(trainer: Any, callback: TrainerCallback, step: int = LAST) -> NonFiniteError:
    """Train until the error comes: no parameter has moved in that step, bit for bit, and nothing is saved."""
    snapshot = Snapshot()
    trainer.add_callback(snapshot)
    trainer.add_callback(callback)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, snapshot.weights[name]), f"{name} moved in the stopped step"
    assert caught.value.name == "gradient"
    assert caught.value.step == trainer.state.global_step == step
    assert f"at step {step} on rank 0" in str(caught.value)
    assert "The optimiser step was not taken." in str(caught.value)
    assert not list(Path(trainer.args.output_dir).glob("**/*model*.safetensors"))
    return caught.value


@every_method
def test_a_nan_gradient_stops_before_the_last_step_and_names_parameter_and_rows(method: Any, tmp_path: Path) -> None:
    rows = method.rows(24)
    if method.name == "consensus":  # the trainer of classifiers takes a user's own numbering
        rows = rows.add_column("__hf_ext_row__", list(range(24)))
    trainer = method.build(tmp_path, rows, **ORDER)
    step, step_rows = trainer.training_step, []

    def recorded(model: Any, inputs: dict[str, Any], *args: Any) -> Any:
        step_rows.append({row for row in inputs["__hf_ext_row__"].flatten().tolist() if row >= 0})
        return step(model, inputs, *args)

    trainer.training_step = recorded
    error = stopped(trainer, NanGradient(LAST))
    first = next(name for name, _ in trainer.model.named_parameters())
    assert f"first in parameter '{first}'" in str(error)
    assert len(step_rows[LAST]) == 4
    assert error.row_indices == sorted(step_rows[LAST])


CHANGES: dict[str, dict[str, Any]] = {
    "without clipping": {"max_grad_norm": 0.0},
    "with accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "fused AdamW": {"optim": "adamw_torch_fused"},
    "Adafactor": {"optim": "adafactor"},
    "an adapter": {"kwargs": {"peft_config": SFT.adapter()}},
    "without the host's filter": {"logging_nan_inf_filter": False},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_nan_gradient_stops_whatever_the_optimiser_and_the_clipping(what: str, tmp_path: Path) -> None:
    trainer = SFT.build(tmp_path, SFT.plain(24), **(ORDER | CHANGES[what]))
    error = stopped(trainer, NanGradient(LAST))
    assert error.row_indices == [12, 13, 14, 15], "every micro-batch of the step, and no other"


def test_a_gradient_too_large_to_be_squared_stops_though_each_of_its_values_is_finite(tmp_path: Path) -> None:
    """1e30 squared is beyond float32: clipped by that norm the gradient would be zero, and the step lost."""
    trainer = SFT.build(tmp_path, SFT.plain(24).add_column("weight", [1e30] * 24), normalize="tokens", **ORDER)
    error = stopped(trainer, TrainerCallback(), step=0)
    assert "no single value of it is to blame" in str(error)


def test_float16_leaves_an_overflown_step_out_and_stops_when_there_is_nothing_left_to_halve(tmp_path: Path) -> None:
    def train(steps: int) -> tuple[Any, bool]:
        trainer = SFT.build(tmp_path, SFT.plain(24), **(ORDER | {"max_steps": 6}))
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        trainer.add_callback(NanGradient(1, steps))
        try:
            trainer.train()
        except NonFiniteError as error:
            return trainer, error.name == "gradient"
        return trainer, False

    trainer, is_stopped = train(1)
    assert (is_stopped, trainer.accelerator.scaler.get_scale()) == (False, 2.0)
    trainer, is_stopped = train(6)
    assert (is_stopped, trainer.state.global_step) == (True, 3), "scales 4 and 2 are halved; at 1 it is the gradient"
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


# --- a model that is not finite --------------------------------------------------------------------------------------


class BreakParameter(TrainerCallback):
    """A parameter becomes infinite in a step, as by a learning rate that is far too high."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                dict(model.named_parameters())[self.name].view(-1)[-1] = math.inf


@every_method
def test_a_model_broken_in_its_last_step_is_not_the_result(method: Any, tmp_path: Path) -> None:
    trainer = method.build(tmp_path, 24, **ORDER)
    name = [name for name, _ in trainer.model.named_parameters()][-1]
    trainer.add_callback(BreakParameter(LAST + 1, name))
    with pytest.raises(NonFiniteError, match=f"parameter '{name}'.*after step 4 on rank 0") as caught:
        trainer.train()
    assert caught.value.name == "parameter"
    with pytest.raises(NonFiniteError, match=r"neither saved nor pushed\. No checkpoint is whole"):
        trainer.save_model()
    assert not list(Path(trainer.args.output_dir).glob("**/*model*.safetensors"))


def test_a_broken_model_leaves_the_checkpoint_and_the_model_before_it_as_they_were(tmp_path: Path) -> None:
    changes = ORDER | {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer = SFT.build(tmp_path, 24, **changes)
    trainer.save_model()
    saved = (tmp_path / "out" / "model.safetensors").read_bytes()
    trainer.add_callback(BreakParameter(4, "model.norm.weight"))
    with pytest.raises(NonFiniteError, match="checkpoint-2 is whole: resume from it, with a lower learning rate"):
        trainer.train()
    (checkpoint,) = checkpoints_in(tmp_path / "out")
    assert (checkpoint.name, find_damage(checkpoint)) == ("checkpoint-2", None)
    for publish in (trainer.save_model, trainer.push_to_hub):
        with pytest.raises(NonFiniteError):
            publish()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == saved


def test_the_best_model_is_the_result_though_the_last_one_broke(tmp_path: Path) -> None:
    changes = ORDER | {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 5,
        "load_best_model_at_end": True,
    }  # fmt: skip
    trainer = SFT.build(tmp_path, 24, kwargs={"eval_dataset": SFT.rows(8)}, **changes)

    class BreakAtTheEnd(BreakParameter):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pass

    trainer.add_callback(BreakAtTheEnd(5, "model.norm.weight"))
    trainer.train()
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


class WithStatistics(nn.Module):
    """A plain module with batch normalisation, of vectors that are `scale` times as long as is usual."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.words = nn.Embedding(WORDS + 1, 8)
        self.normalise = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)
        self.mask = nn.Parameter(torch.full((2, 2), -math.inf), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.normalise(self.scale * self.words(input_ids).mean(dim=1)))}


def train_with_statistics(scale: float, folder: Path) -> Any:
    rows = labelled_rows(16).select_columns(["input_ids", "label"]).rename_column("label", "labels")
    args = consensus_config(folder, max_steps=2)
    return ForwardCorrectedTrainer(model=WithStatistics(scale), args=args, train_dataset=rows, channel=CHANNEL)


def test_a_variance_that_overflows_is_not_saved_though_every_parameter_is_finite(tmp_path: Path) -> None:
    """Divided by an infinite variance all rows are alike in evaluation; training sees those of the batch alone."""
    trainer = train_with_statistics(1e25, tmp_path)
    with pytest.raises(NonFiniteError, match=r"'normalise\.running_var' has 8 of 8 values not finite.*after step 2"):
        trainer.train()
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters() if value.requires_grad)
    with pytest.raises(NonFiniteError, match="neither saved nor pushed"):
        trainer.save_model()
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_statistics_that_a_stopped_step_broke_are_not_saved(tmp_path: Path) -> None:
    trainer = train_with_statistics(math.nan, tmp_path)
    with pytest.raises(NonFiniteError, match="logits"):
        trainer.train()
    with pytest.raises(NonFiniteError, match=r"normalise\.running_"):
        trainer.save_model()
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_plain_module_with_a_mask_of_infinities_is_trained_and_saved(tmp_path: Path) -> None:
    trainer = train_with_statistics(1.0, tmp_path)
    trainer.train()
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved.pop("mask"), torch.full((2, 2), -math.inf))
    assert all(torch.isfinite(value).all() for value in saved.values())


# --- a step that moves nothing ---------------------------------------------------------------------------------------

ZERO, STILL = "is zero: its rows teach nothing", "Training has moved no parameter in 4 steps"


def test_a_step_of_weights_zero_is_said_once_and_moves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = Snapshot()
    trainer = SFT.build(tmp_path, SFT.plain(16).add_column("weight", [1.0] * 4 + [0.0] * 8 + [1.0] * 4), **ORDER)
    trainer.add_callback(snapshot)
    seen: list[bool] = []

    class Compare(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            now = dict(model.named_parameters())
            seen.append(any(not torch.equal(value, now[name]) for name, value in snapshot.weights.items()))

    trainer.add_callback(Compare())
    trainer.train()
    assert seen == [True, False, False, True]
    assert [record.message.count(ZERO) for record in caplog.records].count(1) == 1
    assert f"The gradient of step 2 {ZERO}" in caplog.text
    assert STILL not in caplog.text


def test_a_stream_of_weights_that_vanish_says_that_nothing_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stream the weights are not known beforehand."""
    rows = SFT.plain(16).add_column("weight", [1e-46] * 16).to_iterable_dataset()
    SFT.build(tmp_path, rows, max_steps=4).train()
    assert ZERO in caplog.text
    assert STILL in caplog.text


@every_method
def test_a_learning_rate_of_zero_says_that_nothing_moved_and_any_other_does_not(
    method: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method.build(tmp_path / "still", 24, learning_rate=0.0).train()
    assert STILL in caplog.text
    caplog.clear()
    method.build(tmp_path / "moving", 24).train()
    assert "moved no parameter" not in caplog.text
    assert ZERO not in caplog.text


def test_a_classifier_whose_weights_all_vanish_is_refused(tmp_path: Path) -> None:
    method = BY_NAME["consensus"]
    for weight in (0.0, 1e-46):
        with pytest.raises(ValueError, match="nothing would be learned"):
            method.build(tmp_path, method.rows(8).add_column("weight", [weight] * 8))
