"""Hooks of the preference trainers: pairs on `DPOTrainer`, single labelled responses on `KTOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.adapters import model_as_before
from hf_ext._upstream.fused_head import FusedOutputRecorder
from hf_ext._upstream.rows import AnyDataset, expecting_a_row, tokenise_only, unformatted
from hf_ext._upstream.trl_trainer import TRLTrainerHooks

TOUCHED = (
    ("trl.DPOTrainer", "_compute_loss", "a preference loss of ours could not be added to the host's"),
    ("trl.DPOTrainer", "_prepare_dataset", "preference rows would not be checked"),
    ("trl.DPOTrainer", "_tokenizer", "preference rows could not be tokenised without a trainer"),
    ("trl.DPOTrainer", "_precompute_ref_logps", "reference log-probabilities could not be checked or reused"),
    ("trl.DPOTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("trl.KTOTrainer", "_compute_loss", "the unpaired loss could not take the place of the host's"),
    ("trl.KTOTrainer", "_prepare_dataset", "unpaired rows would not be checked"),
    ("trl.KTOTrainer", "_precompute_ref_logps", "reference log-probabilities could not be checked or reused"),
    ("trl.KTOTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("transformers.Trainer", "_signature_columns", "the weight column would be dropped by the dataloader"),
)

PreferenceConfig: TypeAlias = DPOConfig | KTOConfig
OUR_COLUMNS = ("weight", ROW_INDEX)  # of a collated batch, beside the host's: never passed to a model


class PreferenceForward(NamedTuple):
    """
    What a preference loss is made of; for pairs the chosen responses come first, then the rejected ones.

    Args:
        logps (`torch.Tensor` of shape `(rows,)`):
            Log-probability of each completion under the policy, summed over its tokens, in nats; float32.
        reference_logps (`torch.Tensor` of shape `(rows,)`):
            The same under the reference model.
        lengths (`torch.Tensor` of shape `(rows,)`):
            Completion tokens that are predicted.
        aux_loss (`torch.Tensor`, *optional*):
            The load-balancing loss of a mixture of experts, if the model returned one.
        inputs (`dict`):
            The collated batch, `OUR_COLUMNS` included.
    """

    logps: Tensor
    reference_logps: Tensor
    lengths: Tensor
    aux_loss: Tensor | None
    inputs: dict[str, Any]


@contextmanager
def reference_from_batch(trainer: DPOTrainer | KTOTrainer) -> Iterator[None]:
    """Inside, the host reads reference log-probabilities from the batch; not for good, since `evaluate` asks too."""
    precomputes = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = precomputes


class PreferenceTrainerHooks(TRLTrainerHooks):
    """
    A preference trainer of TRL with public hooks; stands before the host in the bases of the two classes below.

    - `check_rows(dataset, args, dataset_name)`: raw rows, before anything else;
    - `tokenise(rows, host, tokenizer, args, dataset_name)`: around the host's tokenising `host(rows)`;
    - `check_prepared(dataset, rows, args, dataset_name)`: tokenised rows, beside the raw ones;
    - `has_reference(dataset)`: whether nothing is left to precompute for a data set;
    - `check_reference(dataset, dataset_name)`: rows whose reference log-probabilities were just precomputed;
    - `needs_forward()`: whether `combine_loss` is wanted at all; without it the host runs untouched;
    - `reference_logps(inputs)`: the batch's reference log-probabilities, by column of the host;
    - `combine_loss(host_loss, forward)`: the loss to train on.
    """

    reference_columns: tuple[str, ...]

    def check_rows(self, dataset: AnyDataset, args: PreferenceConfig, dataset_name: str) -> AnyDataset:
        """Check raw rows; the default takes them as they are."""
        return dataset

    def tokenise(
        self,
        rows: AnyDataset,
        host: Callable[[AnyDataset], AnyDataset],
        tokenizer: PreTrainedTokenizerBase,
        args: PreferenceConfig,
        dataset_name: str,
    ) -> AnyDataset:
        """Tokenise checked rows; the default is the host's way alone."""
        return host(rows)

    def check_prepared(self, dataset: AnyDataset, rows: AnyDataset, args: PreferenceConfig, dataset_name: str) -> None:
        """Check tokenised rows, made from the raw `rows`; the default takes them as they are."""

    def has_reference(self, dataset: AnyDataset) -> bool:
        """Whether the reference forward over `dataset` can be left out; the default always makes it."""
        return False

    def check_reference(self, dataset: AnyDataset, dataset_name: str) -> None:
        """Check the reference columns that were just added; the default trusts them."""

    def needs_forward(self) -> bool:
        """Whether this step's loss is more than the host's."""
        return False

    def reference_logps(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Reference log-probabilities of a batch, one tensor of shape `(pairs,)` or `(rows,)` a reference column."""
        logps = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return dict(zip(self.reference_columns, logps, strict=False))  # KTO's second value is None without a KL term

    def combine_loss(self, host_loss: Tensor, forward: PreferenceForward) -> Tensor:
        """The loss to train on, a scalar; the default is the host's."""
        return host_loss

    def compute_ref_log_probs(self, model: Module, inputs: dict[str, Any]) -> Any:
        """The host's reference forward, which would pass our columns to the model, and unfreeze an adapter's parts."""
        with model_as_before(self.model):
            return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k not in OUR_COLUMNS})

    def _prepare_dataset(
        self, dataset: AnyDataset, processing_class: PreTrainedTokenizerBase, args: PreferenceConfig, dataset_name: str
    ) -> AnyDataset:
        rows = self.check_rows(unformatted(dataset), args, dataset_name)
        prepare = super()._prepare_dataset

        tokenised: list[AnyDataset] = []

        def host(chosen_rows: AnyDataset) -> AnyDataset:
            tokenised.append(chosen_rows)
            with expecting_a_row():
                return prepare(chosen_rows, processing_class, args, dataset_name)

        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        dataset = self.tokenise(rows, host, tokenizer, args, dataset_name)
        rows = tokenised[-1]  # without those that the template did not take
        self.check_prepared(dataset, rows, args, dataset_name)
        return dataset

    def _precompute_ref_logps(self, dataset: AnyDataset, name: str, batch_size: int) -> AnyDataset:
        if self.has_reference(dataset):
            return dataset
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        self.check_reference(dataset, name)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or []), *OUR_COLUMNS]

    def _compute_loss(self, model: Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        host_inputs = {name: value for name, value in inputs.items() if name not in OUR_COLUMNS}
        if not self.needs_forward():
            with model_as_before(self.model):  # the reference forward is in it
                return super()._compute_loss(model, host_inputs, return_outputs)
        if not self.precompute_ref_logps:
            host_inputs |= self.reference_logps(host_inputs)
        recorder = FusedOutputRecorder(model)  # one a call: evaluation inside training comes here again
        with reference_from_batch(self):
            result = super()._compute_loss(recorder, host_inputs, return_outputs)
        host_loss, outputs = result if return_outputs else (result, None)
        mask = inputs["completion_mask"][:, 1:]
        forward = PreferenceForward(
            # from the right: prompt-learning adapters prepend virtual tokens
            logps=recorder.output.log_probs[:, -mask.shape[1] :].float().sum(dim=1),
            reference_logps=torch.cat([host_inputs[name] for name in self.reference_columns]).float(),
            lengths=mask.sum(dim=1),
            aux_loss=recorder.output.aux_loss if self.aux_loss_enabled else None,
            inputs=inputs,
        )
        loss = self.combine_loss(host_loss, forward)
        return (loss, outputs) if return_outputs else loss


class DPOTrainerHooks(PreferenceTrainerHooks, DPOTrainer):
    """`DPOTrainer` with the hooks of [`PreferenceTrainerHooks`]."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")


class KTOTrainerHooks(PreferenceTrainerHooks, KTOTrainer):
    """`KTOTrainer` with the hooks of [`PreferenceTrainerHooks`], for losses without its KL batch."""

    reference_columns = ("ref_logps",)


def tokenise_preference_rows(
    dataset: AnyDataset, processing_class: PreTrainedTokenizerBase, args: DPOConfig, dataset_name: str = "eval"
) -> AnyDataset:
    """
    TRL's own tokenising of preference rows, without building a trainer: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Nothing is truncated and no row is dropped: that is for the collator.
    """
    host = object.__new__(DPOTrainer)  # `_prepare_dataset` reads one attribute of the trainer, and nothing else
    host._tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return DPOTrainer._prepare_dataset(host, dataset, processing_class, tokenise_only(args), dataset_name)


__all__ = [
    "OUR_COLUMNS",
    "TOUCHED",
    "DPOTrainerHooks",
    "DataCollatorForPreference",
    "KTOTrainerHooks",
    "PreferenceForward",
    "PreferenceTrainerHooks",
    "tokenise_preference_rows",
]
