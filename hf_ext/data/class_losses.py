"""Losses of classifiers' rows under the model before tuning: what FLOW makes weights of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import default_data_collator

from hf_ext.data.pictures import (
    PictureCollator,
    PictureDecoder,
    is_picture_processor,
    require_pictures,
    undecoded,
)
from hf_ext.data.provenance import as_adapted, is_peft
from hf_ext.data.relabeling.heads import check_head
from hf_ext.data.scoring import SCORE_COLUMNS
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LABELS = ("labels", "label", "label_ids")  # by which collators and models know them


@torch.no_grad()
def add_original_class_losses(
    dataset: Dataset,
    model: PreTrainedModel,
    processing_class: Any = None,
    *,
    data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    autocast_dtype: torch.dtype | None = None,
    show_progress: bool = True,
) -> Dataset:
    """
    Add each row's loss under a classifier before tuning, for [`flow_temperature`] and [`add_flow_weights`].

    A head that was made anew gives every row about the same loss. Train it first on frozen features, as the paper does
    (`head_only=True` in [`WeightedConfig`]), and score with that model.

    | column out | type |
    |---|---|
    | `original_nll_sum` | float, nats: minus the log-probability of the row's class |
    | `original_num_tokens` | int, 1: a row has one class |

    Args:
        dataset (`Dataset`):
            Rows with a class and a picture, `pixel_values`, or what else the model reads.
        model (`PreTrainedModel`):
            The classifier, in the precision and on the device it is in; dropout off. It is left as it was.
        processing_class (image processor, *optional*):
            Turns the pictures of `image_column` into pixels. Not needed where rows have the model's inputs already.
        data_collator (`Callable`, *optional*):
            The training's, such as `DataCollatorWithPadding(tokenizer)` of tokenised texts. As in a trainer it sees
            the model's inputs, classes and pictures, and no other column.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the pictures.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the classes.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows a forward.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of the forward, as in training.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `Dataset`: the rows with the two columns; columns of these names are replaced.

    Raises:
        ValueError: if the model has no distribution over classes, holds adapters, or a column is missing.
        RowError: if a label is no class of the model, a picture is missing or cannot be decoded, or a loss is not
            finite.
        TypeError: if `dataset` is a stream.

    Reference: Sanyal et al. 2025 (arXiv 2502.02797), Algorithm 1, step 1, and its vision recipe.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"add_original_class_losses needs a Dataset, got {type(dataset).__name__}: a temperature is a property of "
            "the whole set. Materialise the stream first."
        )
    check_head(model)
    if is_peft(model, "PeftModel"):
        raise ValueError(
            "The model holds adapters. Score the rows with the model before they are added (the one with the trained "
            "head), for that is the original one."
        )
    collate = data_collator or _collator(dataset, model, processing_class, image_column, label_column)
    read_columns = {*inspect.signature(model.forward).parameters, *LABELS, image_column, label_column}
    read_rows = undecoded(dataset, image_column)
    decoder = PictureDecoder(collate, image_column)
    device = next(model.parameters()).device
    losses: list[float] = []
    with (
        as_adapted(model),
        tqdm(total=len(dataset), desc="Scoring rows", unit="row", disable=not show_progress) as bar,
    ):
        for start in range(0, len(dataset), batch_size):
            places = range(start, min(start + batch_size, len(dataset)))
            rows = [{name: value for name, value in read_rows[i].items() if name in read_columns} for i in places]
            rows = [decoder.decoded(row, i) for row, i in zip(rows, places, strict=True)]
            inputs = dict(collate(rows))
            labels = next((inputs.pop(name) for name in LABELS if name in inputs), None)
            if labels is None:
                raise ValueError(f"The rows have no classes: no column {label_column!r} among {dataset.column_names}.")
            with nullcontext() if autocast_dtype is None else torch.autocast(device.type, dtype=autocast_dtype):
                logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
            losses += _losses(logits, labels.to(device), start, label_column)
            bar.update(len(rows))
    for column, values in zip(SCORE_COLUMNS, (losses, [1] * len(losses)), strict=True):
        dataset = dataset.remove_columns(column) if column in dataset.column_names else dataset
        dataset = dataset.add_column(column, values)
    return dataset


def _losses(logits: Tensor, labels: Tensor, start: int, label_column: str) -> list[float]:
    """The rows' losses in nats, in float64."""
    classes = logits.shape[-1]
    outside = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if outside:
        index = start + outside[0]
        raise RowError(
            f"row {index:,}, column {label_column!r}: {int(labels[outside[0]])} is none of the model's {classes:,} "
            "classes.\n  Fix the row, or make the model with num_labels= of the dataset.",
            index,
            label_column,
        )
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    broken = (~losses.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        index = start + broken[0]
        raise RowError(f"row {index:,}: the model's loss is {float(losses[broken[0]])}.", index, label_column)
    return losses.tolist()


def _collator(dataset: Dataset, model: PreTrainedModel, processor: Any, image: str, label: str) -> Callable[..., Any]:
    """Pictures through the processor; or the model's inputs and the class, stacked as they are."""
    if is_picture_processor(processor) and image in dataset.column_names and dataset.format["type"] != "custom":
        require_pictures(dataset, image)
        return PictureCollator.of(model, processor, image, label)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        if model.main_input_name not in rows[0]:
            raise ValueError(
                f"The rows have no {model.main_input_name!r}, which {type(model).__name__} reads, and no picture that "
                f"could be: columns {dataset.column_names}. Pass the image processor as processing_class, with "
                f"pictures in {image!r}; or a data_collator."
            )
        inputs = [{name: value for name, value in row.items() if name not in (image, label)} for row in rows]
        classes = [{"label": row[label]} for row in rows if label in row]
        return default_data_collator(
            [{**row, **extra} for row, extra in zip(inputs, classes or [{}] * len(rows), strict=True)]
        )

    return collate
