"""The key-value cache by the name that the installed transformers has for it: `past_key_values`, or `cache`."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers.modeling_outputs import CausalLMOutputWithPast

if TYPE_CHECKING:
    from torch import nn

# transformers 5.24 calls it `cache` and takes the former name, with a warning, until 5.40.
NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
FORMER_NAME = "past_key_values"


def cache_of(output: Any) -> Any:
    """The cache in what a model's forward returned; `None` where it returned none."""
    return getattr(output, NAME, None)


def cache_argument(model: nn.Module, value: Any) -> dict[str, Any]:
    """The cache as an argument of a model's forward."""
    model_class: Any = type(model)
    return {_argument_name(model_class): value}


@cache
def _argument_name(model_class: Any) -> str:
    """A class whose code comes from the Hub may know the former name alone."""
    names = signature(model_class.forward).parameters
    return FORMER_NAME if FORMER_NAME in names and NAME not in names else NAME
