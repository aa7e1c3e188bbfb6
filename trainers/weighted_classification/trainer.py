"""The stock `Trainer` of a classifier, with a multiplier for each row's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._columns import ROW_INDEX
from hf_ext.data.pictures import (
    PictureCollator,
    PictureDecoder,
    is_picture_processor,
    require_pictures,
    undecoded,
)
from hf_ext.data.relabeling.heads import check_head
from hf_ext.guards.weights import require_row_weights
from hf_ext.losses.weighted_classes import weighted_class_nll
from hf_ext.trainers.base.config import default_output_dir
from hf_ext.trainers.consensus.labels import check_model
from hf_ext.trainers.consensus.trainer import WEIGHT, ChannelLoss, NoisyLabels
from hf_ext.trainers.weighted_classification.config import WeightedConfig


class WeightedLoss(ChannelLoss):
    """Cross-entropy times the row's weight in training; in evaluation without it."""

    def nll(self, logits: Tensor, labels: Tensor, weight: Tensor | None, items: Tensor | int | None) -> Tensor:
        """The loss of a micro-batch."""
        if logits.ndim != 2 or labels.ndim != 1:
            raise ValueError(
                f"WeightedTrainer takes one class a row, with logits of shape (batch, classes); this model gives "
                f"{tuple(logits.shape)} for labels of shape {tuple(labels.shape)}. For tokens use WeightedSFTTrainer "
                "or ForwardCorrectedTrainer."
            )
        is_training = self.trainer.model.training
        weights = weight if is_training and weight is not None else torch.ones_like(labels, dtype=torch.float32)
        labelled = labels != -100
        return weighted_class_nll(logits, labels, weights, labelled.sum() if items is None else items)


class WeightedTrainer(NoisyLabels, Trainer):
    r"""
    [`~transformers.Trainer`] of a classifier of pictures or texts whose rows may carry a `weight`.

    $$\mathcal{L} = -\frac{1}{D} \sum_i w_i \log p_\theta(y_i \mid x_i),\quad
      D = \sum_i w_i \text{ (normalize="weights") or the number of rows ("rows")}$$

    $D$ is that of the whole accumulated batch over all processes. Without the column, or with 1 everywhere, losses and
    weights are the stock trainer's bit for bit. (Not under gradient accumulation of a model that takes loss keywords
    and ignores them, as ResNet does: there the stock trainer multiplies the loss by the number of micro-batches.)

    Args:
        model (`PreTrainedModel`):
            A classifier with one class a row, such as `AutoModelForImageClassification`'s.
        args ([`WeightedConfig`], *optional*):
            A plain `TrainingArguments` is taken too.
        train_dataset, eval_dataset, data_collator, processing_class, callbacks, ...:
            As in `Trainer`. With an image processor as `processing_class` and no collator, rows with a column `image`
            are turned into pixels as they are read.

    | column | type | |
    |---|---|---|
    | `label` (`args.label_column`) | int | the class |
    | `image`, `pixel_values`, or the model's other inputs | | as in `Trainer` |
    | `weight` | float, optional | multiplies the row's loss; finite, at least 0 |

    Requirements: no `compute_loss_func`, label smoothing, regression or several labels a row.

    Raises:
        ValueError: if a setting or the model cannot be used, or all weights are zero.
        RowError: if a weight is not a number of at least 0, a label is no class, or a picture is missing; in `train`,
            if a picture cannot be decoded.
        NonFiniteError: if a logit, weight or loss is not finite, before the optimiser step it would spoil.

    Metrics: those of `Trainer`; `eval_loss` is unweighted, hence comparable with it.

    Relations: `add_original_class_losses` and `add_flow_weights` fill the weights by FLOW; `head_only=True` is the
    linear probe that comes first.

    Reference: Sanyal et al. 2025, *Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting* (arXiv 2502.02797).
    """

    method = "weighted_classification"
    config_class = WeightedConfig
    loss_name = "the weighted one"
    args: WeightedConfig

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, default_output_dir(model, "WeightedClassification"))
        check_head(model)
        if isinstance(train_dataset, Dataset):
            if args.label_column in train_dataset.column_names:
                check_model(model, train_dataset, args.label_column, None)
            if WEIGHT in train_dataset.column_names:
                require_row_weights(train_dataset)
            if train_dataset.format["type"] != "custom" and ROW_INDEX not in train_dataset.column_names:
                train_dataset = train_dataset.add_column(ROW_INDEX, range(len(train_dataset)))
        if data_collator is None and is_picture_processor(processing_class) and _has_pictures(train_dataset):
            for rows in (train_dataset, eval_dataset):
                if isinstance(rows, Dataset):
                    require_pictures(rows, "image")
            data_collator = PictureCollator.of(model, processing_class, label=args.label_column)
            args = copy.copy(args)
            args.remove_unused_columns = False  # the collator reads the picture
        self._picture_column = data_collator.column if isinstance(data_collator, PictureCollator) else None
        train_dataset, eval_dataset = (self._undecoded(rows) for rows in (train_dataset, eval_dataset))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self._picture_column is not None:  # around the collator that takes a row's number away
            decoder: Any = PictureDecoder(self.data_collator, self._picture_column)
            self.data_collator = decoder
        if self.args.head_only:
            backbone_of(self.model)  # refused before anything is done for the run

    def _undecoded(self, rows: Any) -> Any:
        """Rows whose pictures the collator decodes, where it can say which row's file is broken."""
        return rows if self._picture_column is None else undecoded(rows, self._picture_column)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the host; broken pictures are named."""
        return super().get_eval_dataloader(self._undecoded(eval_dataset))

    def make_loss(self, channel: Any) -> WeightedLoss:
        """Cross-entropy times the row's weight; there is no channel."""
        if channel is not None:
            raise ValueError("WeightedTrainer knows no channel of noisy labels: use ForwardCorrectedTrainer.")
        return WeightedLoss(self, None)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the host does; with `head_only` the backbone is frozen meanwhile."""
        if not self.args.head_only:
            return super().train(*args, **kwargs)
        with frozen(backbone_of(self.model)):
            return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As the host, of a backbone in evaluation mode where only the head is trained."""
        if self.args.head_only and self.model.training:
            backbone_of(self.accelerator.unwrap_model(model)).eval()  # the host's step has switched all of it on
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Rows of the accumulated batch, or the sum of their weights."""
        if self.args.normalize == "rows":
            batches = [{name: value for name, value in batch.items() if name != WEIGHT} for batch in batches]
        return super().count_items(batches, device)


def backbone_of(model: nn.Module) -> nn.Module:
    """
    The part of a classifier that makes features.

    Raises:
        ValueError: if the model does not say which part that is.
    """
    backbone = getattr(model, "base_model", model)
    if backbone is model or not isinstance(backbone, nn.Module):
        raise ValueError(
            f"head_only: {type(model).__name__} does not tell its backbone from its head (base_model). Freeze the "
            "backbone yourself with requires_grad_(False), and leave head_only=False."
        )
    return backbone


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters that are not trained inside; those that were trainable are so again afterwards."""
    trainable = [value for value in module.parameters() if value.requires_grad]
    for value in trainable:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in trainable:
            value.requires_grad_(True)


def _has_pictures(rows: Any) -> bool:
    names = getattr(rows, "column_names", None) or []
    has_transform = isinstance(rows, Dataset) and rows.format["type"] == "custom"  # which gives pixels already
    return "image" in names and "pixel_values" not in names and not has_transform
