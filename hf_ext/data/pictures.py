"""Rows of pictures as classifiers read them: pixels through the model's own image processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Image

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
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

        pictures = [eight_bit(row[self.column]).convert(self.mode) for row in rows]
        batch = dict(self.processor(pictures, return_tensors="pt"))
        if self.label in rows[0]:
            batch["labels"] = torch.tensor([row[self.label] for row in rows])
        return batch


@dataclass(frozen=True)
class PictureDecoder:
    """
    A collator before which pictures are decoded here, where a broken file can be named by its row.

    Args:
        collator (`Callable`):
            What it gives decoded rows to.
        column (`str`):
            Of the pictures, as [`undecoded`] leaves them.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    column: str

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of the collator's."""
        return self.collator([self.decoded(row, row.get(ROW_INDEX)) for row in rows])

    def decoded(self, row: dict[str, Any], index: int | None) -> dict[str, Any]:
        """
        The row with its picture.

        Raises:
            RowError: if the file is broken, missing, far too large, or of numbers whose range is not known.
        """
        value = row.get(self.column)
        if not isinstance(value, dict):
            return row
        try:
            picture = eight_bit(Image().decode_example(value))
        except Exception as error:  # whatever Pillow and its parts raise over a file
            name = Path(value["path"]).name if value.get("path") else "without a name"
            reason = " ".join(str(error).split())
            place = "a row" if index is None else f"row {int(index):,}"
            message = (
                f"{place}, column {self.column!r}: the picture {name:.80} cannot be read "
                f"({type(error).__name__}: {reason:.160}).\n  Replace the file, or drop the row with dataset.filter."
            )
            raise RowError(message, -1 if index is None else int(index), self.column) from error
        return {**row, self.column: picture}


def undecoded(dataset: Any, column: str) -> Any:
    """Rows whose pictures `datasets` leaves as files and bytes, for [`PictureDecoder`]; other rows as they are."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] is not None:
        return dataset
    feature = dataset.features.get(column)
    if not isinstance(feature, Image) or not feature.decode or feature.mode is not None:
        return dataset
    return dataset.cast_column(column, replace(feature, decode=False))


def eight_bit(picture: Any) -> Any:
    """
    A picture of 8 bits a channel: Pillow (13) turns every number above 255 into 255, and 16-bit pictures white.

    Raises:
        ValueError: if its numbers have 32 bits, of which nobody says what white is.
    """
    if picture.mode.startswith("I;16"):
        from PIL import Image as Pillow

        return Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its mode {picture.mode!r} has 32-bit numbers of no known range: scale them to 8 bits")
    return picture


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
