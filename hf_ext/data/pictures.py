"""Rows of pictures as classifiers read them: pixels through the model's own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        """
        Pixels, and labels where the rows have them.

        Raises:
            RowError: if a row has no picture.
        """
        import torch

        pictures = [self._picture(row, place) for place, row in enumerate(rows)]
        batch = dict(self.processor(pictures, return_tensors="pt"))
        if self.label in rows[0]:
            batch["labels"] = torch.tensor([row[self.label] for row in rows])
        return batch

    def _picture(self, row: dict[str, Any], place: int) -> Any:
        picture = row[self.column]
        if not hasattr(picture, "convert"):
            index = int(row.get(ROW_INDEX, place))
            where = f"row {index:,}" if ROW_INDEX in row else f"row {place:,} of a batch"
            raise RowError(
                f"{where}, column {self.column!r}: expected a picture, found {type(picture).__name__}.\n  Drop it "
                "with dataset.filter, or cast the column with dataset.cast_column(name, datasets.Image()).",
                index,
                self.column,
            )
        return picture.convert(self.mode)


def is_picture_processor(processor: Any) -> bool:
    """Whether it is an image processor of transformers, alone (not one of several in a `ProcessorMixin`)."""
    from transformers import BaseImageProcessor

    return isinstance(processor, BaseImageProcessor)
