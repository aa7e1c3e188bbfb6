"""Parts of the rows that rounds are trained on, and what a round's model predicts of those rows and of others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, List, Value, concatenate_datasets, load_from_disk

from hf_ext.data.relabeling.choice import Strategy
from hf_ext.data.relabeling.consensus import OUT_OF_FOLD
from hf_ext.data.relabeling.predicting import PREDICTED, fold_numbers, predict_column
from hf_ext.guards.disk import replacing, writing

if TYPE_CHECKING:
    from transformers import Trainer

FOLD_SEED = 0


@dataclass(frozen=True)
class Part:
    """
    Rows that models are trained on round after round, and where those rounds lie.

    Args:
        name (`str`):
            Folder below `output_dir`: `rounds`, `folds/0`, `rounds/cross/1`.
        rows (`Dataset`):
            With the noisy labels.
        held_out (`Dataset`, *optional*):
            Rows that every round predicts and none is trained on.
        cross_fit (`int`, *optional*, defaults to `0`):
            0, or the number of folds of the out-of-fold predictions to relabel by.
        keeps_models (`bool`, *optional*, defaults to `False`):
            Whether models and checkpoints stay; else the predictions alone do.
    """

    name: str
    rows: Dataset
    held_out: Dataset | None = None
    cross_fit: int = 0
    keeps_models: bool = False

    def place(self, strategy: Strategy, number: int) -> str:
        """Folder of a round below `output_dir`; all strategies share the first."""
        slug = strategy.name.replace(", ", "-").replace(" ", "-")
        return f"{self.name}/round-1" if number == 1 else f"{self.name}/{slug}/round-{number}"

    def without(self, folds: np.ndarray, fold: int, name: str, cross_fit: int = 0) -> Part:
        """The rows outside a fold, of which the rounds then predict the rows inside."""
        outside, inside = (self.rows.select(np.flatnonzero(mask).tolist()) for mask in (folds != fold, folds == fold))
        return Part(name, outside, held_out=inside, cross_fit=cross_fit)


def predict_rows(trainer: Trainer, rows: Dataset, label: str, *, out_of_fold: bool) -> Dataset:
    """
    What the trainer's model predicts of every row: class, probabilities, and whether it never saw the row.

    Args:
        trainer (`Trainer`):
            After its training.
        rows (`Dataset`):
            Any, with labels.
        label (`str`):
            Their column.
        out_of_fold (`bool`):
            Whether the model was trained on other rows alone.
    """
    columns = predict_column(trainer, rows, label=label)
    # The recipe has compared the names; plain numbers go with the predictions that an older version saved.
    feature = List(Value("int64")) if isinstance(columns.features["pred"], List) else Value("int64")
    columns = columns.remove_columns("pred").add_column("pred", columns["pred"][:], feature=feature)
    if out_of_fold:
        flags = [True] * len(columns)
        columns = columns.remove_columns(OUT_OF_FOLD).add_column(OUT_OF_FOLD, flags, feature=Value("bool"))
    return columns.select_columns(list(PREDICTED))


def save_predictions(folder: Path, name: str, columns: Dataset) -> None:
    """Keep predicted columns in a round's folder, whole or not at all."""
    place = _place(folder, name)
    shutil.rmtree(place, ignore_errors=True)  # left by a killed run
    with writing("the predictions", place), replacing(place) as temporary:
        columns.save_to_disk(temporary)


def load_predictions(folder: Path, name: str) -> Dataset:
    """What was kept in a round's folder under that name."""
    return load_from_disk(str(_place(folder, name)))


def _place(folder: Path, name: str) -> Path:
    return folder / f"predictions-{name}"


def fold_of(rows: Dataset, folds: int) -> np.ndarray:
    """Fold number of every row, the same on every call; shape `(rows,)`."""
    return np.asarray(fold_numbers(rows, folds, seed=FOLD_SEED)["fold"][:])


def in_row_order(parts: Sequence[Dataset], folds: np.ndarray) -> Dataset:
    """Predictions of each fold, joined in the order of the rows they belong to."""
    places = np.concatenate([np.flatnonzero(folds == fold) for fold in range(len(parts))])
    return concatenate_datasets(list(parts)).select(np.argsort(places).tolist())
