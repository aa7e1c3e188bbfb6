"""What may run code while a model or a checkpoint is loaded, and how a test refuses it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch


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
