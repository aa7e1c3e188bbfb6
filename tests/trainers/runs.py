"""Short trainings on tiny models: what the trainer tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTConfig

from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def config_of(cls: type[SFTConfig], folder: Path, **changes: Any) -> SFTConfig:
    """A config for a short run in float32 on the CPU: 4 rows a step, SGD, a constant learning rate."""
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "dataset_num_proc": None,
        "seed": 7,
    }
    if "activation_checkpointing" not in cls.__dataclass_fields__:  # its name before transformers 5.23
        fields["gradient_checkpointing"] = fields.pop("activation_checkpointing")
    return cls(**(fields | changes))


def build(trainer_class: Any, args: SFTConfig, train_dataset: Any, *, model: Any = None, **kwargs: Any) -> Any:
    """A trainer of a fresh tiny model (or `model`), with the tiny tokenizer unless another is given."""
    model = tiny_model(TOKENIZER) if model is None else model
    return trainer_class(model, args=args, train_dataset=train_dataset, **{"processing_class": TOKENIZER, **kwargs})


def train(trainer: Any, **kwargs: Any) -> list[float]:
    """Train, and return the exact loss of every optimiser step (the log rounds, and may hide a NaN)."""
    losses: list[float] = []
    step, training_step = [-1], trainer.training_step

    def recorded(*args: Any, **kw: Any) -> Tensor:
        loss = training_step(*args, **kw)
        if trainer.state.global_step != step[0]:
            step[0] = trainer.state.global_step
            losses.append(0.0)
        losses[-1] += float(loss)
        return loss

    trainer.training_step = recorded
    trainer.train(**kwargs)
    return losses


def weights_of(model: Any) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


class Snapshot(TrainerCallback):
    """Keeps the parameters as they were before the optimiser step that is being taken."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights = weights_of(model)


def assert_same_weights(one: Any, other: Any) -> None:
    """Two models have the same parameters, bit for bit."""
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"parameters differ: {different}"


def logged(trainer: Any, name: str) -> list[float]:
    """Every logged value of a metric, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
