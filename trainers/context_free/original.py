"""The original model beside the one that is trained: what it says of the next token on context-free rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.divergence import (
    chosen_log_probs,
    chunked_kl,
    head_error,
    last_hidden_states,
    output_head,
    top_k_log_probs,
)
from hf_ext.data.original_states import OriginalStates
from hf_ext.data.provenance import as_original, is_peft, original_model, original_parameters
from hf_ext.losses.top_k_kl import top_k_kl

LARGEST_SHARE = 1e-3  # of the largest logit: what a head and a model's own forward may differ by
ROUNDINGS = 4  # of the logits' own precision, where that is coarser

Batch = dict[str, Any]


def predicting(batch: Batch) -> Tensor:
    """Positions `(batch, seq_len)` whose next token is supervised."""
    positions = torch.zeros_like(batch["labels"], dtype=torch.bool)
    positions[:, :-1] = batch["labels"][:, 1:] != -100
    return positions


def model_inputs(batch: Batch) -> Batch:
    """What of a batch of context-free rows is for a model."""
    return {name: values for name, values in batch.items() if name not in NOT_FOR_MODEL}


NOT_FOR_MODEL = ("weight", ROW_INDEX, "num_items", "sampled_logps", "rows")


class OriginalModel:
    """
    The original model, and the divergence of the trained one from it on batches of context-free rows.

    It is the trained model with its adapters off, or, where none are trained, a frozen copy made here. With states on
    disk its forward is not needed any more, and of a copy the head alone is held. Under FSDP2 the copy is in parts,
    its head whole on every process.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model before the first step, on its device.
        autocast (`Callable`):
            The context of the training forward.
        top_k (`int`, *optional*):
            Compare the original's likeliest tokens alone, and all others as one; without it the whole vocabulary.
        states ([`OriginalStates`], *optional*):
            What was computed before, or is to be computed by [`fill`].
        shard (`Callable`, *optional*):
            Cuts a model into parts over the processes, in place; where it is given, the host will do so with `model`.
        device (`torch.device`, *optional*):
            Where a sharded model computes; the whole one may wait elsewhere.

    Raises:
        ValueError: if the model's base parameters are trained beside adapters, `top_k` is more than the vocabulary, or
            the model changes its logits in a way that its output head does not tell.
    """

    def __init__(
        self,
        model: Any,
        autocast: Callable[[], AbstractContextManager],
        top_k: int | None = None,
        states: OriginalStates | None = None,
        shard: Callable[[Any], Any] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self.is_sharded = shard is not None
        self.autocast = autocast
        self.top_k = top_k
        self.states = states
        has_adapters = is_peft(model, "PeftModel")
        if has_adapters:
            _refuse_trained_base(model)
        with as_original(model):
            _check_head(model, autocast)
            self.head = output_head(model)
        vocabulary = len(self.head.weight)
        if top_k is not None and top_k > vocabulary:
            raise ValueError(f"kl_top_k={top_k} is more than the {vocabulary:,} tokens of the vocabulary: lower it.")
        self.frozen: Any = None
        if shard is not None:
            self.head = self.head.copy(device)
        elif not has_adapters and states is not None and top_k is None:
            self.head = self.head.copy()
        if not has_adapters and states is None:
            self.frozen = _frozen_copy(model)
            if shard is None:
                self.head = output_head(self.frozen)
            else:
                self.frozen = shard(self.frozen.base_model)  # what is called must be what was cut

    def divergence(self, new_hidden: Tensor, batch: Batch) -> Tensor:
        """
        KL(original || new) at each position of a batch that predicts a supervised token.

        Args:
            new_hidden (`torch.Tensor` of shape `(batch, seq_len, hidden_size)`):
                Last hidden states of the trained model, with their gradient; those of virtual tokens may come before.
            batch (`dict`):
                The batch, on the device.

        Returns:
            `torch.Tensor` of shape `(tokens,)`: nats, in the order of the positions.
        """
        positions = predicting(batch)
        hidden = new_hidden[:, -positions.shape[1] :][positions.to(new_hidden.device)]
        said = self._read(batch, positions) if self.states is not None else self._say(self._hidden(batch)[positions])
        said = {name: values.to(hidden.device) for name, values in said.items()}
        with self.autocast():
            head = output_head(self.model)
            if self.top_k is None:
                return chunked_kl(said["hidden"], self.head, hidden, head)
            return top_k_kl(said["log_probs"], chosen_log_probs(hidden, head, said["ids"].long()))

    def fill(self, shards: list[int], collate: Callable[[list[int]], Batch], batch_size: int, silent: bool) -> None:
        """
        Compute shards of states and write them.

        Args:
            shards (`list[int]`):
                Their numbers.
            collate (`Callable`):
                Gives the batch of some rows, on the device.
            batch_size (`int`):
                Rows a forward.
            silent (`bool`):
                Whether to show no progress.
        """
        assert self.states is not None
        for shard in tqdm(shards, desc="States of the original model", unit="shard", disable=silent):
            rows = self.states.shards[shard]
            parts = []
            for start in range(0, len(rows), batch_size):
                batch = collate(list(rows[start : start + batch_size]))
                said = self._say(self._hidden(batch)[batch[ROW_INDEX] >= 0])
                parts.append({name: values.cpu() for name, values in said.items()})
            self.states.write(shard, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @torch.no_grad()
    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `(batch, seq_len, hidden_size)` of the original model."""
        inputs = {name: values for name, values in model_inputs(batch).items() if name != "labels"}
        if self.frozen is not None:
            base = self.frozen if self.is_sharded else self.frozen.base_model
            with self.autocast():
                return base(**inputs, use_cache=False).last_hidden_state
        if self.is_sharded:
            return self._hidden_of_parts(inputs)
        with as_original(self.model), self.autocast():
            return original_model(self.model).base_model(**inputs, use_cache=False).last_hidden_state

    def _hidden_of_parts(self, inputs: Batch) -> Tensor:
        """The same of a sharded model with adapters: FSDP gathers parameters in a call of the whole model alone."""
        # No label is one: the fused head then has nothing to compute.
        labels = torch.full_like(inputs["input_ids"], -100)
        with last_hidden_states(self.model) as states, as_original(self.model), self.autocast():
            self.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
        return states[-1]

    def _say(self, hidden: Tensor) -> dict[str, Tensor]:
        """What is compared, by name, a line a position."""
        if self.top_k is None:
            return {"hidden": hidden}
        with self.autocast():
            ids, log_probs = top_k_log_probs(hidden, self.head, self.top_k)
        return {"ids": ids.int(), "log_probs": log_probs}

    def _read(self, batch: Batch, positions: Tensor) -> dict[str, Tensor]:
        assert self.states is not None
        chosen = positions[batch[ROW_INDEX] >= 0].cpu()  # the tokens of the rows, one row after the other
        return {name: values[chosen] for name, values in self.states.read(batch["rows"]).items()}


def _check_head(model: Any, autocast: Callable[[], AbstractContextManager]) -> None:
    with autocast():
        error = head_error(model)
    precision = model.get_output_embeddings().weight.dtype
    if error > max(LARGEST_SHARE, ROUNDINGS * torch.finfo(precision).eps):
        raise ValueError(
            f"{type(original_model(model)).__name__} changes its logits after the output head in a way that "
            "kl='exact' and 'topk' do not know (they know scales and soft caps by the names in its configuration). "
            "Use kl='sampled'."
        )


def _refuse_trained_base(model: Any) -> None:
    name = next((name for name, value in original_parameters(model) if value.requires_grad), None)
    if name is not None:
        raise ValueError(
            f"The base model's own parameter {name!r} is trained beside the adapter (bias='all', or unfrozen by "
            "hand), so without the adapter it is not the original model. Freeze it, train a copy of its module "
            "(modules_to_save), or use kl='sampled'."
        )


def _frozen_copy(model: Any) -> Any:
    frozen = copy.deepcopy(model)
    vars(frozen).pop("forward", None)  # TRL's fused head, bound to the copy: a cycle
    return frozen.eval().requires_grad_(False)


__all__ = ["Batch", "OriginalModel", "model_inputs", "predicting"]
