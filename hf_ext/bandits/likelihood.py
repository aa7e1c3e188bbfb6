"""The loss of single rows under each of several checkpoints, for choosing between them. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ext.evaluation.forgetting import RowLosses
from hf_ext.evaluation.models import Model, free_memory
from hf_ext.evaluation.rows import Rows
from hf_ext.guards.models import loading_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CheckpointLosses", "ModelLosses", "load_candidate"]


def load_candidate(name: str, device: str | None = None) -> Model:
    """
    A causal language model, or an adapter on its base model, from a folder or the Hub.

    Raises:
        ValueError: if it cannot be loaded, or the device cannot be used.
    """
    from transformers import AutoModelForCausalLM

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        target_device = torch.device(device) if device is not None else accelerator or torch.device("cpu")
        torch.empty(0, device=target_device)  # the only way to learn that a device is there and usable
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    with loading_model(name):
        return AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False).to(target_device)


class ModelLosses:
    """
    Called with a model and positions of rows: the negative log-likelihood of each row's supervised tokens, in nats.

    It is divided by the mean number of supervised tokens of a row of the pool, so that the mean over the pool is the
    loss a token, as an evaluation in training gives it: a long row counts for more than a short one.

    Args:
        rows ([`~hf_ext.evaluation.rows.Rows`]):
            The pool.
        tokenizer (`PreTrainedTokenizerBase`):
            For padding.
        batch_size (`int`):
            Rows a forward.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.rows = rows
        self.mean_num_tokens = float(rows.num_tokens.mean())
        self.measure = RowLosses(batch_size, autocast_dtype, False, tokenizer.pad_token_id or 0)

    def __call__(self, model: Model, indices: Sequence[int]) -> NDArray[np.float64]:
        """Nats, shape `(rows,)`; not finite where the model's logits are not."""
        columns = (self.rows.ids, self.rows.labels, self.rows.index)
        chosen_rows = Rows(*([column[index] for index in indices] for column in columns))  # type: ignore[arg-type]
        return self.measure.any_nll(model, chosen_rows, "rows") / self.mean_num_tokens


class CheckpointLosses:
    """
    Called with the name of a checkpoint and positions of rows: [`ModelLosses`] of them, under a model that is loaded
    where it is not the one of the call before.

    Args:
        losses ([`ModelLosses`]):
            Of any model.
        loaded_model (model), loaded_name (`str`):
            A candidate that is loaded already.
        device (`str`, *optional*):
            Where models run.
    """

    def __init__(self, losses: ModelLosses, loaded_model: Model, loaded_name: str, device: str | None) -> None:
        self.losses = losses
        self.model: Any = loaded_model
        self.name = loaded_name
        self.device = device

    def __call__(self, name: str, indices: Sequence[int]) -> NDArray[np.float64]:
        """Nats, shape `(rows,)`."""
        if name != self.name:
            self.model = None  # one at a time
            free_memory()
            self.model = load_candidate(name, self.device)
            self.name = name
        return self.losses(self.model, indices)
