"""Predictions of a classifier as columns: of the rows it was trained on, or out of fold."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value
from numpy.typing import NDArray

from hf_ext.data.relabeling.class_names import Names, names_of_column
from hf_ext.data.relabeling.columns import IGNORED_LABEL
from hf_ext.data.relabeling.consensus import OUT_OF_FOLD
from hf_ext.data.relabeling.heads import (
    check_head,
    check_width,
    names_of_outputs,
    outputs_of,
    same_names,
    warn_of_order,
)
from hf_ext.guards.row_text import plain

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

PREDICTED = ("pred", "probs", OUT_OF_FOLD)


def predict_column(
    trainer: Trainer | Callable[[Dataset, Any], Trainer],
    dataset: Dataset,
    fold_column: str | None = None,
    *,
    label: str = "label",
    model_inputs: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """
    Add a classifier's predictions to a dataset.

    | column out | type |
    |---|---|
    | `pred` | int, the likeliest class; a list of them for tokens. A `ClassLabel` where the outputs have names |
    | `probs` | float32, the distribution over the classes, of fixed length, in the order of `pred` |
    | `pred_is_out_of_fold` | bool, whether the model had not seen the row's label |

    Args:
        trainer (`Trainer`, or a callable):
            Without folds a trained [`~transformers.Trainer`]. With folds either one with a `model_init`, of which a
            fresh copy is trained for every fold, or a function `(train_rows, fold) -> Trainer` that returns a trained
            one.
        dataset (`Dataset`):
            Rows as the trainer reads them (tokenised, with its label column). Columns of earlier predictions are
            replaced.
        fold_column (`str`, *optional*):
            Column of fold numbers or names, such as [`fold_numbers`] makes: the rows of each fold are predicted by a
            model trained on the others. Without it every row is predicted by the given model, in-sample, as in the
            paper, if these are its training rows.
        label (`str`, *optional*, defaults to `"label"`):
            Label column, which is hidden from prediction. For tokens its lists say which positions count.
        model_inputs (`Callable`, *optional*):
            Turns rows into what the trainer reads, such as tokenised ones, in the same order; applied to training and
            prediction rows alike.

    Returns:
        `Dataset`: with the three columns. Classes have the model's numbers. Where its names (those of the rows it was
        trained on, or its `config.id2label`) are those of the label's `ClassLabel` in another order, a warning says
        so; `relabel`, `noisy_accuracy` and a batched [`ConsensusFilter`] go by the names.

    Raises:
        ValueError: if a column is missing, there are fewer than two folds, or the trainer cannot be trained afresh; if
            the model's outputs are no distribution over the classes of the label's `ClassLabel`, or it names others.
        RowError: if a label lies beyond the model's outputs.

    Reference: Das et al. 2025 (arXiv 2406.11206), section 2, predicts in-sample. A model then agrees with the noise it
    has memorised; out of fold its agreement is independent of it.
    """
    if not len(dataset):
        raise ValueError("the dataset has no rows to predict.")
    prepare = model_inputs or (lambda rows: rows)
    rows = dataset.remove_columns([name for name in PREDICTED if name in dataset.column_names])
    if fold_column is None:
        if not hasattr(trainer, "predict"):
            raise ValueError(f"without folds a trained Trainer is needed, got {type(trainer).__name__}.")
        _check_trainer(trainer, rows, label, fold=False)
        probs, names = _predict(trainer, prepare(rows), rows, label, fold=False)
        warn_of_order(names, rows, label)
        return _with_predictions(rows, probs, names, out_of_fold=False)
    folds = _folds(rows, fold_column)
    _check_trainer(trainer, rows, label, fold=True)
    row_probs: list[Any] = [None] * len(rows)
    for number, fold in enumerate(sorted(set(folds.tolist()))):
        inside = np.flatnonzero(folds == fold)
        training_rows = rows.select(np.flatnonzero(folds != fold).tolist())
        held_out = rows.select(inside.tolist())
        fitted = _trained(trainer, prepare(training_rows), fold)
        probs, fold_names = _predict(fitted, prepare(held_out), held_out, label, fold=True)
        names = names if number else fold_names
        if names != fold_names:
            raise ValueError(f"the models of two folds name their classes {names} and {fold_names}: train them alike.")
        for i, values in zip(inside, probs, strict=True):
            row_probs[int(i)] = values
    warn_of_order(names, rows, label)
    return _with_predictions(rows, row_probs, names, out_of_fold=True)


def fold_numbers(dataset: Dataset, folds: int, *, id_column: str | None = None, seed: int = 0) -> Dataset:
    """
    Add a column `fold` with numbers from 0, equally many of each.

    Args:
        dataset (`Dataset`):
            Rows.
        folds (`int`):
            At least 2.
        id_column (`str`, *optional*):
            Rows with the same value go into the same fold: copies of a text, rows of a person. Folds are then equal in
            such values, not in rows.
        seed (`int`, *optional*, defaults to 0):
            Of the deal.

    Raises:
        ValueError: if there are fewer than two folds, or more than rows.
    """
    ids = list(range(len(dataset))) if id_column is None else [str(v) for v in dataset.with_format(None)[id_column]]
    order: dict[Any, int] = {}
    codes = np.array([order.setdefault(value, len(order)) for value in ids], dtype=np.int64)
    if not 2 <= folds <= len(order):
        raise ValueError(f"folds={folds}: give at least 2, and at most one a row or id ({len(order):,}).")
    dealt = np.random.default_rng(seed).permutation(len(order)) % folds
    rows = dataset.remove_columns("fold") if "fold" in dataset.column_names else dataset
    return rows.add_column("fold", dealt[codes])


def _check_trainer(trainer: object, rows: Dataset, label: str, *, fold: bool) -> None:
    """Refuse, before anything is trained or predicted, a model whose outputs are not the rows' classes."""
    if any(base.__module__.startswith("transformers.pipelines") for base in type(trainer).__mro__):
        raise ValueError(
            f"predict_column takes a Trainer, got {type(trainer).__name__}: Trainer(model=pipeline.model, "
            "processing_class=pipeline.tokenizer) predicts tokenised rows with its model."
        )
    model = getattr(trainer, "model", None)
    if model is None:
        return
    check_head(model)
    width = outputs_of(model)
    if width is None:  # a head of one's own: its outputs tell
        return
    check_width(width, rows, label)
    if fold:
        same_names(model, names_of_column(rows.features, label))
    else:
        names_of_outputs(trainer, rows, label, width, fold=False)


def _folds(rows: Dataset, column: str) -> NDArray[Any]:
    if column not in rows.column_names:
        raise ValueError(
            f"no column {column!r}; fold_numbers(dataset, 4) adds 'fold'. The rows have {rows.column_names}."
        )
    folds = np.asarray([plain(value) for value in rows.with_format(None)[column]])
    if folds.ndim != 1 or len(set(folds.tolist())) < 2:
        raise ValueError(f"column {column!r} holds one fold only: rows of at least two are needed.")
    return folds


def _trained(trainer: Any, rows: Dataset, fold: int | str) -> Trainer:
    """A trainer fitted to `rows` from fresh weights."""
    if not hasattr(trainer, "predict"):
        return trainer(rows, fold)
    if getattr(trainer, "model_init", None) is None:
        raise ValueError(
            "out-of-fold prediction trains a fresh model for every fold, and this trainer has no model_init: build it "
            "with Trainer(model_init=...), or pass a function (train_rows, fold) -> trained Trainer."
        )
    args = copy.copy(trainer.args)
    args.output_dir = str(Path(trainer.args.output_dir) / f"fold-{fold}")
    fold_trainer = type(trainer)(
        model_init=trainer.model_init,
        args=args,
        train_dataset=rows,
        data_collator=trainer.data_collator,
        processing_class=trainer.processing_class,
        compute_loss_func=trainer.compute_loss_func,
    )
    fold_trainer.train()
    return fold_trainer


def _predict(
    trainer: Trainer, inputs: Dataset, rows: Dataset, label: str, *, fold: bool
) -> tuple[list[NDArray[np.float32]], Names | None]:
    """
    Distributions of every row, and the names of their classes.

    They are of shape `(num_classes,)`, or `(tokens, num_classes)` in token classification.
    """
    # Prediction sees no label: a column of zeros would do, but none is safer.
    label_columns = {"labels", "label", "label_ids", label} & set(inputs.column_names)
    logits = _in_order(trainer, inputs.remove_columns(sorted(label_columns)))
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
    if len(logits) != len(rows) or logits.ndim not in (2, 3):
        raise ValueError(
            f"the trainer gave predictions of shape {logits.shape} for {len(rows):,} rows: expected (rows, classes), "
            "or (rows, tokens, classes). A trainer with preprocess_logits_for_metrics must leave the logits alone."
        )
    if not np.isfinite(logits[logits != IGNORED_LABEL]).all():
        raise ValueError(
            "the model's logits are not finite: it has diverged. Lower the learning rate and train again."
        )
    check_width(logits.shape[-1], rows, label)
    names = names_of_outputs(trainer, rows, label, logits.shape[-1], fold=fold)
    if logits.ndim == 2:
        return list(_softmax(logits).astype(np.float32)), names
    lengths = [len(row) for row in inputs.with_format(None)["labels" if "labels" in inputs.column_names else label]]
    return [_softmax(row[:n]).astype(np.float32) for row, n in zip(logits, lengths, strict=True)], names


def _in_order(trainer: Trainer, inputs: Dataset) -> Any:
    """Predictions in the order of the rows: under grouping by length the trainer gives them in that of its batches."""
    args: Any = getattr(trainer, "args", None)  # whatever predicts will do
    if getattr(args, "train_sampling_strategy", None) != "group_by_length":
        return trainer.predict(inputs).predictions
    args.train_sampling_strategy = "sequential"
    try:
        return trainer.predict(inputs).predictions
    finally:
        args.train_sampling_strategy = "group_by_length"


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _with_predictions(
    rows: Dataset, probs: list[NDArray[np.float32]], names: Names | None, *, out_of_fold: bool
) -> Dataset:
    tokens = probs[0].ndim == 2
    classes = probs[0].shape[-1]
    distribution = List(Value("float32"), length=classes)
    pred = [row.argmax(axis=-1).tolist() for row in probs]
    kind = Value("int64") if names is None else ClassLabel(names=list(names))
    rows = rows.add_column("pred", pred, feature=List(kind) if tokens else kind)
    feature = List(distribution) if tokens else distribution
    rows = rows.add_column("probs", [row.tolist() for row in probs], feature=feature)
    return rows.add_column(OUT_OF_FOLD, [out_of_fold] * len(rows), feature=Value("bool"))
