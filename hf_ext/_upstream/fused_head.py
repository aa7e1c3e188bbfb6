"""TRL's fused output head: log-probabilities of the labels without the logits; and what PEFT may put around it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module
from transformers import Trainer
from trl.trainer.utils import add_fused_lm_head

TOUCHED = (("trl.trainer.utils", "add_fused_lm_head", "log-probabilities could not be had without logits"),)


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def fused_lm_head(model: Module) -> Iterator[None]:
    """
    Inside, `model(**batch, labels=..., fused_lm_head=True)` returns per-token log-probabilities without logits.

    `model` may be a `PeftModel`: its base model is patched, as TRL does. The forward is as before afterwards.
    """
    base = base_of(model)
    instance_forward = vars(base).get("forward")
    add_fused_lm_head(base)
    try:
        yield
    finally:
        if instance_forward is None:
            del base.forward
        else:
            base.forward = instance_forward


class FusedOutputRecorder:
    """
    Calls the model for the host and keeps the first output that came without logits: one forward serves two losses.

    Args:
        model (`torch.nn.Module`): in [`fused_lm_head`], as every trainer of TRL has it.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        if self.output is None and inputs.get("fused_lm_head"):  # the reference's forward may come second
            self.output = output
        return output


def label_log_probs(model: Module, inputs: dict[str, Tensor]) -> Tensor:
    """
    Log-probability of every label after the first, `(batch, seq_len - 1)`, 0 where it is -100; in [`fused_lm_head`].

    TRL multiplies by the head's weight alone (trl 1.16), so what PEFT put around the head would be left out: such a
    model gives its logits.
    """
    if not has_adapted_head(model):
        return model(**inputs, use_cache=False, fused_lm_head=True).log_probs
    labels = inputs["labels"][:, 1:]
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**without_labels, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(labels == -100, 0)


def has_adapted_head(model: Module, kind: str = "") -> bool:
    """Whether PEFT has put a module around the output head, of a class of this name where one is given."""
    base = base_of(model)
    head = type(base.get_output_embeddings()) if hasattr(base, "get_output_embeddings") else object
    return head.__module__.startswith("peft.") and kind in ("", head.__name__)


def release_with(trainer: Trainer, model: Module) -> None:
    """
    Give `model` its own forward back when `trainer` is dropped.

    The fused head that TRL puts on it is a method, kept in the model itself (trl 1.16): a cycle, so that model and
    gradients stay in memory until the garbage collector comes by.
    """
    function = getattr(vars(model).get("forward"), "__func__", None)
    code: Any = getattr(function, "__code__", None)
    if function is None or "original_forward" not in getattr(code, "co_freevars", ()):
        return
    original = function.__closure__[code.co_freevars.index("original_forward")].cell_contents
    if getattr(original, "__func__", None) is type(model).forward:  # else another trainer's head lies below
        weakref.finalize(trainer, _restore_forward, weakref.ref(model), weakref.ref(function)).atexit = False


def _restore_forward(model: weakref.ref[Any], function: weakref.ref[Any]) -> None:
    alive = model()
    if alive is not None and getattr(vars(alive).get("forward"), "__func__", None) is function():
        del alive.forward
