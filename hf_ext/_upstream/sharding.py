"""Parameters in parts (FSDP2): cut a model before the host does, and make one parameter whole again."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial
from torch.nn import Module
from transformers import Trainer

from hf_ext._upstream.adapters import model_as_before

TOUCHED = (
    (
        "accelerate.utils.fsdp_utils",
        "fsdp2_prepare_model",
        "a model could be sharded only with an optimizer, so after the rows are scored",
    ),
)


def is_fsdp2(trainer: Trainer) -> bool:
    """Whether the trainer shards its model with FSDP2 (`fsdp_version: 2`)."""
    return bool(trainer.is_fsdp_enabled) and trainer.accelerator.is_fsdp2


@torch.no_grad()
def shard(trainer: Trainer, model: Any) -> Any:
    """
    Cut a model into parts over the processes, as the host would at the beginning of its training.

    The host takes a model that is cut already as it is (accelerate 1.15).

    Args:
        trainer (`Trainer`):
            Under FSDP2.
        model (`PreTrainedModel` or `PeftModel`):
            The same whole one on every process. It is changed in place.

    Returns:
        `PreTrainedModel` or `PeftModel`: the model.
    """
    model = fsdp2_prepare_model(trainer.accelerator, model)
    # The first forward settles which of the gathered parameters have a gradient (torch 2.13). PEFT takes it off the
    # adapters while they are switched off, so the first one is with them on.
    ids = torch.zeros(1, 1, dtype=torch.int64, device=trainer.accelerator.device)
    with model_as_before(model), trainer.accelerator.autocast():
        model.eval()  # no random number is drawn
        model(input_ids=ids, use_cache=False)
    reshard(model)
    return model


def reshard(model: Module) -> None:
    """
    Put away what forwards without a backward have left gathered of a sharded model: nothing of any other model.

    Until then some of its parameters are not those that an optimizer or a checkpoint must hold.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Tensor) -> Tensor:
    """
    A parameter as one tensor, gathered where each process holds a part of it; every process must ask.

    Its gradient is the processes' mean, which is what FSDP makes of those that come from inside the model.
    """
    if not isinstance(value, DTensor):
        return value
    num_parts = value.device_mesh.size()
    gathered: Tensor = value.full_tensor(grad_placements=[Partial()])
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient / num_parts)
    return gathered


__all__ = ["TOUCHED", "is_fsdp2", "reshard", "shard", "whole"]
