"""What a mixture is fitted to: features, labels and weights of a dataset's rows, each looked at before the fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, IterableDataset, List, Value
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from hf_ext.data.vectors.columns import BATCH_ROWS, column_vectors, refuse_row
from hf_ext.data.vectors.embedding import embed_rows, input_columns
from hf_ext.guards.rows import RowError

EMBEDDINGS = "embeddings"
WEIGHT = "weight"


@dataclass(frozen=True)
class LabelKind:
    """
    What the labels of the training rows are.

    Args:
        is_number (`bool`):
            Whether they are numbers rather than classes.
        size (`int`):
            Classes, or numbers a label.
        names (`tuple[str, ...]`, *optional*):
            Of the classes.
    """

    is_number: bool
    size: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class FeatureRows(TorchDataset):
    """
    Rows as the model reads them.

    Args:
        rows (`Dataset`):
            What they were made of.
        features (`np.ndarray` of shape `(n, d)`):
            float32, read-only; may be mapped from a file.
        labels (`np.ndarray` of shape `(n,)` or `(n, m)`, *optional*):
            int64 classes, or float64 numbers.
        weights (`np.ndarray` of shape `(n,)`, *optional*):
            float64, unitless.
    """

    rows: Dataset
    features: np.ndarray
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {EMBEDDINGS: np.array(self.features[index])}
        if self.labels is not None:
            row["labels"] = self.labels[index]
        if self.weights is not None:
            row[WEIGHT] = np.float32(self.weights[index])  # of a mini-batch; a fit reads them in float64
        return row

    def share(self, process: int, processes: int) -> slice:
        """Rows of one of several processes, consecutive."""
        return slice(process * len(self) // processes, (process + 1) * len(self) // processes)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of [`FeatureRows`]; numbers are float32, as the model's outputs are."""
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return {name: values.float() if values.is_floating_point() else values for name, values in batch.items()}


@dataclass(frozen=True)
class FeatureReader:
    """
    Makes [`FeatureRows`] of datasets, all in the same way.

    Args:
        encoder (`Any`, *optional*):
            As of [`~hf_ext.data.vectors.embedding.embed_rows`]; without one the column `embeddings` is read.
        input_column (`str`, *optional*):
            What the encoder reads.
        label_column (`str`):
            Column of the labels.
        batch_size (`int`):
            Rows that the encoder gets at a time.
        show_progress (`bool`):
            Whether to show a bar.
    """

    encoder: Any
    input_column: str | None
    label_column: str
    batch_size: int
    show_progress: bool

    def read(self, rows: Dataset, kind: LabelKind | None, width: int | None = None, name: str = "") -> FeatureRows:
        """
        Features, labels and weights of rows.

        Args:
            rows (`Dataset`):
                With texts or `embeddings`, and perhaps labels and `weight`.
            kind ([`LabelKind`], *optional*):
                What the labels are; without it none are read.
            width (`int`, *optional*):
                Features of the training rows.
            name (`str`, *optional*):
                Of the rows, for messages.

        Raises:
            ValueError: if a column is missing or of another kind, or features are of another width.
            RowError: if a row has no finite features, no label, a label that is no class, or no usable weight.
        """
        with _named(name):
            labels = None if kind is None else _labels(rows, self.label_column, kind)
            weights = _weights(rows) if WEIGHT in rows.column_names else None
            features = self._features(rows)
            _refuse_infinite(rows, features, self.encoder_column(rows))
        if width is not None and features.shape[1] != width:
            raise ValueError(
                f"the {name} rows have {features.shape[1]} features, the training rows {width}: embed both with the "
                "same encoder."
            )
        return FeatureRows(rows, features, labels, weights)

    def encoder_column(self, rows: Dataset) -> str:
        """The column that features come from."""
        if self.encoder is None:
            return EMBEDDINGS
        return input_columns(rows.features, self.input_column, self.encoder)[0][0]

    def text_of(self, rows: Dataset, index: int) -> str:
        """What is shown of a row: its text, where it has one."""
        if self.encoder is None:
            return str(rows[index]["text"]) if "text" in rows.column_names else ""
        columns, are_images = input_columns(rows.features, self.input_column, self.encoder)
        return "" if are_images else str(rows[index][columns[0]])

    def _features(self, rows: Dataset) -> np.ndarray:
        if self.encoder is not None:
            return embed_rows(
                rows, self.encoder, input_column=self.input_column, batch_size=self.batch_size,
                show_progress=self.show_progress,
            )  # fmt: skip
        if EMBEDDINGS not in rows.column_names:
            raise ValueError(
                f"the rows have no column {EMBEDDINGS!r} (they have {rows.column_names}): pass the encoder that reads "
                "them, as in MoEEMTrainer(encoder, args, train_dataset=rows)."
            )
        return column_vectors(rows, EMBEDDINGS)[0]


def require_rows(rows: object, name: str) -> None:
    """
    Refuse what is no dataset with rows.

    Raises:
        ValueError: if it is a stream, or empty.
        TypeError: if it is something else.
    """
    if isinstance(rows, IterableDataset):
        raise ValueError(
            f"the {name} rows are a stream, and an iteration reads all rows: cache embeddings, as "
            "Dataset.map(EmbedRows(...)) does, or fit a stream by hf_ext.moe.stochastic.StochasticMixtureFit."
        )
    if not isinstance(rows, Dataset):
        raise TypeError(f"the {name} rows must be a datasets.Dataset, got {type(rows).__name__}.")
    if not len(rows):
        raise ValueError(f"the {name} dataset is empty: check its filters and split.")


def kind_of_labels(rows: Dataset, column: str) -> LabelKind:
    """
    What the labels of training rows are.

    Raises:
        ValueError: if there is no such column, or it holds neither classes nor numbers.
    """
    _require_column(rows, column)
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return LabelKind(False, feature.num_classes, tuple(feature.names))
    if isinstance(feature, List):
        return LabelKind(True, column_vectors(rows, column)[0].shape[1])
    kind = feature.dtype if isinstance(feature, Value) else ""
    if kind.startswith("float"):
        return LabelKind(True, 1)
    if kind.startswith(("int", "uint", "bool")):
        values = _column(rows, column)
        largest = max((int(value) for value in values.drop_null().unique().to_pylist()), default=0)
        return LabelKind(False, max(2, largest + 1))
    raise ValueError(
        f"column {column!r} holds {feature}, neither classes nor numbers: number the classes with "
        f"rows.class_encode_column({column!r})."
    )


def _require_column(rows: Dataset, column: str) -> None:
    if column not in rows.column_names:
        raise ValueError(
            f"the rows have no column {column!r} (they have {rows.column_names}): name that of the labels in "
            "label_column."
        )


def _column(rows: Dataset, column: str) -> Any:
    """A column as a chunked array of Arrow."""
    return rows.select_columns(column).with_format("arrow")[:].column(column)


def _labels(rows: Dataset, column: str, kind: LabelKind) -> np.ndarray:
    _require_column(rows, column)
    if kind.is_number and isinstance(rows.features[column], List):
        numbers = column_vectors(rows, column)[0]
        if numbers.shape[1] != kind.size:
            raise ValueError(f"a label has {numbers.shape[1]} numbers, one of the training rows {kind.size}.")
        _refuse_infinite(rows, numbers, column)
        return numbers.astype(np.float64)
    values = _column(rows, column)
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy())[0])
        refuse_row(rows.with_format(None)[place], place, column, "there is no label (None)", "Drop the row.")
    try:
        labels = values.to_numpy().astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"column {column!r} holds {rows.features[column]}, the training rows numbers.") from None
    if kind.is_number:
        _refuse_where(rows, ~np.isfinite(labels), column, labels, "the label is {}", "Drop the row.")
        return labels
    is_class = (labels >= 0) & (labels < kind.size) & (labels == np.floor(labels))
    remedy = "Rows of -100 have no label: drop them. Number the classes from 0."
    problem = f"the label is {{:g}}, not a class from 0 to {kind.size - 1}"
    _refuse_where(rows, ~is_class, column, labels, problem, remedy)
    return labels.astype(np.int64)


def _weights(rows: Dataset) -> np.ndarray:
    values = _column(rows, WEIGHT).to_pylist()
    weights = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    is_usable = np.isfinite(weights) & (weights >= 0)
    _refuse_where(rows, ~is_usable, WEIGHT, weights, "the weight is {}", "A weight is finite and at least 0.")
    if not weights.sum() > 0:
        raise ValueError("every weight is 0: no row would be fitted. 1 is usual.")
    return weights


def _refuse_where(
    rows: Dataset, is_bad: np.ndarray, column: str, values: np.ndarray, problem: str, remedy: str
) -> None:
    places = np.flatnonzero(is_bad)
    if len(places):
        place = int(places[0])
        refuse_row(rows.with_format(None)[place], place, column, problem.format(values[place]), remedy)


def _refuse_infinite(rows: Dataset, values: np.ndarray, column: str) -> None:
    for start in range(0, len(values), BATCH_ROWS):
        places = np.argwhere(~np.isfinite(values[start : start + BATCH_ROWS]))
        if len(places):
            place = start + int(places[0, 0])
            dimension = int(places[0, 1])
            problem = f"dimension {dimension} is {values[place, dimension]}"
            refuse_row(rows.with_format(None)[place], place, column, problem)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of rows say of which set they are."""
    try:
        yield
    except RowError as error:
        if not name:
            raise
        raise RowError(f"{name} dataset, {error}", error.row_index, error.column) from None


def sets_of(rows: Dataset | Mapping[str, Dataset] | None) -> dict[str, Dataset]:
    """Evaluation rows by name."""
    if rows is None:
        return {}
    return dict(rows) if isinstance(rows, Mapping) else {"evaluation": rows}
