"""Vectors of rows by an encoder: in batches, kept by fingerprint in a memory-mapped file, continued after a kill."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm.auto import tqdm

from hf_ext.data.vectors.columns import cache_folder, cached_vectors, header, refuse_row
from hf_ext.data.vectors.encoders import REVISION, Encoder, EncoderLike, as_encoder, load_encoder
from hf_ext.guards.disk import flush, flush_folder, writing

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_FILE_REVISION = "2"  # files of revision 1 were written by several processes at once, and may hold mixed rows
_PIECE_ROWS = 2048  # encoded before they are written; texts of like length go together within a piece


@dataclass(frozen=True)
class EmbedRows:
    """
    Add the vector of each row, for `Dataset.map` and `IterableDataset.map` with `batched=True`.

    | column in | type | column out | type |
    |---|---|---|---|
    | `input_column` | str, image, or a list of column names joined by newlines | `column` | list of `d` float32 |

    Args:
        encoder:
            See [`~hf_ext.data.vectors.encoders.as_encoder`]. A function gets the values of `input_column`, or without
            one the batch itself, a dictionary of lists.
        input_column (`str` or `tuple[str, ...]`, *optional*):
            What a model reads; needed for all but a function.
        column (`str`, *optional*, defaults to `"embedding"`):
            Name of the new column.
        images (`bool`, *optional*, defaults to `False`):
            Whether `input_column` holds images.

    Raises:
        RowError: if a row has no text or image; its index counts from the start of the batch.

    Relations: `prune(encoder=...)` keeps the vectors in a file instead, and adds no column. [`EmbedBatches`] does the
    same under Ray Data.
    """

    encoder: EncoderLike
    input_column: str | tuple[str, ...] | None = None
    column: str = "embedding"
    images: bool = False
    revision: str = REVISION  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Encode one batch."""
        is_name = isinstance(self.encoder, (str, Path))
        encoder = as_encoder(_loaded(str(self.encoder)) if is_name else self.encoder, self.images)
        rows = len(next(iter(batch.values())))
        return {self.column: encoder(encoder_input(batch, encoder.reads, self.input_column, 0), rows)}


@lru_cache(maxsize=1)
def _loaded(name: str) -> EncoderLike:
    """Loaded once a process, not once a batch."""
    return load_encoder(name)


class EmbedBatches:
    """
    Add the vector of each row under Ray Data: `rows.map_batches(EmbedBatches, fn_constructor_args=(...))`.

    A class, so that each actor loads the encoder once. A batch is a dictionary of numpy arrays, and so is what it
    gives: the same columns and `column`, of shape `(b, d)` float32. Written to Parquet, [`prune`] reads it.

    Args:
        encoder:
            As for [`EmbedRows`]; a name or folder is loaded when the actor starts.
        input_column, column, images:
            As for [`EmbedRows`].
    """

    def __init__(
        self,
        encoder: EncoderLike,
        input_column: str | tuple[str, ...] | None = None,
        column: str = "embedding",
        images: bool = False,
    ) -> None:
        self.rows = EmbedRows(as_encoder(encoder, images), input_column, column, images)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode one batch of numpy arrays."""
        return {**batch, **self.rows(batch)}


def embed_rows(
    dataset: Dataset,
    encoder: EncoderLike,
    *,
    input_column: str | tuple[str, ...] | list[str] | None = None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> np.ndarray:
    """
    The vectors of all rows, shape `(n, d)` float32, memory-mapped from a file that is named by their fingerprint.

    The fingerprint is that of the dataset, the input columns and the encoder: a model's weights, configuration and
    tokenizer; an importable function's name, not its code. The same call finds the file again, and of several at once
    one fills it while the others wait. Killed, it continues after the last 2,048 rows that were written.

    Args:
        dataset (`Dataset`):
            Rows with text or images.
        encoder:
            See [`~hf_ext.data.vectors.encoders.as_encoder`]. A model runs on the device and in the precision it is in.
        input_column (`str` or `list[str]`, *optional*):
            Column to read; several texts are joined by newlines. By default `text`, or the only column of texts or
            images. A function without it gets the batch, a dictionary of lists.
        batch_size (`int`, *optional*, defaults to 64):
            Rows the encoder gets at a time.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the file; `hf_ext_pruning` in the cache of `datasets` by default. Its files may be deleted.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar.

    Returns:
        `np.ndarray`: read-only.

    Raises:
        RowError: if a row has no text or image.
        ValueError: if there is no row or no column to read, or the encoder cannot be used.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not len(dataset):
        raise ValueError("The dataset is empty: there is no row to encode. Check its filters and split.")
    columns, images = input_columns(dataset.features, input_column, encoder)
    wrapped = as_encoder(encoder, images)
    path = cache_folder(cache_dir) / f"{_key(dataset, columns, wrapped, batch_size)}.npy"
    vectors = cached_vectors(
        path, len(dataset), lambda: _fill(path, dataset, columns, wrapped, batch_size, show_progress)
    )
    if path.name.startswith("once-") and os.name != "nt":
        path.unlink()  # nobody could find it again; what is mapped stays until it is let go
    return vectors


def input_columns(
    features: Mapping[str, Any], input_column: str | tuple[str, ...] | list[str] | None, encoder: EncoderLike
) -> tuple[tuple[str, ...], bool]:
    """
    The columns an encoder reads, and whether they hold images; no column for a function that takes the whole batch.

    Raises:
        ValueError: if a column is missing or of another type, or there are several to choose from.
    """
    from datasets import Image

    if input_column is not None:
        columns = (input_column,) if isinstance(input_column, str) else tuple(input_column)
        missing = [name for name in columns if name not in features]
        if missing:
            raise ValueError(f"input_column={missing[0]!r}: the dataset has no such column (it has {list(features)}).")
        images = [isinstance(features[name], Image) for name in columns]
        if any(images) and len(columns) > 1:
            raise ValueError(f"input_column={list(columns)}: images are read from one column, texts from several.")
        return columns, images[0]
    if callable(encoder) and as_encoder(encoder).reads == "batch":
        return (), False
    texts = ("string", "large_string")
    candidates = [
        name for name, kind in features.items() if isinstance(kind, Image) or getattr(kind, "dtype", None) in texts
    ]
    if "text" in candidates:
        candidates = ["text"]
    if len(candidates) != 1:
        hint = f"candidates: {candidates}" if candidates else "none of them holds text or images"
        raise ValueError(
            f"Which column shall the encoder read? Columns: {list(features)}, {hint}. Name it with input_column=."
        )
    return (candidates[0],), isinstance(features[candidates[0]], Image)


def encoder_input(
    batch: Mapping[str, Any], reads: str, columns: str | tuple[str, ...] | None, first: int
) -> Mapping[str, Any] | list:
    """
    What the encoder gets of a batch; `first` is the number of its first row, for errors.

    Raises:
        ValueError: if a model is given no column.
        RowError: if a row has no text or image.
    """
    names = (columns,) if isinstance(columns, str) else tuple(columns or ())
    if not names:
        if reads != "batch":
            raise ValueError("Name the column that the encoder reads with input_column=.")
        return batch
    parts = [list(batch[name]) for name in names]
    if reads != "batch":
        for name, values in zip(names, parts, strict=True):
            for place, value in enumerate(values):
                if value is None or (reads == "text" and not isinstance(value, str)):
                    row = {key: column[place] for key, column in batch.items()}
                    expected = "a string" if reads == "text" else "an image"
                    actual = "None" if value is None else type(value).__name__
                    refuse_row(row, first + place, name, f"expected {expected}, found {actual}")
    return parts[0] if len(parts) == 1 else ["\n".join(map(str, texts)) for texts in zip(*parts, strict=True)]


def _key(dataset: Dataset, columns: tuple[str, ...], encoder: Encoder, batch_size: int) -> str:
    from datasets.fingerprint import Hasher, generate_random_fingerprint

    identity = encoder.identity()
    if identity is None:
        logger.warning(
            "The encoder cannot be hashed (it cannot be pickled), so its vectors are computed again each time. Use an "
            "importable function, or embed the rows once with Dataset.map(EmbedRows(...)) and save them."
        )
        return f"once-{generate_random_fingerprint()}"
    # The batch size is part of it: padding to the longest text of a batch moves the last bits.
    return f"vectors-{Hasher.hash([dataset._fingerprint, columns, identity, batch_size, REVISION, _FILE_REVISION])}"


def _fill(
    path: Path, dataset: Dataset, columns: tuple[str, ...], encoder: Encoder, batch_size: int, show_progress: bool
) -> None:
    """
    Write the vectors piece by piece under another name, then rename: a file of the right name is whole.

    The file is claimed: what lies under the other name is of a process that ended, and is continued.
    """
    n = len(dataset)
    rows = dataset.with_format(None)
    rows = rows.select_columns(list(columns)) if columns else rows
    partial = path.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    step = max(1, _PIECE_ROWS // batch_size) * batch_size  # whole batches: a continued run makes the same ones
    advice = "The vectors written so far are kept: free some space and run again."
    with writing("the vectors", path, advice=advice), open(partial, "ab") as file:
        rows_written, d = _continued(partial, file, n, step)
        with tqdm(total=n, initial=rows_written, desc="Encoding rows", unit="row", disable=not show_progress) as bar:
            for first in range(rows_written, n, step):
                batch = rows[first : first + step]
                vectors = _encoded(batch, columns, encoder, batch_size, first)
                if d is None:
                    d = vectors.shape[1]
                    header(file, n, d)
                _refuse_width(vectors, d)
                file.write(vectors.data)
                file.flush()
                os.fsync(file.fileno())  # after a power cut a length must not stand for numbers that never came
                bar.update(len(vectors))
    flush(partial)
    os.replace(partial, path)
    flush_folder(path.parent)


def _continued(partial: Path, file: BinaryIO, n: int, step: int) -> tuple[int, int | None]:
    """Whole pieces that an earlier run wrote, and their width; a piece that it had begun is cut off."""
    with open(partial, "rb") as earlier_file:
        try:
            np.lib.format.read_magic(earlier_file)
            shape, _, kind = np.lib.format.read_array_header_1_0(earlier_file)
        except ValueError:  # empty, or cut inside its head
            shape = ()
            kind = None
        if len(shape) != 2 or shape[0] != n or shape[1] < 1 or kind != np.float32:
            file.truncate(0)
            return 0, None
        d = shape[1]
        head = earlier_file.tell()
    rows = (partial.stat().st_size - head) // (4 * d) // step * step
    file.truncate(head + 4 * d * rows)
    return rows, d


def _encoded(
    batch: dict[str, Any], columns: tuple[str, ...], encoder: Encoder, batch_size: int, first: int
) -> np.ndarray:
    """Vectors of a piece, in the rows' order; texts are encoded from the longest to the shortest."""
    count = len(next(iter(batch.values())))
    values = encoder_input(batch, encoder.reads, columns, first)
    slices = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    if encoder.reads == "batch":
        return _joined([encoder(_part(values, place), len(range(*place.indices(count)))) for place in slices])
    order = np.arange(count)
    if encoder.reads == "text":  # texts of like length together need the least padding
        order = np.argsort([-len(text) for text in values], kind="stable")
    vectors = _joined([encoder([values[i] for i in order[place]], len(order[place])) for place in slices])
    in_row_order = np.empty_like(vectors)
    in_row_order[order] = vectors
    return in_row_order


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    for part in parts:
        _refuse_width(part, parts[0].shape[1])
    return np.concatenate(parts)


def _refuse_width(vectors: np.ndarray, d: int) -> None:
    if vectors.shape[1] != d:
        raise ValueError(f"The encoder gave vectors of {vectors.shape[1]} numbers after those of {d}.")


def _part(values: Mapping[str, Any] | list, place: slice) -> Mapping[str, Any] | list:
    if isinstance(values, Mapping):
        return {name: column[place] for name, column in values.items()}
    return values[place]
