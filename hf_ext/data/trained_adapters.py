"""Is the model without its adapters the model in hand? Not once they are trained, or where they begin otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_ext._upstream.adapters import model_as_before
from hf_ext.data.provenance import MERGED, adapters_off, is_peft, unwrapped
from hf_ext.guards.finite import readable_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_SHARE = 1e-3  # of the largest logit: DoRA and the like are neutral at first up to rounding
ROUNDINGS = 4  # of the logits' own precision, where that is coarser: DoRA in bfloat16
LORA_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
NOISE = 1e-4  # of a product whose factors are orthogonal: init_lora_weights="orthogonal"


@torch.no_grad()
def require_untouched_adapters(
    model: PreTrainedModel, autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext
) -> None:
    """
    Refuse a model that is another one when its adapters are off: "the original" would not be the model being tuned.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model before the first step, whole on this process. One without adapters passes, and so does prompt
            learning.
        autocast (`Callable`, *optional*):
            The context of the training forward.

    Raises:
        ValueError: if an adapter is trained or merged, or its initialiser rewrites the base weights.
    """
    model = unwrapped(model)
    name = next(_trained_modules(model), None)
    if name is not None:
        raise ValueError(_refusal(f"The adapter of {name!r} is not as it was made"))
    if not is_peft(model, "PeftModel") or model.active_peft_config.is_prompt_learning:
        return  # virtual tokens leave the base as it is, though they change the logits from the start
    adapted, base = _logits_of_a_few_tokens(model, autocast)
    difference = float((adapted.float() - base.float()).abs().max())
    share = max(LARGEST_SHARE, ROUNDINGS * torch.finfo(base.dtype).eps)
    if difference > share * float(base.abs().max()):
        raise ValueError(_refusal(f"Switching the adapter off changes the logits by {difference:.2g}"))


def _refusal(finding: str) -> str:
    return (
        f"{finding} before the first step, so the base model is not the original one: the adapter is trained already, "
        "or its initialiser (PiSSA, OLoRA, LoftQ, CorDA...) rewrites the base weights. To build on a trained adapter, "
        "merge it first (merge_and_unload) and train a new one; to start before it, unload() it; a new one has "
        "init_lora_weights=True."
    )


def _logits_of_a_few_tokens(
    model: PreTrainedModel, autocast: Callable[[], AbstractContextManager]
) -> tuple[Tensor, Tensor]:
    """With adapters and without, in the precision of training."""
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    with model_as_before(model), autocast():
        model.eval()
        adapted = model(input_ids=ids, use_cache=False).logits
        with adapters_off(model):
            base = model(input_ids=ids, use_cache=False).logits
    return adapted, base


def _trained_modules(model: nn.Module) -> Iterator[str]:
    """Names of modules whose active adapter changes something, by its own parameters: a small change counts too."""
    for name, module in model.named_modules():
        if is_peft(module, "AuxiliaryTrainingWrapper"):
            saved_modules = getattr(module, "modules_to_save", {})
            pairs = [
                pair
                for adapter in module.active_adapters
                if adapter in saved_modules
                for pair in zip(saved_modules[adapter].parameters(), module.original_module.parameters(), strict=True)
            ]
        elif is_peft(module, "BaseTunerLayer"):
            if module.merged:
                raise ValueError(MERGED)
            if any(_changes_weights(module, adapter) for adapter in module.active_adapters):
                yield name
            tokens, originals = (getattr(module, f"trainable_tokens_{part}", {}) for part in ("delta", "original"))
            pairs = [(tokens[adapter], originals[adapter]) for adapter in module.active_adapters if adapter in tokens]
        else:
            continue
        if any(_differ(first, second) for first, second in pairs):
            yield name


def _differ(first: Tensor, second: Tensor) -> bool:
    values = readable_part(first)
    other_values = readable_part(second)
    return values is not None and other_values is not None and not torch.equal(values, other_values.to(values))


def _changes_weights(layer: Any, adapter: str) -> bool:
    """Whether the product of a LoRA layer's two matrices is not zero; AdaLoRA has a diagonal between them."""
    scales = _matrix(getattr(layer, "lora_E", {}), adapter)
    for names in LORA_PAIRS:
        down, up = (_matrix(getattr(layer, name, {}), adapter) for name in names)
        if down is None or up is None or not (bool(down.any()) and bool(up.any())):
            continue
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(down.shape[1], generator=generator).to(down.device)
        inner = down.float() @ probe
        inner = inner if scales is None else scales.float().flatten() * inner
        noise = max(NOISE, ROUNDINGS * torch.finfo(up.dtype).eps)
        up = up.float()
        inner = inner.float()
        if float((up @ inner).norm()) > noise * float(up.norm() * inner.norm()):
            return True
    return False


def _matrix(parts: Mapping[str, Any], adapter: str) -> Tensor | None:
    if adapter not in parts:
        return None
    values = readable_part(getattr(parts[adapter], "weight", parts[adapter]))
    return None if values is None or not values.numel() else values.flatten(1)
