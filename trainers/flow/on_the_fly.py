"""FLOW's weights in the step itself: annealed ones, and those of a stream, whose rows are scored as they come."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.fused_head import fused_lm_head, label_log_probs
from hf_ext.data.flow_arithmetic import FlowWeights
from hf_ext.data.provenance import as_original, is_peft, unwrapped
from hf_ext.data.sft_rows import WeightedCollator
from hf_ext.guards.disk import write_whole

FLOW_WEIGHT = "flow_weight"
STATE_NAME = "flow_stream.json"
OUR_COLUMNS = ("weight", ROW_INDEX, "num_items", FLOW_WEIGHT)


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class FlowCollator(WeightedCollator):
    """A batch whose `weight` is plain SFT's, and the rows' weights beside it in `flow_weight`, to be mixed later."""

    extra_columns: tuple[str, ...] = (FLOW_WEIGHT,)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows into a batch."""
        renamed = []
        for row in rows:
            others = {name: value for name, value in row.items() if name != "weight"}
            weight = row.get("weight")
            renamed.append({**others, FLOW_WEIGHT: 1.0 if weight is None else weight})
        return super().__call__(renamed)


def reweigh(batch: dict[str, Any], factor: Tensor, normalize: str) -> None:
    """
    Multiply a batch's weights, and bring its share of the denominator up to date.

    Args:
        batch (`dict`):
            Of [`WeightedCollator`]; it is changed.
        factor (`torch.Tensor` of shape `(batch, seq_len)`):
            Unitless.
        normalize (`str`):
            `"weights"`: the share is their sum; `"tokens"`: it stays.
    """
    batch["weight"] = batch["weight"] * factor
    if normalize == "weights":
        supervised = batch["labels"][:, 1:] != -100
        total = batch["weight"][:, 1:][supervised].cpu().sum(dtype=torch.float64)
        batch["num_items"] = total.to(torch.float32).reshape(1).to(batch["num_items"].device)


def document_numbers(batch: dict[str, Any]) -> Tensor:
    """Number of the document that each position of a batch belongs to, from 0, shape `(batch, seq_len)`."""
    labels = batch["labels"]
    if "attention_mask" in batch:
        return torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    return (batch["position_ids"] == 0).cumsum(-1) - 1  # rows flattened into one, as positions say


# --- a stream --------------------------------------------------------------------------------------------------------


def kept_original(model: Module) -> Module:
    """What scores rows throughout a training: the model itself where adapters can be switched off, else a copy."""
    model = unwrapped(model)
    if is_peft(model, "PeftModel"):
        return model
    # The fused head that TRL puts on a model holds that model's own forward (trl 1.16): the copy gets none of it.
    head = vars(model).pop("forward", None)
    try:
        original = copy.deepcopy(model)
    finally:
        if head is not None:
            model.forward = head
    return original.requires_grad_(False).eval()


@dataclass
class StreamWeights:
    """
    Weights of rows that cannot be scored before training: the original model scores each batch as it comes.

    Args:
        original (`torch.nn.Module`):
            Of [`kept_original`].
        rule ([`FlowWeights`]):
            Frozen before the first step.
        hard_loss (`float`):
            Mean loss, nats per token, from which on a document is of the hardest tenth.
        level (`str`):
            `"row"` or `"token"`.
        facts (`dict`):
            What the rule was found with: a run that goes on under others is refused.
    """

    original: Any
    rule: FlowWeights
    hard_loss: float
    level: str
    facts: dict[str, Any]

    @torch.no_grad()
    def weights(
        self, batch: dict[str, Any], autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext
    ) -> tuple[Tensor, Tensor]:
        """
        Weight of each token of a batch, and the numbers of its hard rows.

        Returns:
            `torch.Tensor` of shape `(batch, seq_len)`, float32, 1 where a token is not supervised; and
            `torch.Tensor` of shape `(rows,)`, from `__hf_ext_row__`.
        """
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name not in OUR_COLUMNS}
        # in this order: PEFT's switch for virtual tokens keeps the forward that it finds (peft 0.21)
        with fused_lm_head(self.original), as_original(self.original), autocast():
            log_probs = label_log_probs(self.original, inputs)
        mask = (labels[:, 1:] != -100).cpu()
        losses = -log_probs[:, -mask.shape[1] :].cpu().double()[mask]
        all_documents = document_numbers(batch).cpu()
        documents = all_documents[:, 1:][mask]
        num_documents = int(all_documents.max()) + 1
        sums = torch.zeros(num_documents, dtype=torch.float64).index_add_(0, documents, losses)
        means = sums / torch.bincount(documents, minlength=num_documents)  # NaN where no token is supervised
        values = losses if self.level == "token" else means[documents]
        weights = torch.ones(labels.shape, dtype=torch.float32)
        weights[:, 1:][mask] = torch.from_numpy(self.rule.of_losses(values.numpy())).float()
        rows = batch[ROW_INDEX].cpu()[:, 1:][mask]
        hard_rows = rows[means[documents] >= self.hard_loss].unique()
        return weights.to(labels.device), hard_rows

    def save(self, checkpoint: str) -> None:
        """Write into a checkpoint's folder what the rest of the run goes on with."""
        values = {"tau": self.rule.tau, "shift": self.rule.shift, "floor": self.rule.floor}
        write_whole(
            Path(checkpoint) / STATE_NAME,
            json.dumps({**values, "hard_loss": self.hard_loss, "facts": self.facts}, indent=1),
        )

    @classmethod
    def load(cls, checkpoint: str, original: Callable[[], Module], level: str, facts: dict[str, Any]) -> StreamWeights:
        """
        Go on with the weights of a checkpoint.

        Args:
            checkpoint (`str`):
                A whole one.
            original (`Callable`):
                Gives the model that scores, once it is known to be the one that the run began with.
            level (`str`), facts (`dict`):
                Of this run.

        Raises:
            ValueError: if the checkpoint holds none, or those of another model or other settings.
        """
        path = Path(checkpoint) / STATE_NAME
        if not path.is_file():
            raise ValueError(
                f"{checkpoint} holds no weights of FLOW on a stream ({STATE_NAME}): it is of another kind of run. "
                "Start again without resume_from_checkpoint."
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in facts.items() if values["facts"].get(name) != value]
        if changed:
            raise ValueError(
                f"Resuming from {checkpoint}, but {', '.join(changed)} differ{'s' * (len(changed) == 1)} from the "
                "first run's: the original model would give other weights. Pass the same model and settings, or start "
                "again without resume_from_checkpoint."
            )
        rule = FlowWeights(values["tau"], values["shift"], values["floor"])
        return cls(original(), rule, values["hard_loss"], level, facts)


def hard_threshold(losses: np.ndarray) -> float:
    """A mean loss that the hardest tenth of documents `(documents,)`, and no other, reaches, in nats per token."""
    ordered = np.sort(losses)
    tenth = max(1, len(losses) // 10)
    # half-way: scored again in another batch, the least of them differs in its last digits
    return float(ordered[-(tenth + 1) :][:2].mean())
