"""PEFT's adapters: what a model looks like before they are switched off, and again afterwards; copies of models.

Imports neither PEFT nor transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)

TOUCHED = (
    ("peft.tuners.tuners_utils.BaseTunerLayer", "_disable_adapters", "an adapter that was off could be on afterwards"),
    ("peft.tuners.tuners_utils.BaseTunerLayer", "_active_adapter", "another adapter could be active afterwards"),
    ("peft.utils.other.AuxiliaryTrainingWrapper", "_disable_adapters", "a saved module could be left off"),
    ("peft.utils.other.AuxiliaryTrainingWrapper", "_active_adapter", "another saved module could be active"),
    ("peft.PeftModel", "_adapters_disabled", "virtual tokens could be left off"),
    ("accelerate.Accelerator", "_original_forward", "a copy could keep another model's forward under it"),
)

# What a module keeps of its own: the mode, PEFT's switches, and the methods that PEFT replaces in a `PeftModel` while
# its virtual tokens are off. After `disable_adapter` PEFT (0.21) switches every adapter on and unfreezes all of the
# active one, and leaves those methods behind.
SWITCHES = ("training", "active_adapter", "_active_adapter", "_disable_adapters", "_adapters_disabled")
REPLACED_METHODS = ("forward", "prepare_inputs_for_generation")


@contextmanager
def model_as_before(model: nn.Module) -> Iterator[None]:
    """
    A context after which a model is as it was, whatever was switched in it: also where an error is raised inside.

    Covered are the mode of every module, the `requires_grad` of every parameter, which adapters are active and on, and
    the forward. Not covered are values of parameters.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    attributes = [(vars(module), _attributes_of(module)) for module in model.modules()]
    try:
        yield
    finally:
        for variables, values in attributes:
            for name in (*SWITCHES, *REPLACED_METHODS):
                if name in values:
                    variables[name] = values[name]
                else:
                    variables.pop(name, None)
        for parameter, flag in trainable:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def copy_of_model(model: ModelT) -> ModelT:
    """
    A deep copy whose forward is its own.

    TRL's trainers (1.16) and accelerate (1.15) put a function in the place of a model's `forward` that calls the very
    model it was made for: a plain deep copy would run the old weights.
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        for name in (*REPLACED_METHODS, "_original_forward"):
            vars(module).pop(name, None)
    return copied


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    values = {name: vars(module)[name] for name in (*SWITCHES, *REPLACED_METHODS) if name in vars(module)}
    return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}


__all__ = ["TOUCHED", "copy_of_model", "model_as_before"]
