"""`SFTTrainer` with a multiplier for each row's or token's loss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.fused_head import FusedOutputRecorder
from hf_ext._upstream.rows import AnyDataset, AnyDatasets, unformatted
from hf_ext._upstream.sft import SFTTrainerHooks
from hf_ext.data.chat_columns import warn_of_unread_parts
from hf_ext.data.host_rows import host_rows
from hf_ext.data.sft_rows import WeightedCollator, column_names, finish_rows
from hf_ext.guards.attention import check_documents_kept_apart
from hf_ext.guards.tokens import require_padding_token, tokenise_checked
from hf_ext.losses.weighted_nll import weighted_nll
from hf_ext.trainers.base.config import AnyModel, default_output_dir
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig

logger = logging.getLogger(__name__)


class TokenValues(NamedTuple):
    """A training forward: per token `(batch, seq_len - 1)`, and the micro-batch's share of the denominator."""

    log_probs: Tensor
    weight: Tensor
    mask: Tensor
    row_index: Tensor
    num_items: Tensor


def with_virtual_tokens(values: Tensor, log_probs: Tensor, fill: int = 0) -> Tensor:
    """Per-token values with `fill` where a prompt-learning adapter prepended tokens to those of `log_probs`."""
    return torch.nn.functional.pad(values, (log_probs.shape[1] - values.shape[1], 0), value=fill)


class WeightedSFTTrainer(BaseTrainer, SFTTrainerHooks):
    r"""
    [`~trl.SFTTrainer`] whose rows may carry a `weight`: a number per row, or a list per token.

    $$\mathcal{L} = -\frac{1}{D} \sum_{t} w_t \log p_\theta(y_t \mid y_{<t}),\quad
      D = \sum_t w_t \text{ (normalize="weights") or the number of supervised tokens ("tokens")}$$

    $D$ is that of the whole accumulated batch over all processes. The column survives tokenising, truncation, packing
    and padding-free; a missing one means 1, and then the run equals `SFTTrainer`'s bit for bit.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            As in `SFTTrainer`.
        args ([`WeightedSFTConfig`], *optional*):
            A plain `SFTConfig` or `TrainingArguments` is taken too.
        train_dataset, eval_dataset, processing_class, peft_config, callbacks, ...:
            As in `SFTTrainer`, and any of its data types, plus the optional `weight` column.

    Requirements: no `compute_loss_func`, label smoothing, `loss_type="dft"`, Liger kernel, wrapped packing, vision
    data or sequence/context parallelism; each is refused by name.

    Raises:
        RowError: if a row is malformed; it names the row and its column (see `on_bad_row`).
        NonFiniteError: if a loss, log-probability or weight is not finite, before the optimiser step it would spoil.
        ValueError: if a setting cannot be honoured.

    Metrics: those of `SFTTrainer`; `eval_loss` is unweighted, hence comparable with it, and `eval_loss_weighted` is
    the weighted one.

    Relations: [`FlowSFTTrainer`] fills the weights from losses under the original model; [`ContextFreeSFTTrainer`]
    adds rows sampled from it.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "hf-ext"]  # the card adds the name of the method
    _name = "WeightedSFT"
    method = "weighted_sft"
    config_class: ClassVar[type[WeightedSFTConfig]] = WeightedSFTConfig
    data_collator_class = WeightedCollator
    loss_is_scaled_for_ga = True  # the denominator is the whole accumulated batch's

    def __init__(
        self,
        model: AnyModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: AnyDataset | None = None,
        eval_dataset: AnyDatasets | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, default_output_dir(model, self._name))
        self._refuse(args, compute_loss_func, processing_class, train_dataset, eval_dataset)
        if not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            train_dataset, eval_dataset = self._checked(
                args, kwargs.get("formatting_func"), train_dataset, eval_dataset
            )
        model, processing_class = self.see_original(model, processing_class, args, **kwargs)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.rows_are_checked = False  # `evaluate` brings others
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                f"{type(self).__name__} does not support sequence or context parallelism: shifted labels and weights "
                "would no longer line up. Set cp_size=1 and sp_size=1, or use SFTTrainer without weights."
            )
        if self.padding_free:
            check_documents_kept_apart(self.model, autocast=self.accelerator.autocast)
        self.data_collator = self.data_collator_class(self.data_collator, args.normalize, args.reduction)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def _refuse(
        self,
        args: WeightedSFTConfig,
        compute_loss_func: Callable | None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
        *datasets: Any,
    ) -> None:
        if datasets[0] is not None and next(iter(datasets[0]), None) is None:  # the host meets a StopIteration here
            raise ValueError("The train dataset is empty: there is no row to train on. Check its filters and split.")
        require_padding_token(processing_class, args)
        sets = [set(column_names(dataset)) for dataset in datasets if hasattr(dataset, "column_names")]
        columns = set().union(*sets)
        refused = {
            "compute_loss_func": (compute_loss_func is not None, "subclass this trainer and override compute_loss"),
            "label_smoothing_factor": (args.label_smoothing_factor > 0, "set it to 0: it needs the full logits"),
            "loss_type='dft'": (args.loss_type == "dft", "it weights tokens itself; use loss_type='nll'"),
            "use_liger_kernel": (
                args.use_liger_kernel,
                "its fused loss is one scalar; use model_init_kwargs={'use_kernels': True}",
            ),
            "packing_strategy='wrapped'": (
                bool(args.packing or args.eval_packing) and args.packing_strategy == "wrapped",
                "it forgets where documents end; use packing_strategy='bfd'",
            ),
            "vision data": (
                isinstance(processing_class, ProcessorMixin) or bool(columns & {"image", "images"}),
                "pass a tokenizer and text rows",
            ),
            "packed rows without packing": (
                any({"seq_lengths", "input_ids"} <= names for names in sets)
                and not (args.packing or args.padding_free),
                "these rows were packed already; set packing=True so that they are collated without padding",
            ),
        }
        for setting, (is_set, remedy) in refused.items():
            if is_set:
                raise ValueError(f"{type(self).__name__} does not support {setting}: {remedy}.")

    def _checked(
        self,
        args: WeightedSFTConfig,
        formatting_func: Callable | None,
        train: AnyDataset | None,
        evaluation: AnyDatasets | None,
    ) -> tuple[AnyDataset | None, AnyDatasets | None]:
        """Both sets checked, before the host's constructor takes facts (is it a chat?) from the first row."""

        def check(dataset: AnyDataset | None, name: str) -> AnyDataset | None:
            if not isinstance(dataset, Dataset | IterableDataset):
                return dataset  # none, or what the host will refuse
            return self.check_rows(unformatted(dataset), args, formatting_func, name)

        train = check(train, "train")
        if isinstance(evaluation, dict):
            evaluation = {name: check(rows, name) for name, rows in evaluation.items()}
        else:
            evaluation = check(evaluation, "eval")
        self.rows_are_checked = True
        return train, evaluation

    def see_original(
        self, model: AnyModel, processing_class: PreTrainedTokenizerBase | None, args: WeightedSFTConfig, **kwargs: Any
    ) -> tuple[AnyModel, PreTrainedTokenizerBase | None]:
        """Called before the host changes model or tokenizer; returns the two to go on with."""
        return model, processing_class

    def check_rows(
        self, dataset: AnyDataset, args: WeightedSFTConfig, formatting_func: Callable | None, dataset_name: str
    ) -> AnyDataset:
        """Preflight of raw rows: numbers them, raises or drops malformed ones, and leaves what the host may see."""
        dataset = host_rows(
            dataset, args, formatting_func, dataset_name, on_bad_row=args.on_bad_row, bad_rows_path=args.bad_rows_path
        )
        if dataset_name == "train" and "weight" not in column_names(dataset):
            self.on_missing_weight()
        return dataset

    def on_missing_weight(self) -> None:
        """Say once that the training rows have no `weight` column."""
        logger.warning("The train dataset has no 'weight' column: every row's weight is 1, as in plain SFT.")

    def tokenise(
        self,
        rows: AnyDataset,
        host: Callable[[AnyDataset], AnyDataset],
        tokenizer: PreTrainedTokenizerBase,
        args: WeightedSFTConfig,
        dataset_name: str,
    ) -> AnyDataset:
        """The host's tokenising, with padding removed and rows named that the chat template does not take."""
        warn_of_unread_parts(rows, self.chat_template or tokenizer.chat_template, dataset_name)
        return tokenise_checked(
            rows, host, tokenizer, args,
            chat_template=self.chat_template, dataset_name=dataset_name,
        )  # fmt: skip

    def prepare_rows(
        self, dataset: AnyDataset, args: WeightedSFTConfig, packing: bool, dataset_name: str
    ) -> AnyDataset:
        """Truncate, pack and shuffle with `weight` and `__hf_ext_row__`."""
        return finish_rows(
            dataset, args, packing, dataset_name, on_bad_row=args.on_bad_row, bad_rows_path=args.bad_rows_path
        )

    def signature_columns(self) -> list[str]:
        """Columns the collator reads beyond TRL's."""
        return ["weight", ROW_INDEX]

    # --- loss ------------------------------------------------------------------------------------------------------

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The loss's denominator for one optimiser step, summed over micro-batches and processes."""
        total = torch.stack([batch["num_items"].to(device) for batch in batches]).sum()
        return self.sum_over_processes(total) if self.args.average_tokens_across_devices else total

    def loss_scale(self, num_items_in_batch: Tensor | None) -> int:
        """DDP averages gradients over processes; a loss divided by a global denominator is scaled up before."""
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            return self.accelerator.num_processes // self.get_tp_size()
        return 1

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Weighted loss in training, plain loss in evaluation (the weighted one is logged beside it)."""
        weight = inputs.pop("weight")[:, 1:]
        row_index = inputs.pop(ROW_INDEX)[:, 1:]
        items = inputs.pop("num_items")
        recorder = FusedOutputRecorder(model)
        is_training = self.model.training
        loss = super().compute_loss(recorder, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        output = recorder.output
        log_probs = output.log_probs
        weight = with_virtual_tokens(weight, log_probs)
        row_index = with_virtual_tokens(row_index, log_probs, -1)
        if not is_training:
            self.add_ratio("loss_weighted", -(log_probs * weight).sum(), items.sum())
            return loss
        self.guard("weight", weight, row_index)
        self.guard("log-probability", log_probs, row_index)
        denominator = items.sum() if num_items_in_batch is None else num_items_in_batch
        loss = weighted_nll(log_probs, weight, denominator) * self.loss_scale(num_items_in_batch)
        if self.aux_loss_enabled:  # a mean per micro-batch, as in SFTTrainer
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / steps
        self.guard("loss", loss.reshape(1, 1), row_index)
        self.after_forward(TokenValues(log_probs.detach(), weight, output.label_mask, row_index, items))
        return (loss, output) if return_outputs else loss

    def after_forward(self, values: TokenValues) -> None:
        """Called with each training forward's per-token values, for the metrics of a method."""
