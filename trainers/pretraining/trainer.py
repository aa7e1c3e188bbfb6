"""A stock trainer of language models from scratch: packed sequences, z-loss, DCLM's schedule."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_ext._columns import ROW_INDEX
from hf_ext._upstream.stock import StockTrainerHooks
from hf_ext.losses.weighted_nll import divided
from hf_ext.losses.z_loss import next_token_nll, z_loss
from hf_ext.trainers.base.config import default_output_dir
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.pretraining.architecture import new_model
from hf_ext.trainers.pretraining.card import PretrainingCard
from hf_ext.trainers.pretraining.config import PretrainingConfig
from hf_ext.trainers.pretraining.curve import TrainingCurve
from hf_ext.trainers.pretraining.schedule import warmup_cosine
from hf_ext.trainers.pretraining.sequences import COLUMN, NextTokens, checked_sequences

logger = logging.getLogger(__name__)

AnySets: TypeAlias = Dataset | IterableDataset | dict[str, Dataset | IterableDataset]


class PretrainingTrainer(BaseTrainer, StockTrainerHooks, Trainer):
    r"""
    [`~transformers.Trainer`] of a language model on packed sequences, as DCLM trains its models.

    $$\mathcal{L} = \frac{1}{D} \sum_{b,t} \big(-\log p_\theta(y_{b,t} \mid y_{b,<t}) + \zeta \log^2 Z_{b,t}\big)$$

    $D$ is the number of tokens of the whole accumulated batch over all processes, $\zeta$ is `z_loss_weight`. Every
    token of a sequence but its first is predicted, whichever document it is of: nothing keeps documents apart but the
    end token between them.

    Args:
        model (`PreTrainedModel`, *optional*):
            A causal language model to go on with; by default a new one of `args.architecture`.
        args ([`PretrainingConfig`], *optional*):
            A plain `TrainingArguments` is taken too, and keeps its own schedule.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*):
            What [`pack`] writes: a column `input_ids` of `sequence_length + 1` tokens.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer of the shards, saved with the model.
        **kwargs:
            As in [`~transformers.Trainer`].

    Requirements: no collator and no loss of your own, no label smoothing.

    Raises:
        ValueError: if there is neither a model nor an architecture, or a setting cannot be honoured.
        RowError: if a row has another number of tokens, or a token that the model has no embedding for.
        NonFiniteError: if a loss is not finite; the optimiser step is not taken.

    Metrics: `loss/next_token` (nats per token) and `loss/z` (nats squared per token, before its weight; a healthy
    run's is small and does not grow); `eval_loss` is the plain next-token loss.

    Relations: with `z_loss_weight` 0 it is the host's own causal loss.

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794).
    """

    method = "pretraining"
    config_class: ClassVar[type[PretrainingConfig]] = PretrainingConfig
    card_class = PretrainingCard
    loss_is_scaled_for_ga = True  # the denominator is the whole accumulated batch's
    weight_remedy = "Look at learning_rate and the warm-up."
    args: PretrainingConfig

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: PretrainingConfig | TrainingArguments | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: AnySets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, "pretraining" if model is None else default_output_dir(model, "pretraining"))
        self._refuse(args, kwargs)
        if model is None:
            if not isinstance(args.architecture, dict):
                raise ValueError(
                    "Give a model, or the architecture of a new one: PretrainingConfig(architecture=...)."
                )
            model = new_model(args.architecture, processing_class, seed=args.seed)
        length = args.sequence_length
        if train_dataset is not None:
            train_dataset = checked_sequences(train_dataset, length)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: checked_sequences(rows, length, name) for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = checked_sequences(eval_dataset, length, "eval")
        super().__init__(
            model=model,
            args=args,
            data_collator=NextTokens(length, model.get_input_embeddings().num_embeddings),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._say_epochs()

    def _say_epochs(self) -> None:
        """Warn where the sequences are fewer than the run takes."""
        if not isinstance(self.train_dataset, Dataset) or self.args.max_steps <= 0 or not self.is_world_process_zero():
            return
        num_tokens = self.args.max_steps * self.args.tokens_per_step
        num_available = len(self.train_dataset) * self.args.sequence_length
        if num_tokens > num_available:
            logger.warning(
                "The run takes %s tokens and the train dataset has %s: each of its sequences is read %.2f times on "
                "average.", f"{num_tokens:,}", f"{num_available:,}", num_tokens / num_available,
            )  # fmt: skip

    @classmethod
    def host_values(cls, args: TrainingArguments) -> dict[str, Any]:
        """Fields of plain arguments, which have a schedule of their own."""
        return super().host_values(args) | {"cooldown_learning_rate": None}

    def _refuse(self, args: PretrainingConfig, kwargs: dict[str, Any]) -> None:
        refused = {
            "data_collator": (kwargs.get("data_collator") is not None, "packed sequences need none"),
            "compute_loss_func": (
                kwargs.get("compute_loss_func") is not None, "subclass this trainer and override compute_loss",
            ),
            "label_smoothing_factor": (args.label_smoothing_factor > 0, "set it to 0"),
        }  # fmt: skip
        for setting, (is_set, remedy) in refused.items():
            if is_set:
                raise ValueError(f"{type(self).__name__} does not support {setting}: {remedy}.")

    def carried_columns(self) -> tuple[str, ...]:
        """The number of each row, for errors."""
        return (ROW_INDEX,)

    # --- loss ------------------------------------------------------------------------------------------------------

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor:
        """Tokens that one optimiser step predicts, over micro-batches and processes."""
        total = torch.tensor(sum(batch["labels"].numel() for batch in batches), device=device)
        return self.sum_over_processes(total) if self.args.average_tokens_across_devices else total

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Next-token loss with z-loss in training, without it in evaluation."""
        inputs = dict(inputs)
        row_index = inputs.pop(ROW_INDEX, None)
        targets = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        nll, log_normalizers = next_token_nll(outputs.logits, targets)
        self.guard("loss", nll.mean(dim=1), row_index)
        if not self.model.training:
            loss = nll.mean()
            return (loss, outputs) if return_outputs else loss
        num_tokens = torch.tensor(nll.numel(), device=nll.device)
        self.add_ratio("loss/next_token", nll, num_tokens)
        self.add_ratio("loss/z", log_normalizers.detach().square(), num_tokens)
        denominator = num_tokens if num_items_in_batch is None else num_items_in_batch
        loss = divided(nll.sum(), denominator)
        if self.args.z_loss_weight:
            loss = loss + self.args.z_loss_weight * z_loss(log_normalizers, denominator)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradient is averaged over processes
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def sequence_losses(self, dataset: Dataset) -> list[float]:
        """
        The mean next-token loss of each sequence, in nats per token, by this process alone.

        Args:
            dataset (`Dataset`):
                Packed sequences.

        Raises:
            RowError: if a row has another number of tokens.
        """
        model = self.accelerator.unwrap_model(self.model).eval()
        rows = checked_sequences(dataset, self.args.sequence_length, "held-out")
        losses: list[float] = []
        for batch in rows.select_columns(COLUMN).iter(batch_size=self.args.per_device_eval_batch_size):
            ids = torch.tensor(batch[COLUMN], device=self.args.device)
            with self.accelerator.autocast():
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            losses += next_token_nll(logits, ids[:, 1:])[0].mean(dim=1).tolist()
        return losses

    def curve(self) -> TrainingCurve:
        """Loss by tokens, from the log so far."""
        return TrainingCurve.of_log(self.state.log_history, self.args.tokens_per_step)

    # --- schedule --------------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The host's schedule, or where `cooldown_learning_rate` is set, DCLM's."""
        is_users = self.lr_scheduler is not None
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # the host has to know that it made one
        if is_users or self.args.cooldown_learning_rate is None:
            return scheduler
        factor = partial(
            warmup_cosine,
            num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
            num_steps=num_training_steps,
            end_ratio=self.args.cooldown_learning_rate / self.args.learning_rate if self.args.learning_rate else 0.0,
        )
        self.lr_scheduler = LambdaLR(scheduler.optimizer, factor)
        return self.lr_scheduler
