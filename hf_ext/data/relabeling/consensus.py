"""Relabel a dataset by a model's predictions: keep what it agrees with, take its word, or weigh it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value
from numpy.typing import NDArray

from hf_ext.data.relabeling.accuracy import (
    IN_SAMPLE,
    Channels,
    channel_classes,
    channel_values,
    noisy_accuracy,
    same_shape,
)
from hf_ext.data.relabeling.channel import FloatArray, RRChannel
from hf_ext.data.relabeling.class_names import check_class_count, numbered_alike
from hf_ext.data.relabeling.columns import (
    IGNORED_LABEL,
    ClassColumn,
    probability_rows,
    refuse_beyond,
    row_error,
)
from hf_ext.data.relabeling.ledger import CHANNEL, TRUE_LABEL
from hf_ext.data.relabeling.privatize import class_names
from hf_ext.data.relabeling.ranks import refuse_different_ranks
from hf_ext.data.relabeling.report import RelabelReport
from hf_ext.data.splits import with_split
from hf_ext.guards.row_text import plain

MODES = ("consensus", "full", "bayes", "bayes_soft")
OUT_OF_FOLD = "pred_is_out_of_fold"
LABEL_PROBS = "label_probs"
SMALLEST_WEIGHT = 1e-3  # of a class, below which bayes_soft leaves it out


class EmptyConsensusError(ValueError):
    """No label is left: the model agrees with none of the given ones."""


@dataclass(frozen=True)
class ConsensusFilter:
    """
    Keep the rows whose given label is what the model predicts, for `Dataset.filter`, batched or not.

    Args:
        label (`str`, *optional*, defaults to `"label"`), prediction (`str`, *optional*, defaults to `"pred"`):
            Columns of the given and the predicted class, one a row (for tokens, `relabel` masks instead of dropping).
            Two `ClassLabel`s in another order are compared by name where `batched=True` shows them to the filter; row
            by row, and of a stream, it sees numbers alone.
        probs (`str`, *optional*):
            Column of the predicted distribution; needed for the next two.
        min_prob (`float`, *optional*):
            Least predicted probability of the given label.
        top_k (`int`, *optional*, defaults to 1):
            Keep a row whose label is among the `top_k` likeliest classes.

    Raises:
        ValueError: if `min_prob` or `top_k` comes without `probs`, or is out of range.
        RowError: if a value is no class, or no distribution.

    Reference: Das et al. 2025, *Retraining with Predicted Hard Labels Provably Increases Model Accuracy*, section 2
    (arXiv 2406.11206).
    """

    label: str = "label"
    prediction: str = "pred"
    probs: str | None = None
    min_prob: float | None = None
    top_k: int = 1
    revision: str = "2"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __post_init__(self) -> None:
        if self.top_k < 1 or (self.min_prob is not None and not 0 <= self.min_prob <= 1):
            raise ValueError(f"top_k={self.top_k} must be at least 1, min_prob={self.min_prob} between 0 and 1.")
        if self.probs is None and (self.min_prob is not None or self.top_k > 1):
            raise ValueError("min_prob and top_k need probs, the column of predicted distributions ('probs').")

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Whether to keep a row; of a batch a list."""
        is_one_row = not isinstance(plain(batch[self.label]) if self.label in batch else 0, list | tuple)
        rows: Mapping[str, Any] = {name: [value] for name, value in batch.items()} if is_one_row else batch
        features = getattr(getattr(rows, "formatter", None), "features", None) or {}  # of datasets' batch
        given_classes, predicted_classes, order = numbered_alike(
            rows, features, self.label, self.prediction, num_classes=None, offset=None
        )
        if given_classes.lengths is not None or predicted_classes.lengths is not None:
            raise ValueError("ConsensusFilter judges one label a row; for tokens use relabel(mode='consensus').")
        keep = given_classes.flat == predicted_classes.flat
        if self.probs is not None:
            columns = {self.label: given_classes, self.prediction: predicted_classes}
            probs = _distributions(rows, features, self.probs, columns, order, num_classes=None, offset=None)
            probs_of_given = probs[np.arange(len(probs)), given_classes.flat] if len(probs) else np.empty(0)
            if self.top_k > 1:
                keep = (probs > probs_of_given[:, None]).sum(axis=1) < self.top_k
            if self.min_prob is not None:
                keep = keep & (probs_of_given >= self.min_prob)
        return bool(keep[0]) if is_one_row else keep.tolist()


def _distributions(
    batch: Mapping[str, Any],
    features: Mapping[str, Any],
    probs: str,
    columns: Mapping[str, ClassColumn],
    order: NDArray[np.int64] | None,
    num_classes: int | None,
    offset: int | None = 0,
) -> FloatArray:
    """Predicted distributions in the order of the label's classes; `columns` are the label's and the prediction's."""
    label = next(iter(columns))
    num_names = None if order is None else len(order)
    distributions = probability_rows(batch, probs, columns[label], num_classes or num_names, offset=offset)
    width = distributions.shape[1]
    subject = f"the distribution in {probs!r}"
    for name, classes in columns.items():
        refuse_beyond(batch, name, classes, width, subject, offset=offset)
    check_class_count(width, features.get(label), subject, label)
    return distributions if order is None else distributions[:, order]


def bayes_posterior(
    probs: FloatArray, labels: NDArray[np.int64], channel: Channels, channel_ids: Sequence[str] | None = None
) -> FloatArray:
    r"""
    Probability of each true class given a prediction and a noisy label: $P(y \mid x, s) \propto f_y(x)\, T_{y,s}$.

    Args:
        probs (array of shape `(rows, num_classes)`):
            Predicted distributions, of a model that did not see these labels: an overconfident one drowns them.
        labels (array of shape `(rows,)`):
            Noisy classes; a row with -100 keeps its prediction.
        channel ([`RRChannel`], or a mapping of names to them), channel_ids (`Sequence[str]`, *optional*):
            As in [`noisy_accuracy`].

    Returns:
        Array of shape `(rows, num_classes)`; rows sum to one.
    """
    refuse_beyond({"labels": labels}, "labels", ClassColumn(np.asarray(labels), None), probs.shape[1], "probs")
    q, contrast = channel_values(channel, channel_ids, None, len(labels))
    likelihood = np.broadcast_to(np.asarray(q)[..., None] if np.ndim(q) else q, probs.shape).copy()
    labelled = np.flatnonzero(labels != IGNORED_LABEL)
    likelihood[labelled, labels[labelled]] += contrast if np.ndim(contrast) == 0 else contrast[labelled]
    posterior = probs * likelihood
    posterior[labels == IGNORED_LABEL] = probs[labels == IGNORED_LABEL]
    return posterior / posterior.sum(axis=1, keepdims=True)


def relabel(
    dataset: Dataset | DatasetDict,
    mode: str = "consensus",
    channel: Channels | None = None,
    prediction: str = "pred",
    probs: str = "probs",
    min_prob: float | None = None,
    return_report: bool = False,
    *,
    label: str = "label",
    soft: str = "weight",
    split: str = "train",
) -> Any:
    """
    Give rows new labels, from the given ones and a model's predictions. Post-processing: it costs no privacy.

    | mode | rows | `label` |
    |---|---|---|
    | `consensus` | those whose prediction is the given label | the two agree |
    | `full` | all | the prediction |
    | `bayes` | all | the likeliest class given prediction and label |
    | `bayes_soft` | once for every plausible class, or all with `label_probs` | that class, `weight` its probability |

    For token classification no row is dropped: tokens are masked with -100 instead, and `bayes_soft` needs
    `soft="column"`.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            With `label`, and what [`predict_column`] writes. Of a `DatasetDict` only `split` is relabelled;
            the others get the columns that it gains, a `weight` of 1 among them.
        mode (`str`, *optional*, defaults to `"consensus"`):
            See above.
        channel ([`RRChannel`], or a mapping of names to them, *optional*):
            What the given labels passed through; needed for the `bayes` modes, and for accuracy in the report.
        prediction (`str`, *optional*), probs (`str`, *optional*), label (`str`, *optional*):
            Columns.
        min_prob (`float`, *optional*):
            Keep only labels with at least this probability: predicted, or posterior in the `bayes` modes. For
            `bayes_soft` the classes of a row below it are left out (1e-3 by default) and the rest scaled to sum to 1.
        return_report (`bool`, *optional*, defaults to `False`):
            Also return a [`RelabelReport`].
        soft (`str`, *optional*, defaults to `"weight"`):
            How `bayes_soft` writes: `"weight"` repeats a row once a class, with the probability as its `weight`
            (times a `weight` that is there), for any trainer that weighs rows; `"column"` leaves the rows and writes
            `label_probs`, for `soft_nll`. Both are the same loss.
        split (`str`, *optional*, defaults to `"train"`):
            Of a `DatasetDict`.

    Returns:
        `Dataset` (`DatasetDict`), or a tuple of it and a [`RelabelReport`]. `label_dp_epsilon` stays: it was spent.
        `label_dp_channel` gets the mode behind it, since such labels no longer come out of the channel.

    Raises:
        ValueError: if the mode is unknown, or a column or the channel is missing.
        EmptyConsensusError: if the model agrees with no label; it is a `ValueError` too.
        RowError: if a value is no class, or no distribution.
        TypeError: if `dataset` is a stream, which [`ConsensusFilter`] can filter.

    Reference: Das et al. 2025 (arXiv 2406.11206), section 2, for `consensus` and `full`; Bayes' rule for the others.
    """
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"no split {split!r}; there are {list(dataset)}.")
        relabelled, report = relabel(
            dataset[split], mode, channel, prediction, probs, min_prob, True, label=label, soft=soft
        )
        splits = with_split(dataset, split, relabelled, {"weight": 1.0})
        return (splits, report) if return_report else splits
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"relabel needs a Dataset, got {type(dataset).__name__}. A stream: stream.filter(ConsensusFilter())."
        )
    _check_arguments(mode, channel, min_prob, soft)
    work = _Relabelling(dataset, mode, channel, prediction, probs, min_prob, label)
    relabelled = work.soft(soft) if mode == "bayes_soft" else work.hard()
    return (relabelled, work.report) if return_report else relabelled


def _check_arguments(mode: str, channel: Channels | None, min_prob: float | None, soft: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}.")
    if soft not in ("weight", "column"):
        raise ValueError(f"soft={soft!r} is unknown; choose 'weight' or 'column'.")
    if channel is None and mode.startswith("bayes"):
        raise ValueError(f"mode={mode!r} needs channel=RRChannel(epsilon, num_classes): what the labels came through.")
    if min_prob is not None and not 0 <= min_prob <= 1:
        raise ValueError(f"min_prob={min_prob!r} is no probability.")


class _Relabelling:
    """One call of `relabel`: columns as arrays, then the new labels."""

    def __init__(
        self,
        dataset: Dataset,
        mode: str,
        channel: Channels | None,
        prediction: str,
        probs: str,
        min_prob: float | None,
        label: str,
    ) -> None:
        self.dataset = dataset
        self.mode = mode
        self.channel = channel
        self.label = label
        self.min_prob = min_prob
        rows = dataset.with_format(None)
        column_names = [label, prediction, *([probs] if mode.startswith("bayes") or min_prob is not None else [])]
        missing = [name for name in column_names if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"no column {missing[0]!r}; the rows have {rows.column_names}. predict_column "
                "writes 'pred' and 'probs'."
            )
        excerpt_columns = [name for name in ("id", "text") if name in rows.column_names]
        batch = {name: rows[name][:] for name in dict.fromkeys([*column_names, *excerpt_columns])}
        if not len(rows):
            raise ValueError("the dataset has no rows to relabel.")
        num_classes = channel_classes(channel)
        check_class_count(num_classes, rows.features[label], "the channel", label)
        self.given, self.predicted, order = numbered_alike(batch, rows.features, label, prediction, num_classes)
        if not same_shape(self.given.lengths, self.predicted.lengths):
            _refuse_lengths(batch, self.given, self.predicted, prediction)
        self.probs: FloatArray | None = None
        if probs in column_names:
            if order is not None and num_classes is not None and len(order) != num_classes:
                raise ValueError(f"the channel has {num_classes} classes, {prediction!r} and {label!r} {len(order)}.")
            columns = {label: self.given, prediction: self.predicted}
            self.probs = _distributions(batch, rows.features, probs, columns, order, num_classes)
        self.channel_ids = self._channel_ids(rows)
        self.report = self._report(rows, prediction)

    def _channel_ids(self, rows: Dataset) -> list[str] | None:
        if CHANNEL not in rows.column_names:
            return None
        names = [str(name) for name in rows[CHANNEL]]
        if self.mode.startswith("bayes") and (no_channels := [n for n in names if "+" in n or n == TRUE_LABEL]):
            raise ValueError(
                f"{CHANNEL} says {no_channels[0]!r}: these labels do not come out of a channel. Relabel the rows as "
                "released."
            )
        return names

    def _report(self, rows: Dataset, prediction: str) -> RelabelReport:
        labelled = self.given.flat != IGNORED_LABEL
        agree = self.given.flat == self.predicted.flat
        accuracy = None
        notes = []
        flags = rows[OUT_OF_FOLD][:] if OUT_OF_FOLD in rows.column_names and prediction == "pred" else None
        if self.channel is not None:
            columns = (self.given.rows(self.given.flat), self.predicted.rows(self.predicted.flat))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is a note of the report
                accuracy = noisy_accuracy(*columns, self.channel, out_of_fold=flags, channel_ids=self.channel_ids)
        elif flags is not None and not all(flags):
            notes.append(IN_SAMPLE)
        precision = None
        if isinstance(self.channel, RRChannel) and accuracy is not None:
            precision = self.channel.consensus_precision(accuracy)
        return RelabelReport(
            mode=self.mode,
            rows=len(rows),
            labels=int(labelled.sum()),
            agreement=float(agree[labelled].mean()) if labelled.any() else 0.0,
            class_names=class_names(rows, self.label),
            given=np.bincount(self.given.flat[labelled]).tolist(),
            kept=[],
            rows_kept=0,
            accuracy=accuracy,
            precision=precision,
            out_of_fold=None if flags is None else bool(all(flags)),
            notes=notes,
        )

    def hard(self) -> Dataset:
        """One label for every row or token that is kept."""
        labelled = self.given.flat != IGNORED_LABEL
        new_labels = self.predicted.flat
        distributions = self.probs
        if self.mode == "bayes":
            distributions = self._posterior()
            new_labels = distributions.argmax(axis=1)
        keep = labelled.copy()
        if self.mode == "consensus":
            keep &= self.given.flat == self.predicted.flat
        if self.min_prob is not None:
            assert distributions is not None
            keep &= distributions[np.arange(len(new_labels)), np.where(keep, new_labels, 0)] >= self.min_prob
        new_labels = np.where(keep, new_labels, IGNORED_LABEL)
        refuse_different_ranks(new_labels, "the new labels")
        if not keep.any():
            raise EmptyConsensusError(
                f"mode={self.mode!r} leaves no label: no prediction is the given label"
                f"{'' if self.min_prob is None else f' with a probability of at least {self.min_prob}'}. The model "
                "has learned nothing, or 'pred' and 'label' count the classes in another order."
            )
        self.report.count(new_labels[keep], int(keep.sum()) if self.given.lengths is None else len(self.dataset))
        if self.given.lengths is None:
            row_indices = np.flatnonzero(keep)
            return self._with_label(self.dataset.select(row_indices.tolist()), new_labels[row_indices], row_indices)
        return self._with_label(self.dataset, self.given.rows(new_labels), np.arange(len(self.dataset)))

    def soft(self, soft: str) -> Dataset:
        """Rows repeated by class with a weight, or with a column of distributions."""
        posterior = self._posterior()
        refuse_different_ranks(posterior, "the new labels")
        least = SMALLEST_WEIGHT if self.min_prob is None else self.min_prob
        posterior = np.where(posterior >= np.minimum(least, posterior.max(axis=1, keepdims=True)), posterior, 0.0)
        posterior /= posterior.sum(axis=1, keepdims=True)
        if soft == "column":
            targets = np.where((self.given.flat != IGNORED_LABEL)[:, None], posterior, 0.0).astype(np.float32)
            self.report.count(posterior.argmax(axis=1)[self.given.flat != IGNORED_LABEL], len(self.dataset))
            distribution = List(Value("float32"), length=posterior.shape[1])
            feature = distribution if self.given.lengths is None else List(List(Value("float32")))
            rows = _without(self.dataset, LABEL_PROBS)
            rows = rows.add_column(LABEL_PROBS, [part.tolist() for part in self.given.rows(targets)], feature=feature)
            return self._marked(rows, np.arange(len(rows)))
        if self.given.lengths is not None:
            raise ValueError("a token has no row of its own to repeat: use soft='column' for token classification.")
        row_indices, new_labels = np.nonzero(posterior)
        weights = posterior[row_indices, new_labels]
        self.report.count(new_labels, len(row_indices))
        rows = self.dataset.select(row_indices.tolist())
        if "weight" in rows.column_names:
            weights = weights * np.asarray(rows.with_format(None)["weight"][:], dtype=np.float64)
        rows = self._with_label(_without(rows, "weight"), new_labels, row_indices)
        return rows.add_column("weight", weights)

    def _posterior(self) -> FloatArray:
        assert self.probs is not None
        assert self.channel is not None
        ids = self.channel_ids
        if ids is not None and self.given.lengths is not None:
            ids = [name for name, n in zip(ids, self.given.lengths, strict=True) for _ in range(n)]
        return bayes_posterior(self.probs, self.given.flat, self.channel, ids)

    def _with_label(
        self, rows: Dataset, new_labels: NDArray[np.int64] | list[NDArray[np.int64]], row_indices: NDArray[np.int64]
    ) -> Dataset:
        names = rows.column_names
        feature = rows.features[self.label]
        values = new_labels.tolist() if isinstance(new_labels, np.ndarray) else [part.tolist() for part in new_labels]
        rows = rows.remove_columns(self.label).add_column(self.label, values, feature=feature).select_columns(names)
        return self._marked(rows, row_indices)

    def _marked(self, rows: Dataset, row_indices: NDArray[np.int64]) -> Dataset:
        """The ledger: these labels no longer come out of the channel."""
        if self.channel_ids is None:
            return rows
        names = rows.column_names
        marked = [f"{self.channel_ids[i]}+{self.mode}" if self.channel_ids[i] else "" for i in row_indices]
        feature = Features({CHANNEL: Value("string")})[CHANNEL]
        return rows.remove_columns(CHANNEL).add_column(CHANNEL, marked, feature=feature).select_columns(names)


def _without(rows: Dataset, column: str) -> Dataset:
    return rows.remove_columns(column) if column in rows.column_names else rows


def _refuse_lengths(batch: Mapping[str, Any], labels: ClassColumn, predictions: ClassColumn, column: str) -> None:
    if labels.lengths is None or predictions.lengths is None:
        raise ValueError(f"{column!r} and the labels differ: one holds a class a row, the other a list of them.")
    i = int(np.flatnonzero(labels.lengths != predictions.lengths)[0])
    problem = f"{predictions.lengths[i]} predictions for {labels.lengths[i]} labels"
    raise row_error(batch, i, column, problem, "Predict with the tokens that the labels belong to.")
