"""What may run code while a model or a checkpoint is loaded, and how a test refuses it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.runs import train

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt")  # how the names of pickles end


def refuse_pickles_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on in this test a pickle that is loaded, or code that came with a model, is an error."""

    def refuse(*args: Any, **kw: Any) -> Any:
        raise AssertionError("a pickle was loaded, or code that came with a model")

    load = torch.load

    def safe_load(*args: Any, **kw: Any) -> Any:
        assert kw.get("weights_only") is not False, "torch.load may run code"
        return load(*args, **kw)

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", safe_load)
    for name in ("get_class_in_module", "get_cached_module_file", "get_class_from_dynamic_module"):
        monkeypatch.setattr(f"transformers.dynamic_module_utils.{name}", refuse)


def check_training_loads_no_pickle_and_no_code(method: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a classifier or retriever of the registry and resume from half-way: nothing refused, the same losses."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    kwargs = {"kwargs": {"eval_dataset": method.rows(4)}}
    refuse_pickles_and_code(monkeypatch)
    losses = train(method.build(folder, 16, **settings, **kwargs))
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        assert not (checkpoint / "training_args.bin").exists()
        assert (checkpoint / "README.md").is_file()
    resumed = method.build(folder, 16, **settings, **kwargs)
    assert train(resumed, resume_from_checkpoint=str(folder / "out" / "checkpoint-2")) == losses[2:]
