"""What a mixture is fitted to: features, labels and weights of a dataset's rows, each looked at before the fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, List, Value
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from hf_ext.data.vectors.columns import BATCH_ROWS, column_vectors, refuse_row
from hf_ext.data.vectors.embedding import embed_rows, input_columns
from hf_ext.guards.rows import RowError

EMBEDDINGS = "embeddings"
WEIGHT = "weight"
_TEXTS = ("string", "large_string")
_USUAL_CLASSES = 1000  # more of them than rows are numbers of something else, which would fill the memory
_FLOAT32_SPREADS = (1e-15, 1e15)  # of labels: the square of an error has to be a float32, too
_FLOAT32_RATIO = 1e6  # of a label's size to the labels' spread: beyond it float32 rounds their differences away


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
                "them, as in MoEEMTrainer(encoder, args, train_dataset=rows), or name your column of vectors so, as "
                f"EmbedRows(..., column={EMBEDDINGS!r}) does."
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
            "Dataset.map(EmbedRows(..., column='embeddings')) does, or fit a stream by "
            "hf_ext.moe.stochastic.StochasticMixtureFit."
        )
    if not isinstance(rows, Dataset):
        remedy = f"choose a split ({', '.join(rows)})" if isinstance(rows, DatasetDict) else "make one of them"
        raise TypeError(f"the {name} rows must be a datasets.Dataset, got {type(rows).__name__}: {remedy}.")
    if not len(rows):
        raise ValueError(f"the {name} dataset is empty: check its filters and split.")


def kind_of_labels(rows: Dataset, column: str, expert_type: str | None = None) -> LabelKind:
    """
    What the labels of training rows are: texts are names of classes, sorted; integers are classes, or of linear
    experts numbers.

    Raises:
        ValueError: if there is no such column, it holds neither classes nor numbers, or integers that number no
            classes.
    """
    _require_column(rows, column)
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return LabelKind(False, feature.num_classes, tuple(feature.names))
    if isinstance(feature, List) and getattr(feature.feature, "dtype", "").startswith("float"):
        return LabelKind(True, column_vectors(rows, column)[0].shape[1])
    kind = feature.dtype if isinstance(feature, Value) else ""
    is_integer = kind.startswith(("int", "uint", "bool"))
    if kind.startswith("float") or (is_integer and expert_type == "linear"):
        return LabelKind(True, 1)
    if not is_integer and kind not in _TEXTS:
        raise ValueError(
            f"column {column!r} holds {feature}: a label is a class (a ClassLabel, an integer or a name), or one or "
            "several floating point numbers. rows.cast_column makes them."
        )
    values = _column(rows, column).drop_null().unique().to_pylist()
    if kind in _TEXTS:
        if len(values) < 2:
            raise ValueError(f"column {column!r} holds {len(values)} class(es), {values}: there is nothing to tell.")
        return LabelKind(False, len(values), tuple(sorted(values)))
    largest = max(map(int, values), default=0)
    if largest >= max(_USUAL_CLASSES, len(rows)):
        raise ValueError(
            f"column {column!r} holds the class {largest:,} in {len(rows):,} rows, and classes count from 0: number "
            f"them with rows.class_encode_column({column!r}), or predict numbers with expert_type='linear'."
        )
    return LabelKind(False, max(2, largest + 1))


def check_spread(labels: np.ndarray, column: str) -> None:
    """
    Refuse numbers that a model in float32 could not predict.

    Raises:
        ValueError: if their spread is out of float32's range, or lost beside their size.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(labels.std(0).max())
    size = float(np.abs(labels).max())
    if spread <= 1e-12 * size:  # all the same, which the fit refuses
        return
    least, most = _FLOAT32_SPREADS
    if not least <= spread <= most or size > _FLOAT32_RATIO * spread:
        raise ValueError(
            f"column {column!r} holds labels up to {size:g} that vary by {spread:g}, which the model's float32 "
            "numbers do not hold: shift and scale them first."
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
        row_number = int(np.flatnonzero(values.is_null().to_numpy())[0])
        refuse_row(rows.with_format(None)[row_number], row_number, column, "there is no label (None)", "Drop the row.")
    names = _names_to_number(rows, column, values, kind)
    if names is not None:
        assert kind.names is not None
        numbers_of = {name: number for number, name in enumerate(kind.names)}
        for row_number, name in enumerate(names):
            if name not in numbers_of:
                problem = f"the label is {name!r}, none of the training rows' {len(kind.names)} classes"
                refuse_row(rows.with_format(None)[row_number], row_number, column, problem)
        return np.array([numbers_of[name] for name in names], dtype=np.int64)
    try:
        labels = values.to_numpy().astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"column {column!r} holds {rows.features[column]}, the training rows numbers.") from None
    if kind.is_number:
        _refuse_where(rows, ~np.isfinite(labels), column, labels, "the label is {}", "Drop the row.")
        return labels
    is_class = (labels >= 0) & (labels < kind.size) & (labels == np.floor(labels))
    remedy = "Rows of -100 or -1 have no label: drop them. Number the classes from 0."
    problem = f"the label is {{:g}}, not a class from 0 to {kind.size - 1}"
    _refuse_where(rows, ~is_class, column, labels, problem, remedy)
    return labels.astype(np.int64)


def _names_to_number(rows: Dataset, column: str, values: Any, kind: LabelKind) -> list[str] | None:
    """Names of the labels where they are not numbered yet, or in another order than those of the training rows."""
    feature = rows.features[column]
    if kind.names is None:
        return None
    if getattr(feature, "dtype", "") in _TEXTS:
        return values.to_pylist()
    if not isinstance(feature, ClassLabel) or tuple(feature.names) == kind.names:
        return None
    names = dict(enumerate(feature.names))
    return [names.get(number, str(number)) for number in values.to_pylist()]


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
    positions = np.flatnonzero(is_bad)
    if len(positions):
        row_number = int(positions[0])
        refuse_row(rows.with_format(None)[row_number], row_number, column, problem.format(values[row_number]), remedy)


def _refuse_infinite(rows: Dataset, values: np.ndarray, column: str) -> None:
    for start in range(0, len(values), BATCH_ROWS):
        positions = np.argwhere(~np.isfinite(values[start : start + BATCH_ROWS]))
        if len(positions):
            row_number = start + int(positions[0, 0])
            dimension = int(positions[0, 1])
            problem = f"dimension {dimension} is {values[row_number, dimension]}"
            refuse_row(rows.with_format(None)[row_number], row_number, column, problem)


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
