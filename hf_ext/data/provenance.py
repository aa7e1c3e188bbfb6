"""Hashes that tie rows to the model and tokenizer they came from, and the way back to the original model."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from hf_ext._upstream.adapters import model_as_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGED = "An adapter is merged into the weights. Call unmerge_adapter() on the model first."

# PEFT class -> the module that defines it.
_PEFT_HOMES = {
    "PeftModel": "peft.peft_model",
    "BaseTunerLayer": "peft.tuners.tuners_utils",
    "AuxiliaryTrainingWrapper": "peft.utils.other",
}


def is_peft(module: object, name: str) -> bool:
    """Whether a module is of one of three classes of PEFT, by name."""
    # An object of a PEFT class cannot exist before peft is imported: so peft stays optional and costs no import.
    home = sys.modules.get(_PEFT_HOMES[name])
    return home is not None and isinstance(module, getattr(home, name))


def unwrapped(model: nn.Module) -> Any:
    """What is inside DDP, FSDP and `torch.compile`."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def original_model(model: nn.Module) -> Any:
    """
    Return the module whose weights are the original model's: what is inside DDP, `torch.compile` and PEFT wrappers.

    Adapter layers that PEFT injected are still in it; `adapters_off` silences them.
    """
    inner = unwrapped(model)
    return inner.get_base_model() if is_peft(inner, "PeftModel") else inner


def adapters_off(model: PreTrainedModel) -> AbstractContextManager[None]:
    """
    Return a context in which `model` is the original model: PEFT adapters off, nothing to do for any other model.

    Afterwards everything is as before: what is trainable, every module's mode, which adapters are active and on.

    Raises:
        `ValueError`: adapters were injected without a `PeftModel` around them (`model.add_adapter`), or are merged
            into the weights.
    """
    model = unwrapped(model)
    layers = [module for module in model.modules() if is_peft(module, "BaseTunerLayer")]
    if layers and not is_peft(model, "PeftModel"):
        raise ValueError(
            "The model holds adapter layers but is no PeftModel, so the original model cannot be brought back. "
            "Wrap it with peft.get_peft_model, or load it with peft.PeftModel.from_pretrained."
        )
    # A forward with adapters off would take the merged ones out for good, up to rounding of the weights (peft 0.21).
    if any(layer.merged for layer in layers):
        raise ValueError(MERGED)
    return _without_adapters(model)


@contextmanager
def _without_adapters(model: PreTrainedModel) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(model_as_before(model))
        if is_peft(model, "PeftModel"):
            with warnings.catch_warnings():
                # that all of them will be on afterwards (peft 0.21), which they are not here
                warnings.filterwarnings("ignore", "The model contains some adapter layers that are enabled")
                stack.enter_context(model.disable_adapter())
        yield


@contextmanager
def as_original(model: PreTrainedModel) -> Iterator[None]:
    """
    A context for scoring and sampling: the original model in evaluation mode, everything as before afterwards.

    In evaluation mode dropout and gradient checkpointing are off.
    """
    with adapters_off(model):
        model.eval()
        yield


@contextmanager
def as_adapted(model: PreTrainedModel) -> Iterator[None]:
    """A context for scoring with the adapters that are on: evaluation mode, everything as before afterwards."""
    with model_as_before(model):
        model.eval()
        yield


def _without_adapter(module: Any) -> nn.Module:
    """Return the module an adapter layer was put around; `module` itself if it is no adapter layer."""
    while True:
        if is_peft(module, "BaseTunerLayer"):
            if module.merged:
                raise ValueError(MERGED)
            inner = module.get_base_layer()
        elif is_peft(module, "AuxiliaryTrainingWrapper"):
            inner = module.original_module
        else:
            return module
        if inner is module:
            return module
        module = inner


def _original_parameters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    module = _without_adapter(module)
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        yield from _original_parameters(child, f"{prefix}{name}.")


def original_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of the original model by name, as the model holds them now: those of PEFT adapters are left out."""
    return _original_parameters(original_model(model))


def _bytes_of(name: str, parameter: Tensor) -> memoryview:
    if parameter.is_meta or type(parameter.data) is not Tensor:
        raise ValueError(
            f"The weight {name!r} is not held whole by this process ({type(parameter.data).__name__} on "
            f"{parameter.device}). Compute the hash before the model is sharded or offloaded."
        )
    flat = parameter.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def model_hash(model: nn.Module) -> str:
    """
    Return the SHA-256 of the original model's weights.

    The hash covers name, dtype, shape and bytes of every weight, sorted by name, tied weights once. Buffers and PEFT
    adapters are left out, so a model and a `PeftModel` around it agree as long as the base weights are not trained.
    Device, shard sizes of the checkpoint and wrappers (DDP, `torch.compile`) do not matter; the dtype does.

    Args:
        model (`torch.nn.Module`):
            Model or `PeftModel`, whole on this process. 135 M parameters in float32 take under a second.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        `ValueError`: an adapter is merged into the weights, or a weight is sharded or on the meta device.
    """
    return _hash_of(original_parameters(model))


def weights_hash(model: nn.Module) -> str:
    """
    Return the SHA-256 of a model's weights as they are now, adapters with them.

    Args:
        model (`torch.nn.Module`):
            Model or `PeftModel`, whole on this process, with merged adapters or others; which of them are on counts.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        `ValueError`: a weight is sharded or on the meta device.
    """
    digest = _hash_of(model.named_parameters())
    switches = [
        [name, list(map(str, module.active_adapters)), bool(module.disable_adapters)]
        for name, module in model.named_modules()
        if is_peft(module, "BaseTunerLayer")
    ]
    return digest if not switches else hashlib.sha256(json.dumps([digest, switches]).encode()).hexdigest()


def _hash_of(parameters: Iterator[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    hashed_ids = set()  # tied weights count once
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        if id(parameter) in hashed_ids:
            continue
        hashed_ids.add(id(parameter))
        digest.update(json.dumps([name, str(parameter.dtype), list(parameter.shape)]).encode())
        digest.update(_bytes_of(name, parameter))
    return digest.hexdigest()


def tokenizer_hash(
    tokenizer: PreTrainedTokenizerBase, with_chat_template: bool = True, *, end_token: str | None = None
) -> str:
    """
    Return the SHA-256 of what decides which ids a text becomes: vocabulary, merges, special tokens, chat template.

    The padding token and the padding and truncation state are left out: calling a tokenizer and `SFTTrainer` change
    them, and no token of a row depends on them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            With a `tokenizers` backend everything in it counts; without one, class, vocabulary and added tokens.
        with_chat_template (`bool`, *optional*, defaults to `True`):
            Whether the chat template counts. Rows made without a template do not depend on it.
        end_token (`str`, *optional*):
            The hash as it would be with this one of its tokens as end token.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model: dict[str, Any] = json.loads(backend.to_str())
        model.pop("padding", None)
        model.pop("truncation", None)
    else:
        model = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    if end_token is not None:
        special["eos_token"] = end_token
    content = {"model": model, "special": special}
    if with_chat_template:
        content["chat_template"] = tokenizer.chat_template
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
