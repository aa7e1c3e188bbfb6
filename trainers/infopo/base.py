"""What InfoPO's two trainers share: set-up, the reference, checks of each forward, metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.preference import OUR_COLUMNS, PreferenceForward, PreferenceTrainerHooks
from hf_ext._upstream.rows import AnyDataset, AnyDatasets, CarriesColumns
from hf_ext.data.preference import with_prompts
from hf_ext.data.provenance import is_peft
from hf_ext.data.sft_rows import column_names
from hf_ext.guards.finite import check_finite
from hf_ext.guards.pairs import SameResponses
from hf_ext.guards.tokens import SayOnce, require_padding_token, say_count, tokenise_checked
from hf_ext.trainers.base.config import AnyModel, default_output_dir
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.infopo.callbacks import CeilingCallback, LikelihoodGuardCallback
from hf_ext.trainers.infopo.card import PreferenceCard
from hf_ext.trainers.infopo.config import InfoPOConfig, InfoPOUnpairedConfig
from hf_ext.trainers.infopo.diagnostics import Ratios

logger = logging.getLogger(__name__)

InfoPOArguments: TypeAlias = InfoPOConfig | InfoPOUnpairedConfig
PAIR_IDS = ("chosen_ids", "rejected_ids")

FAR_FROM_REFERENCE = 1.0  # nats per token between policy and reference before the first step


class PreferenceMethod(BaseTrainer, PreferenceTrainerHooks):
    """
    Base of the InfoPO trainers; stands before the hooks of their host.

    Attributes:
        likelihood_guard ([`LikelihoodGuardCallback`], *optional*):
            The guard in use; its `verdict` goes on the card.
    """

    method = "infopo"
    card_class = PreferenceCard
    data_collator_class = CarriesColumns
    completion_columns: ClassVar[tuple[str, ...]]
    likelihood_guard: LikelihoodGuardCallback | None = None

    def __init__(
        self,
        model: AnyModel,
        ref_model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: AnyDatasets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, default_output_dir(model, self._name))
        if train_dataset is not None and next(iter(train_dataset), None) is None:
            raise ValueError("The train dataset is empty: there is no row to train on. Check its filters and split.")
        require_padding_token(processing_class, args)
        if ref_model is None and kwargs.get("peft_config") is None:
            self._refuse_other_adapters(model, args)
            self._refuse_missing_reference(model, args)
        with _no_reference_model(args), _flags_kept(model if kwargs.get("peft_config") is None else None):
            super().__init__(
                model,
                ref_model,
                args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        self.precompute_ref_logps = args.precompute_ref_log_probs
        self.data_collator = self.data_collator_class(self.data_collator, OUR_COLUMNS)
        self._compared = False
        self.add_callback(CeilingCallback())
        if args.likelihood_guard != "off" and not args.reference_free:
            self.likelihood_guard = LikelihoodGuardCallback(
                args.likelihood_guard, args.guard_tolerance, args.guard_patience
            )
            self.add_callback(self.likelihood_guard)

    @classmethod
    def host_values(cls, args: TrainingArguments) -> dict[str, Any]:
        """Fields of a plain `DPOConfig` or `KTOConfig`: their default loss, which nobody chose, becomes InfoPO's."""
        values = super().host_values(args)
        if values.get("loss_type") in (["sigmoid"], "kto"):
            for entry in fields(cls.config_class):
                if entry.name in ("loss_type", "train_sampling_strategy"):
                    factory = entry.default_factory
                    values[entry.name] = entry.default if factory is MISSING else factory()
            logger.warning(
                "%s was given with the default loss_type: training with %s. Pass %s to choose another.",
                type(args).__name__, values["loss_type"], cls.config_class.__name__,
            )  # fmt: skip
        return values

    @staticmethod
    def _refuse_other_adapters(model: AnyModel, args: InfoPOArguments) -> None:
        """The host makes the reference of the adapter "default", whichever is trained (trl 1.16)."""
        if isinstance(model, str) or not is_peft(model, "PeftModel"):
            return
        is_other = model.active_adapters != ["default"] and not args.reference_free
        if is_other or "default" not in model.peft_config:
            raise ValueError(
                f"The model's adapters are {list(model.peft_config)}, active {model.active_adapters}; the reference "
                "would be a copy of one named 'default', which is not the one that is trained. Load the adapter to be "
                "trained as adapter_name='default' and alone, or pass the reference as ref_model."
            )

    @staticmethod
    def _refuse_missing_reference(model: AnyModel, args: InfoPOArguments) -> None:
        if (
            isinstance(model, str)
            or is_peft(model, "PeftModel")
            or args.precompute_ref_log_probs
            or args.reference_free
        ):
            return
        name = getattr(model.config, "_name_or_path", "")
        if not name or (os.path.isabs(name) and not os.path.isdir(name)):
            reason = f"its folder {os.path.basename(name)!r} is gone" if name else "it was not loaded from a folder"
            raise ValueError(
                f"The model is in memory and {reason}, so its original weights, the reference, cannot be loaded "
                "again. Save it with save_pretrained and pass the folder, or pass a copy as "
                "ref_model=copy.deepcopy(model). precompute_ref_log_probs=True and peft_config= need no second model "
                "either."
            )

    def has_steps_left(self) -> bool:
        """Whether there is a step to train: not after a stop by the likelihood guard."""
        guard = self.likelihood_guard
        return super().has_steps_left() and not (guard is not None and guard.has_stopped(self.args, self.state))

    # --- rows ------------------------------------------------------------------------------------------------------

    def tokenise(
        self,
        rows: AnyDataset,
        host: Callable[[AnyDataset], AnyDataset],
        tokenizer: PreTrainedTokenizerBase,
        args: InfoPOArguments,
        dataset_name: str,
    ) -> AnyDataset:
        """The host's tokenising, with the prompt found and rows named that the chat template does not take."""
        rows = with_prompts(rows, dataset_name, args.dataset_num_proc)
        dataset = tokenise_checked(rows, host, tokenizer, args, dataset_name=dataset_name)
        if not isinstance(dataset, Dataset) and self.completion_columns == PAIR_IDS:
            is_same = _same_responses(args)
            dataset = dataset.filter(SayOnce(is_same, is_same.sentence(), dataset_name))
        return dataset

    def check_prepared(self, dataset: AnyDataset, rows: AnyDataset, args: InfoPOArguments, dataset_name: str) -> None:
        """Say how many rows teach nothing after truncation; refuse a data set without any other."""
        if not isinstance(dataset, Dataset):
            return
        is_unpaired = "chosen" in column_names(rows) and self.completion_columns != PAIR_IDS
        total = len(rows) * (2 if is_unpaired else 1)
        empty = _count_empty(dataset, self.completion_columns)
        num_lost = total - len(dataset) + empty
        if num_lost == total:
            raise ValueError(
                f"None of the {total:,} rows of the {dataset_name} dataset has a completion token left within "
                f"max_length={args.max_length}: the prompts fill it. Raise max_length, or shorten the prompts."
            )
        if num_lost:
            logger.warning(
                "%s of %s rows (%.1f %%) of the %s dataset have no completion token left within max_length=%s and "
                "teach nothing. Raise max_length, or filter long prompts.",
                f"{num_lost:,}", f"{total:,}", 100 * num_lost / total, dataset_name, args.max_length,
            )  # fmt: skip
        if is_unpaired or self.completion_columns == PAIR_IDS:
            self._check_same_responses(dataset, empty // 2 if is_unpaired else empty, args, dataset_name)
        if not args.precompute_ref_log_probs and self.has_reference_columns(dataset):
            logger.warning(
                "The %s dataset has the columns %s, which are not used: set precompute_ref_log_probs=True to train on "
                "them, or remove them.",
                dataset_name, " and ".join(self.reference_columns),
            )  # fmt: skip

    def _check_same_responses(self, dataset: Dataset, empty: int, args: InfoPOArguments, dataset_name: str) -> None:
        """Count the pairs whose two responses are the same after truncation; refuse a data set of them only."""
        is_same = _same_responses(args)
        if self.completion_columns == PAIR_IDS:
            pairs = len(dataset)
            count = is_same.count(dataset, dataset)
        else:
            chosen, rejected = _sides(dataset)
            pairs = len(chosen)
            count = is_same.count(chosen, rejected, ("completion_ids", "completion_ids"))
        if count and count == pairs - empty:
            raise ValueError(is_same.sentence().format(rows=f"every one of the {pairs:,} pairs", name=dataset_name))
        say_count(count, pairs, is_same.sentence(), dataset_name, "pairs")

    def has_reference_columns(self, dataset: AnyDataset) -> bool:
        """Whether the reference log-probabilities are in the rows already."""
        return set(self.reference_columns) <= set(column_names(dataset))

    def has_reference(self, dataset: AnyDataset) -> bool:
        """Whether the reference forward over `dataset` can be left out."""
        return self.args.reference_free or self.has_reference_columns(dataset)

    def check_reference(self, dataset: AnyDataset, dataset_name: str) -> None:
        """Stop at a reference log-probability that is not finite, before the first step."""
        columns = dataset.with_format("torch")
        rows = columns[ROW_INDEX][:] if ROW_INDEX in dataset.column_names else None
        for name in self.reference_columns:
            check_finite(
                f"{name} of the {dataset_name} dataset", columns[name][:], step=0,
                rank=self.accelerator.process_index, row_index=rows,
            )  # fmt: skip

    # --- each forward ----------------------------------------------------------------------------------------------

    def reference_logps(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Reference log-probabilities of a batch; zeros without a reference."""
        if not self.args.reference_free:
            return super().reference_logps(inputs)
        rows = inputs["input_ids"].shape[0] // len(self.reference_columns)
        return {name: torch.zeros(rows, device=inputs["input_ids"].device) for name in self.reference_columns}

    def check_forward(self, forward: PreferenceForward) -> Tensor:
        """Stop at a value that is not finite, naming rows; returns the log-ratios of shape `(rows,)`, in nats."""
        rows = forward.inputs.get(ROW_INDEX)
        if rows is not None:
            rows = rows.repeat(len(forward.logps) // len(rows))
        is_training = self.model.training
        for name, values in (
            ("log-probability", forward.logps),
            ("reference log-probability", forward.reference_logps),
        ):
            self.guard(name, values, rows)
        if is_training and "weight" in forward.inputs:
            self.guard("weight", forward.inputs["weight"], forward.inputs.get(ROW_INDEX))
        logratios = forward.logps - forward.reference_logps
        if is_training and not self._compared and self.state.global_step == 0 and not self.args.reference_free:
            self._compared = True
            self._compare_with_reference(logratios.detach() / forward.lengths.clamp(min=1))
        return logratios

    def _compare_with_reference(self, per_token: Tensor) -> None:
        distance = float(per_token.abs().mean())
        if distance > FAR_FROM_REFERENCE:
            logger.warning(
                "Before the first step the policy is %.2f nats per token away from the reference (mean of the first "
                "batch). Unless that is meant, the reference log-probabilities come from another model, tokenizer or "
                "max_length: remove their columns, or pass the ref_model they belong to.",
                distance,
            )

    def mean_loss(self, losses: Tensor, forward: PreferenceForward) -> Tensor:
        """
        Mean over rows, weighted in training: `mean(weight * loss)`.

        The denominator is the number of rows, not the sum of weights. The host averages micro-batches over
        accumulation and processes, and only a mean over equally many rows is the whole batch's when averaged again.
        """
        weight = forward.inputs.get("weight")
        if weight is None:
            return losses.mean()
        if self.model.training:
            return (losses * weight).mean()
        self.add_ratio("infopo/loss_weighted", losses * weight, torch.ones_like(losses))
        return losses.mean()

    def add_ratios(self, ratios: Ratios) -> None:
        """Log them under `infopo/`."""
        for name, (numerator, denominator) in ratios.items():
            self.add_ratio(f"infopo/{name}", numerator, denominator)


def _same_responses(args: InfoPOArguments) -> SameResponses:
    return SameResponses(args.max_length, getattr(args, "truncation_mode", "keep_start") == "keep_end")


def _sides(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The chosen and the rejected responses of pairs that became two rows, in the same order."""
    columns = dataset.select_columns(["label", ROW_INDEX]).with_format("numpy")[:]
    sides = [np.flatnonzero(columns["label"] == label) for label in (True, False)]
    numbers = [columns[ROW_INDEX][side] for side in sides]
    _, first, other = np.intersect1d(*numbers, return_indices=True)  # the host drops responses, not pairs
    return dataset.select(sides[0][first]), dataset.select(sides[1][other])


def _count_empty(dataset: Dataset, columns: tuple[str, ...]) -> int:
    """Rows where some column's list is empty."""
    count = 0
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=10_000):
        empty = [pc.equal(pc.list_value_length(table.column(name)), 0).to_numpy() for name in columns]
        count += int(np.any(empty, axis=0).sum())
    return count


@contextmanager
def _flags_kept(model: AnyModel | None) -> Iterator[None]:
    """Inside, the host puts a copy of a trained adapter into `model` as reference, which unfreezes it (peft 0.21)."""
    parameters: list[Any] = []
    if model is not None and not isinstance(model, str) and is_peft(model, "PeftModel"):
        parameters = list(model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def _no_reference_model(args: InfoPOArguments) -> Iterator[None]:
    """Inside, a host without need of a reference loads none: it would only skip it where it precomputes."""
    precomputes = args.precompute_ref_log_probs
    args.precompute_ref_log_probs = precomputes or args.reference_free
    try:
        yield
    finally:
        args.precompute_ref_log_probs = precomputes
