"""Picture files of every kind: read as they are meant, or named by their row."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from hf_ext.data.class_losses import add_original_class_losses
from hf_ext.data.pictures import PictureCollator
from hf_ext.guards.row_errors import RowError
from hf_ext.trainers.weighted_classification import WeightedTrainer
from tests.trainers.pictures import NAMES, SIZE, tiny_processor, tiny_resnet, weighted_config
from tests.trainers.runs import train

GREY = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def file_of(picture: Picture.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 by 60,000."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def rows_of(*files: bytes | dict[str, Any]) -> Dataset:
    """Rows of these files, between whole ones."""
    values = [file if isinstance(file, dict) else {"bytes": file, "path": None} for file in files]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": values, "label": [i % 3 for i in range(len(values))]}, features=features)


WHOLE = file_of(Picture.fromarray(GREY))
BROKEN: dict[str, bytes | dict[str, Any]] = {
    "cut": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "text": b"<html>not found</html>",
    "bomb": bomb(),
    "damaged": WHOLE[:60] + b"\0" * 20 + WHOLE[80:],
    "missing": {"bytes": None, "path": "/nowhere/cat.png"},
    "32-bit": file_of(Picture.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_cannot_be_read_is_named_by_its_row(kind: str, tmp_path: Path) -> None:
    rows = rows_of(WHOLE, WHOLE, WHOLE, BROKEN[kind], WHOLE, WHOLE)
    sentence = r"row 3, column 'image': the picture .* cannot be read \(.*\)\.\n  Replace the file, or drop"
    with pytest.raises(RowError, match=sentence) as error:
        add_original_class_losses(rows, tiny_resnet(), tiny_processor(), batch_size=2, show_progress=False)
    assert (error.value.row_index, error.value.column) == (3, "image")
    for collator in (None, PictureCollator(tiny_processor(), mode="L")):  # made by the trainer, or by the recipe
        args = weighted_config(tmp_path, remove_unused_columns=False, per_device_train_batch_size=2)
        trainer = WeightedTrainer(
            tiny_resnet(), args, data_collator=collator, train_dataset=rows, processing_class=tiny_processor()
        )
        with pytest.raises(RowError, match=sentence) as error:
            trainer.train()
        assert error.value.row_index == 3
    with pytest.raises(RowError, match="a row, column 'image': the picture"):
        trainer.evaluate(rows)


def test_pictures_of_every_mode_are_read_as_they_are_meant(tmp_path: Path) -> None:
    grey = Picture.fromarray(GREY)
    sixteen = Picture.fromarray(GREY.astype(np.uint16) * 257)
    inverted = Picture.fromarray(255 - GREY)
    black = Picture.new("L", grey.size)
    files = {
        "grey": WHOLE,
        "16 bits": file_of(sixteen),
        "colours": file_of(grey.convert("RGB")),
        "alpha": file_of(grey.convert("LA")),
        "palette": file_of(grey.convert("P")),
        "CMYK": file_of(Picture.merge("CMYK", [black, black, black, inverted]), "TIFF"),
        "animated": file_of(grey, "GIF", save_all=True, append_images=[black, inverted]),
        "bits": file_of(Picture.new("1", grey.size)),
        "one pixel": file_of(Picture.new("RGBA", (1, 1), (5, 5, 5, 0))),
    }
    rows = rows_of(*files.values())
    pixels = PictureCollator(tiny_processor(), mode="L")(list(rows))["pixel_values"].numpy()
    exact = (GREY.astype(np.float32) / 255 - 0.5) / 0.5
    for name, picture in zip(files, pixels, strict=True):
        if name not in ("bits", "one pixel"):
            np.testing.assert_allclose(picture[0], exact, atol=2 * 1.01 / 255 * (name != "grey"), err_msg=name)
    assert pixels[-2].max() == -1  # black
    assert np.allclose(pixels[-1], 2 * 5 / 255 - 1, atol=0.01)
    args = weighted_config(tmp_path, max_steps=3)
    losses = train(WeightedTrainer(tiny_resnet(), args, train_dataset=rows, processing_class=tiny_processor()))
    assert np.isfinite(losses).all()
