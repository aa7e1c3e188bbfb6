"""Rows of pictures as classifiers read them: pixels through the model's own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Image

from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the channels that a model reads


@dataclass(frozen=True)
class PictureCollator:
    """
    A batch of pictures as the model reads them.

    Args:
        processor (image processor):
            Of the model.
        column (`str`, *optional*, defaults to `"image"`):
            Of the pictures, decoded by `datasets`.
        label (`str`, *optional*, defaults to `"label"`):
            Of the classes; rows to predict have none.
        mode (`str`, *optional*, defaults to `"RGB"`):
            Pillow's name of the colours that the model reads: `"L"` is grey.
    """

    processor: Any
    column: str = "image"
    label: str = "label"
    mode: str = "RGB"

    @classmethod
    def of(cls, model: nn.Module, processor: Any, column: str = "image", label: str = "label") -> PictureCollator:
        """
        The collator with the colours that a model reads.

        Raises:
            ValueError: if its configuration names a number of channels that pictures do not have.
        """
        channels = getattr(getattr(model, "config", None), "num_channels", 3)
        if channels not in MODES:
            raise ValueError(
                f"The model reads {channels!r} channels, which no picture has ({sorted(MODES)}). Pass a data_collator "
                "that makes pixel_values."
            )
        return cls(processor, column, label, MODES[channels])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pixels, and labels where the rows have them."""
        import torch

        pictures = [row[self.column].convert(self.mode) for row in rows]
        batch = dict(self.processor(pictures, return_tensors="pt"))
        if self.label in rows[0]:
            batch["labels"] = torch.tensor([row[self.label] for row in rows])
        return batch


def require_pictures(dataset: Dataset, column: str) -> None:
    """
    Refuse a column that holds no pictures, or lacks one, before any is decoded.

    Raises:
        ValueError: if the column is of another type than `datasets.Image`.
        RowError: names the first row without a picture.
    """
    if not isinstance(dataset.features[column], Image):
        raise ValueError(
            f"column {column!r} is {dataset.features[column]}, and no picture: cast it with "
            f"dataset.cast_column({column!r}, datasets.Image())."
        )
    start = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        holes = np.flatnonzero(table[column].is_null().to_numpy())
        if len(holes):
            index = start + int(holes[0])
            message = (
                f"row {index:,}, column {column!r}: expected a picture, found None.\n  Drop it with dataset.filter."
            )
            raise RowError(message, index, column)
        start += len(table)


def is_picture_processor(processor: Any) -> bool:
    """Whether it is an image processor of transformers, alone (not one of several in a `ProcessorMixin`)."""
    from transformers import BaseImageProcessor

    return isinstance(processor, BaseImageProcessor)
