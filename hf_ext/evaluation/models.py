"""Models as they are measured: loaded where they are not in memory, in evaluation mode, in their own precision."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from hf_ext._upstream.adapters import model_as_before
from hf_ext.guards.models import loading_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["Model", "check_adapters_off", "free_memory", "loaded", "ready"]

Model: TypeAlias = "PreTrainedModel | PeftModel"


@contextmanager
def ready(model: Model) -> Iterator[None]:
    """Evaluation mode and the model's own forward; everything in the model is restored."""
    with model_as_before(model):
        # A model fresh out of a mixed-precision trainer keeps accelerate's autocast around its forward. Left on, it
        # would be measured in another precision than the original.
        if "_original_forward" in model.__dict__ and "forward" in model.__dict__:
            model.forward = model.__dict__["_original_forward"]
        model.eval()
        yield


def check_adapters_off(model: Model, remedy: str = "Give `original`.") -> None:
    """
    Refuse a model that is not its original again once its adapters are off.

    Raises:
        ValueError: if it is no `PeftModel`, or if its adapters change the base weights; `remedy` ends the message.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        raise ValueError(f"{type(model).__name__} is no PeftModel, so there are no adapters to switch off. {remedy}")
    for config in configs.values():
        start = str(getattr(config, "init_lora_weights", True)).lower()
        if getattr(config, "bias", "none") != "none" or start.startswith(("pissa", "olora", "corda", "loftq")):
            raise ValueError(
                f"The adapter changes the base weights (bias={config.bias!r}, init_lora_weights={start!r}), so "
                f"switching it off does not give the original model back. {remedy}"
            )


def loaded(model: Model | str | Path, like: Model | str | Path) -> Model:
    """A model object as it is; a folder or Hub id loaded to the device of `like`, else the accelerator or the CPU."""
    if not isinstance(model, str | Path):
        return model
    from transformers import AutoModelForCausalLM

    if isinstance(like, str | Path):
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        device = like.get_input_embeddings().weight.device
    with loading_model(model):
        return AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False).to(device)


def free_memory() -> None:
    """Give back what a model that was just dropped held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
