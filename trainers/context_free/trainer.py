"""Target rows plus rows sampled from the original model, in stratified batches."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.divergence import last_hidden_states
from hf_ext._upstream.sft import DataCollatorForLanguageModeling, load_original
from hf_ext._upstream.sharding import is_fsdp2, shard
from hf_ext.data.context_free import ContextFreeStore, top_up
from hf_ext.data.original_cache import rows_hash
from hf_ext.data.original_states import OriginalStates
from hf_ext.data.provenance import model_hash
from hf_ext.data.sft_rows import WeightedCollator
from hf_ext.data.trained_adapters import require_untouched_adapters
from hf_ext.losses.kl import kl_k1, kl_k3
from hf_ext.losses.weighted_nll import weighted_nll
from hf_ext.trainers.base.config import AnyModel
from hf_ext.trainers.context_free import METHOD
from hf_ext.trainers.context_free.budget import KLBudget
from hf_ext.trainers.context_free.card import ContextFreeCard
from hf_ext.trainers.context_free.config import ContextFreeSFTConfig
from hf_ext.trainers.context_free.original import Batch, OriginalModel, model_inputs, predicting
from hf_ext.trainers.context_free.row_stream import RowStream
from hf_ext.trainers.weighted_sft.trainer import TokenValues, WeightedSFTTrainer, with_virtual_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutRows:
    """
    Keep the first `max_length` tokens of `input_ids`, `labels` and `sampled_logps`, batched.

    Args:
        max_length (`int`): tokens, the start counted.
    """

    max_length: int
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Cut one batch."""
        return {
            name: [values[: self.max_length] for values in batch[name]]
            for name in ("input_ids", "labels", "sampled_logps")
        }


class ContextFreeSFTTrainer(WeightedSFTTrainer):
    r"""
    Weighted SFT with a KL anchor: every optimiser step also sees rows sampled from the original model.

    $$\mathcal{L} = \mathcal{L}_{\text{target}} + \lambda \cdot \frac{1}{N} \sum_{t} -\log p_\theta(x_t \mid x_{<t}),
      \qquad x \sim p_{\theta^*}$$

    The second term's gradient is an unbiased gradient of $\mathrm{KL}(p_{\theta^*} \| p_\theta)$, since the entropy of
    $p_{\theta^*}$ does not depend on $\theta$. With `kl="exact"` it is that divergence itself, summed over the
    vocabulary at each prefix of the rows: the same in expectation, without the noise of sampled tokens, and exactly 0
    at the original weights. Each term has its own denominator over the accumulated, gathered batch, so $\lambda$
    (`kl_weight`) means the same whatever the two sets' sizes; `kl_budget` finds it. Target rows may carry weights:
    `add_flow_weights` and then this trainer is FLOW and context-free together.

    Args:
        model, args ([`ContextFreeSFTConfig`]), train_dataset, ...:
            As in [`WeightedSFTTrainer`].
        context_free_dataset ([`ContextFreeStore`] or `str`):
            Rows sampled from this very model by [`generate_context_free`], or the store's folder (or
            `args.context_free_path`). A store sampled from other weights is refused.

    Requirements: about twice the memory for activations of plain SFT, since both strata share one backward pass. Rows
    are drawn without replacement within an epoch over the store; once it repeats, the anchor memorises it, so sample
    about as many tokens as the target rows have. `kl="exact"` and `"topk"` hold a frozen copy of a model that is
    trained whole (with `original_cache_dir` its head alone); under FSDP2 the copy is sharded too.

    Raises:
        ValueError: if there is no store, it is empty, or it comes from other weights or another tokenizer; if the
            model is sharded by DeepSpeed or compiled and `kl` is not `"sampled"`; or, in `train`, if an adapter is
            trained already, or the model's logits are not those of its output head.

    Metrics: `loss/target` and `loss/context_free` (nats per unit of weight, per token), `kl_original_to_new/k1` and
    `/k3` (nats per token, estimated on the rows of the step; optimistic once the store repeats),
    `kl_original_to_new/exact` or `/topk` (the same, as `kl` has it), `kl_weight` (where a budget finds it),
    `context_free/epoch` (passes over the store).

    Reference: Bansal and Sanghavi 2025, *Context-Free Synthetic Data Mitigates Forgetting* (arXiv 2505.13811).
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "hf-ext"]
    _name = "ContextFree"
    _paper: ClassVar[dict[str, str]] = METHOD.paper_words
    config_class = ContextFreeSFTConfig
    card_class = ContextFreeCard
    method = "context_free"
    args: ContextFreeSFTConfig
    _said_what_drifts = False

    def __init__(
        self,
        model: AnyModel,
        args: SFTConfig | TrainingArguments | None = None,
        *positional: Any,
        context_free_dataset: ContextFreeStore | str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self._source = context_free_dataset
        self._is_untouched = False
        self.original: OriginalModel | None = None
        self._measured: Tensor | None = None  # of the step: sum of its tokens' KL, and their number
        self._options_used: list[tuple[Any, Any]] = []
        try:
            super().__init__(model, args, *positional, **kwargs)
        finally:
            for config, options in self._options_used:
                config.model_init_kwargs = options
        if self.args.kl != "sampled":
            self._refuse_parts()
        self.budget = None if self.args.kl_budget is None else KLBudget(self.args.kl_budget)
        if isinstance(model, str) and not self._changes_vocabulary(self.args):
            self.store.check_model(self.model)
        if self._needs_tokenizer:
            self.store.check_tokenizer(self.processing_class)
        stored_rows = self.store.to_dataset() if not self._tops_up else self._topped_up()
        self.context_free_dataset = self._cut(stored_rows)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # Shuffled within shards, rows come in an order that the shards of a later, longer run leave as it is.
        block_rows = self.store.manifest.get("rows_per_shard") if self._tops_up else None
        self._stream = RowStream(len(self.context_free_dataset), seed, block_rows)
        inner = DataCollatorForLanguageModeling(
            pad_token_id=self.processing_class.pad_token_id,
            padding_free=self.padding_free,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )
        # One token, one vote: dividing rows by their length would not be the KL of the sequences.
        self._context_free_collator = WeightedCollator(inner, "tokens", "token", extra_columns=("sampled_logps",))

    def _refuse_parts(self) -> None:
        refused = {
            "a model sharded by DeepSpeed": self.is_deepspeed_enabled,
            "a model sharded by FSDP version 1": self.is_fsdp_enabled and not is_fsdp2(self),
            "torch_compile": self.args.torch_compile,
            "original_cache_dir under FSDP2": is_fsdp2(self) and self.args.original_cache_dir is not None,
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(
                    f"{type(self).__name__} does not support {setting} with kl={self.args.kl!r}, which compares last "
                    "hidden states of two models: use kl='sampled', or train without it (FSDP2 goes with every kl)."
                )

    @staticmethod
    def _changes_vocabulary(args: ContextFreeSFTConfig) -> bool:
        """Whether the host takes a chat template from another tokenizer, adds its tokens and resizes embeddings."""
        return args.chat_template_path is not None and not os.path.isfile(args.chat_template_path)

    def see_original(
        self,
        model: AnyModel,
        processing_class: PreTrainedTokenizerBase | None,
        args: ContextFreeSFTConfig,
        **kwargs: Any,
    ) -> tuple[AnyModel, PreTrainedTokenizerBase | None]:
        """Check the store against model and tokenizer as they were when it was sampled, wherever they are here."""
        source = self._source if self._source is not None else args.context_free_path
        if source is None:
            raise ValueError(
                "ContextFreeSFTTrainer needs rows sampled from the original model: pass context_free_dataset=, or "
                "context_free_path in the config. generate_context_free (or 'hf-ext data context-free') makes them."
            )
        self.store = source if isinstance(source, ContextFreeStore) else ContextFreeStore(source)
        if self._changes_vocabulary(args):
            is_name = isinstance(model, str)
            model, processing_class = load_original(model, processing_class, args, kwargs.get("quantization_config"))
            if is_name:  # else the host warns that these options are not used
                self._options_used = [(args, args.model_init_kwargs)]
                args.model_init_kwargs = None
        if not isinstance(model, str):
            self.store.check_model(model)
        self._needs_tokenizer = processing_class is None
        if not self._needs_tokenizer:
            self.store.check_tokenizer(processing_class)
        return model, processing_class

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        Train as the host does.

        Raises:
            ValueError: if an adapter was trained before this run's first step: the anchor is the model without it.
        """
        resume = args[0] if args else kwargs.get("resume_from_checkpoint")
        if not self._is_untouched and resume in (None, False) and self.is_anchored:
            require_untouched_adapters(self.model, self.accelerator.autocast)
        self._is_untouched = True
        return super().train(*args, **kwargs)

    # --- the original model and the weight -------------------------------------------------------------------------

    @property
    def kl_weight(self) -> float:
        """The context-free loss's weight in the next step."""
        if self.budget is not None:
            return self.budget.weight
        return 1.0 if self.args.kl_weight is None else self.args.kl_weight

    @property
    def is_anchored(self) -> bool:
        """Whether context-free rows are drawn at all."""
        return self.budget is not None or self.kl_weight > 0

    def before_training(self, checkpoint: str | None) -> None:
        """Hold on to the original model, which this one still is, where `kl` needs it; read where the budget was."""
        super().before_training(checkpoint)
        if self.args.kl != "sampled" and self.is_anchored and self.original is None:
            top_k = self.args.kl_top_k if self.args.kl == "topk" else None
            parts: dict[str, Any] = {}
            if is_fsdp2(self):
                parts = {"shard": partial(shard, self), "device": self.args.device}
            states = self._states(top_k)
            self.original = OriginalModel(self.model, self.accelerator.autocast, top_k, states, **parts)
            self._fill_states(self.original)
        self._measured = None
        if self.budget is not None:
            self.budget = KLBudget(self.budget.nats)
            if checkpoint is not None:
                self.budget.load(checkpoint)

    def _states(self, top_k: int | None) -> OriginalStates | None:
        if self.args.original_cache_dir is None:
            return None
        facts = {
            "model": model_hash(self.model),
            "dtype": str(next(self.model.parameters()).dtype),
            "autocast": self.accelerator.mixed_precision,
            "rows": rows_hash(self.context_free_dataset),
            "kl": self.args.kl,
            "top_k": top_k,
        }
        lengths = [len(ids) for ids in self.context_free_dataset["input_ids"]]
        return OriginalStates(self.args.original_cache_dir, facts, lengths)

    def _fill_states(self, original: OriginalModel) -> None:
        """Compute the shards of states that are missing, shared out among the processes."""
        if original.states is None:
            return
        self.accelerator.wait_for_everyone()  # no process looks while another writes
        missing = original.states.missing()
        self.accelerator.wait_for_everyone()
        share = missing[self.accelerator.process_index :: self.accelerator.num_processes]
        is_silent = not missing or not self.accelerator.is_main_process or self.args.disable_tqdm
        original.fill(share, self._batch_of, self.args.per_device_eval_batch_size, is_silent)
        self.accelerator.wait_for_everyone()
        if original.states.missing():
            raise FileNotFoundError(
                f"Not every state of the original model is in {self.args.original_cache_dir}: the processes do not "
                "share that folder. Name one that all of them see."
            )

    def _settle_budget(self) -> None:
        """Let the weight follow the KL that the last step measured; on every process, with the same numbers."""
        if self.budget is None or self._measured is None:
            return
        total, tokens = self.sum_over_processes(self._measured).tolist()
        self._measured = None
        if tokens > 0:
            self.budget.update(total / tokens)

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        """As of any trainer here, with where the budget is."""
        with super().writing_checkpoint(folder):
            yield
            self._settle_budget()
            if self.budget is not None and self.args.should_save:
                self.budget.save(folder)

    # --- rows ------------------------------------------------------------------------------------------------------

    @property
    def _tops_up(self) -> bool:
        return self.args.context_free_top_up and self.is_anchored

    def _topped_up(self) -> Dataset:
        """
        The shards of the store that hold the rows which the run draws; missing ones are sampled.

        That is before the first step, from this model, the original yet. Shards beyond them, of a longer run, are left
        out: what this one trains on does not depend on what was there.
        """
        refused = {
            "a sharded model (FSDP, DeepSpeed)": self.is_fsdp_enabled or self.is_deepspeed_enabled,
            "chat_template_path of another tokenizer": self._changes_vocabulary(self.args),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(
                    f"context_free_top_up does not go with {setting}: rows are sampled by the whole original model. "
                    "Sample enough of them first, with 'hf-ext data context-free --num-tokens'."
                )
        is_shown = self.accelerator.is_main_process and not self.args.disable_tqdm
        num_rows = self._num_rows_drawn()
        self.store = top_up(self.store, self.model, num_rows, show_progress=is_shown)
        stored_rows = self.store.to_dataset()
        shard_rows = self.store.manifest.get("rows_per_shard", len(stored_rows))
        return stored_rows.select(range(min(len(stored_rows), math.ceil(num_rows / shard_rows) * shard_rows)))

    def _num_rows_drawn(self) -> int:
        """Context-free rows that the run will draw; a step an epoch too many at most."""
        args = self.args
        size = args.context_free_batch_size or args.per_device_train_batch_size
        world = self.accelerator.num_processes
        num_steps = args.max_steps
        if num_steps <= 0:
            num_batches = math.ceil(len(self.train_dataset) / (world * args.train_batch_size))
            num_steps = math.ceil(args.num_train_epochs * math.ceil(num_batches / args.gradient_accumulation_steps))
        return num_steps * args.gradient_accumulation_steps * world * size

    def _cut(self, dataset: Dataset) -> Dataset:
        if len(dataset) == 0:
            raise ValueError("The context-free store is empty: generate more tokens.")
        dataset = dataset.select_columns(["input_ids", "labels", "sampled_logps"]).with_format(None)
        if self.args.max_length is not None:
            # The likelihood of a prefix anchors the prefix's distribution: cutting keeps the estimate exact for it.
            dataset = dataset.map(CutRows(self.args.max_length), batched=True)
        return dataset.add_column(ROW_INDEX, range(len(dataset)))

    def draw_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give each target micro-batch of the step a context-free one, and all of them the second denominator."""
        self._settle_budget()
        if not self.is_anchored:
            return batches
        size = self.args.context_free_batch_size or self.args.per_device_train_batch_size
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        first = self.state.global_step * self.args.gradient_accumulation_steps
        anchor_batches = []
        for i in range(len(batches)):
            rows = self._stream.rows(((first + i) * world + rank) * size, size)
            anchor_batches.append(self._collated(rows))
        num_items = self.count_items(anchor_batches, self.args.device)
        for batch, anchor_batch in zip(batches, anchor_batches, strict=True):
            batch["context_free"] = {**anchor_batch, "num_items": num_items}
        self.add_metric("context_free/epoch", (first + len(batches)) * world * size / len(self.context_free_dataset))
        if self.budget is not None:
            self.add_metric("kl_weight", self.kl_weight)
            self._say_what_drifts(self.state.max_steps * self.args.gradient_accumulation_steps * world * size)
        return batches

    def _collated(self, rows: list[int]) -> Batch:
        return {**self._context_free_collator([self.context_free_dataset[row] for row in rows]), "rows": rows}

    def _batch_of(self, rows: list[int]) -> Batch:
        return self._prepare_inputs(self._collated(rows))

    def _say_what_drifts(self, num_rows: int) -> None:
        """Say once that the estimate of a repeated store is not the KL any more."""
        epochs = num_rows / len(self.context_free_dataset)
        if self._said_what_drifts or self.args.kl != "sampled" or epochs <= 1:
            return
        self._said_what_drifts = True
        if self.is_world_process_zero():
            logger.warning(
                "The context-free store is gone through %.1f times, and kl_budget follows an estimate on its tokens "
                "(kl='sampled'), which the model learns by heart from the second time on: the KL on fresh rows will "
                "differ from the budget. Sample more rows, or set kl='exact', which compares whole distributions.",
                epochs,
            )  # fmt: skip

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Target loss plus the weight times the context-free loss; evaluation is on the target alone."""
        context_free = inputs.pop("context_free", None)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if context_free is None:
            return result
        loss, outputs = result if return_outputs else (result, None)
        anchor = self._context_free_loss(model, context_free) * self.loss_scale(num_items_in_batch)
        loss = loss + self.kl_weight * anchor
        return (loss, outputs) if return_outputs else loss

    def _context_free_loss(self, model: Module, batch: Batch) -> Tensor:
        recording: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.original is not None:
            recording = last_hidden_states(self.model)
        with recording as hidden_states:
            outputs = model(**model_inputs(batch), use_cache=False, fused_lm_head=True)
        mask = outputs.label_mask
        log_probs = outputs.log_probs
        sampled = with_virtual_tokens(batch["sampled_logps"][:, 1:], log_probs)
        row_index = with_virtual_tokens(batch[ROW_INDEX][:, 1:], log_probs, -1)
        self.guard("context-free log-probability", log_probs, row_index)
        tokens = mask.sum()
        detached = log_probs.detach()
        k3 = kl_k3(sampled, detached, mask) * tokens
        self.add_ratio("loss/context_free", -detached.sum(), tokens)
        self.add_ratio("kl_original_to_new/k1", kl_k1(sampled, detached, mask) * tokens, tokens)
        self.add_ratio("kl_original_to_new/k3", k3, tokens)
        if self.original is None:
            self._measure(k3, tokens)
            return weighted_nll(log_probs, mask.to(log_probs.dtype), batch["num_items"])
        divergence = self.original.divergence(hidden_states[-1], batch)
        predicted_rows = batch[ROW_INDEX][:, 1:][predicting(batch)[:, :-1]]
        self.guard("KL(original || new)", divergence, predicted_rows.to(divergence.device))
        total = divergence.sum()
        self.add_ratio(f"kl_original_to_new/{self.args.kl}", total, tokens)
        self._measure(total, tokens)
        return total / batch["num_items"].to(total.device).sum()

    def _measure(self, total: Tensor, tokens: Tensor) -> None:
        """Add a micro-batch's KL to the step's."""
        if self.budget is not None and self.model.training:
            pair = torch.stack([total.detach().double().sum(), tokens.double().sum()])
            self._measured = pair if self._measured is None else self._measured + pair

    def after_forward(self, values: TokenValues) -> None:
        """Log the target loss apart from the total."""
        self.add_ratio("loss/target", -(values.log_probs * values.weight).sum(), values.num_items)
