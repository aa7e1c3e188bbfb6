"""Hooks of `SFTTrainer`, and its tokenising without a trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, get_training_chat_template
from trl.chat_template_utils import has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import create_model_from_path, get_config_model_id

from hf_ext._columns import column_names
from hf_ext._upstream.rows import AnyDataset, expecting_a_row, tokenise_only, unformatted
from hf_ext._upstream.trl_trainer import TRLTrainerHooks

TOUCHED = (
    ("trl.SFTTrainer", "_prepare_dataset", "weights would be lost while rows are tokenised and packed"),
    ("trl.SFTTrainer", "_tokenizer", "rows could not be tokenised without a trainer, nor packed by the host"),
    ("trl.SFTTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("transformers.Trainer", "_signature_columns", "the weight column would be dropped by the dataloader"),
    ("transformers.Trainer", "_get_num_items_in_batch", "the loss would be divided by tokens, not by weights"),
    ("transformers.Trainer", "get_batch_samples", "context-free batches could not be drawn"),
    ("trl.trainer.sft_trainer", "DataCollatorForLanguageModeling", "rows could not be collated outside the trainer"),
)


class SFTTrainerHooks(TRLTrainerHooks, SFTTrainer):
    """
    `SFTTrainer` with public hooks in place of the private methods a weighted trainer has to override.

    Subclasses override only these and `compute_loss`:

    - `check_rows(dataset, args, formatting_func, dataset_name)`: raw rows, before anything else; it gives rows of one
      data type, with the texts of `formatting_func`. Where `rows_are_checked`, that was done;
    - `tokenise(rows, host, tokenizer, args, dataset_name)`: around the host's `host(rows)`;
    - `prepare_rows(dataset, args, packing, dataset_name)`: tokenised, labelled rows, before truncation and packing;
    - `signature_columns()`: further columns that must reach the collator;
    - `count_items(batches, device)`: the loss's denominator over the whole accumulated, gathered batch;
    - `draw_batches(batches)`: the micro-batches of one optimiser step, as a list that may be extended or annotated.
    """

    rows_are_checked = False

    def check_rows(
        self, dataset: AnyDataset, args: SFTConfig, formatting_func: Callable | None, dataset_name: str
    ) -> AnyDataset:
        """Check raw rows; the default takes them as they are."""
        return dataset

    def tokenise(
        self,
        rows: AnyDataset,
        host: Callable[[AnyDataset], AnyDataset],
        tokenizer: PreTrainedTokenizerBase,
        args: SFTConfig,
        dataset_name: str,
    ) -> AnyDataset:
        """Tokenise and label checked rows; the default is the host's way alone."""
        return host(rows)

    def prepare_rows(self, dataset: AnyDataset, args: SFTConfig, packing: bool, dataset_name: str) -> AnyDataset:
        """Truncate, filter, pack and shuffle tokenised rows; the default is TRL's own way, which drops our columns."""
        return super()._prepare_dataset(dataset, self._tokenizer, args, packing, None, dataset_name)

    def signature_columns(self) -> list[str]:
        """Columns beyond TRL's own that the collator reads."""
        return []

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Denominator of the loss for one optimiser step over all processes; the default counts supervised tokens."""
        return super()._get_num_items_in_batch(batches, device)

    def draw_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Micro-batches of one optimiser step on this process; the default trains on them as they come."""
        return batches

    # --- the private methods behind the hooks ---------------------------------------------------------------------

    def _prepare_dataset(
        self,
        dataset: AnyDataset,
        processing_class: PreTrainedTokenizerBase,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable | None,
        dataset_name: str,
    ) -> AnyDataset:
        if not self.rows_are_checked:
            dataset = self.check_rows(unformatted(dataset), args, formatting_func, dataset_name)
        self.completion_only_loss = completion_only(column_names(dataset), args)
        prepare = super()._prepare_dataset

        def host(rows: AnyDataset) -> AnyDataset:
            # Checked rows hold the texts of `formatting_func`: the host would write them to a column it does not read.
            with expecting_a_row():
                return prepare(rows, processing_class, tokenise_only(args), False, None, dataset_name)

        dataset = self.tokenise(dataset, host, processing_class, args, dataset_name)
        return self.prepare_rows(dataset, args, packing, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = list(self._signature_columns or []) + self.signature_columns()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        return self.count_items(batch_samples, device) if batch_samples else None

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Draw the micro-batches of one optimiser step, then let `draw_batches` see them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return (self.draw_batches(batches) if batches else batches), num_items


def completion_only(names: list[str], args: SFTConfig) -> bool:
    """
    Whether the loss is on completions alone, for rows with the columns `names`.

    TRL (1.16) asks the first train row alone, also for eval sets, and leaves a `completion_mask` of tokenised rows
    unused unless `completion_only_loss=True`.
    """
    if args.completion_only_loss is not None:
        return args.completion_only_loss
    return {"prompt", "completion"} <= set(names) or "completion_mask" in names


def training_template(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> str | None:
    """The template that `SFTTrainer` renders messages with in place of the tokenizer's, or `None` for the latter."""
    needs_template = args.assistant_only_loss and not has_generation_markers(tokenizer.chat_template)
    return get_training_chat_template(tokenizer) if needs_template else None


def with_end_token(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> PreTrainedTokenizerBase:
    """The tokenizer as `SFTTrainer` sets it up: a copy with the config's `eos_token`, where that is another."""
    if args.eos_token is None or args.eos_token == tokenizer.eos_token:
        return tokenizer
    if args.eos_token not in tokenizer.get_vocab():
        raise ValueError(
            f"eos_token={args.eos_token!r} is not in the tokenizer's vocabulary. Choose one of its tokens."
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = args.eos_token
    return tokenizer


def tokenise_rows(
    dataset: AnyDataset, processing_class: PreTrainedTokenizerBase, args: SFTConfig, dataset_name: str = "train"
) -> AnyDataset:
    """TRL's own tokenising and labelling of rows of one SFT data type, without building a trainer (and so a model)."""
    host = object.__new__(SFTTrainer)  # `_prepare_dataset` reads three attributes of the trainer, and nothing else
    host._tokenizer = processing_class
    host.completion_only_loss = completion_only(column_names(dataset), args)
    host.chat_template = training_template(processing_class, args)
    with expecting_a_row():
        return host._prepare_dataset(dataset, processing_class, tokenise_only(args), False, None, dataset_name)


def load_original(
    model: str | PreTrainedModel,
    processing_class: PreTrainedTokenizerBase | None,
    args: SFTConfig,
    quantization_config: BitsAndBytesConfig | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as `SFTTrainer` loads them, before it changes either; what is loaded already is returned."""
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    revision = options.get("revision") if isinstance(model, str) else None
    if isinstance(model, str):
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            options["device_map"] = None
        model = create_model_from_path(model, **options)
    if processing_class is None:
        processing_class = AutoProcessor.from_pretrained(
            get_config_model_id(model.config), revision=revision, trust_remote_code=args.trust_remote_code
        )
    return model, processing_class


__all__ = [
    "TOUCHED",
    "DataCollatorForLanguageModeling",
    "SFTTrainerHooks",
    "load_original",
    "tokenise_rows",
    "training_template",
    "with_end_token",
]
