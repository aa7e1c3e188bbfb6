"""Whether what a classifier gives out is a distribution over the classes of a dataset, and which."""

from __future__ import annotations

import logging

from datasets import Dataset

from hf_ext.data.relabeling.class_names import (
    ALIGN,
    MOST_NAMES,
    Names,
    check_class_count,
    names_of_column,
    names_of_model,
    order_between,
    same_order,
)
from hf_ext.data.relabeling.columns import are_classes, label_columns, row_error

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "label_ids")  # the names that collators know
_STOCK = "Classification"  # in the name of every stock head's class, and of PEFT's models around one
_NO_DISTRIBUTION = {
    "multi_label_classification": "several of its labels may hold at once",
    "regression": "it predicts a number",
}
_MODEL = "the model's config.id2label"
_SET = (
    "If the outputs follow the rows' numbers, give the model their names: from_pretrained(..., id2label={number: "
    f"name}}, label2id={{name: number}}), or set model.config.id2label; if not, {ALIGN}."
)


def outputs_of(model: object) -> int | None:
    """Outputs of a stock head, which its configuration tells; `None` of a head of one's own."""
    names = getattr(model, "label_names", None)  # of a SentenceHead
    if names is not None:
        return len(names)
    return getattr(getattr(model, "config", None), "num_labels", None) if _STOCK in type(model).__name__ else None


def check_head(model: object) -> None:
    """
    Refuse a model whose outputs are no distribution over classes.

    Raises:
        ValueError: if several of its labels may hold at once, it predicts a number, or it has one output.
    """
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind in _NO_DISTRIBUTION:
        raise ValueError(
            f"the model's problem_type is {kind!r}: {_NO_DISTRIBUTION[kind]}, so that its outputs are no distribution "
            "over classes. For one label a row train it with problem_type='single_label_classification'."
        )
    _refuse_one_output(outputs_of(model))


def check_width(width: int, rows: Dataset, label: str) -> None:
    """
    Refuse outputs that do not go with the label column.

    Args:
        width (`int`):
            Outputs of the model.
        rows (`Dataset`), label (`str`):
            Rows, and their label column, if they have one; labels that are no numbers, or -1, say nothing.

    Raises:
        ValueError: if there is one output, or more than the column's `ClassLabel` has classes.
        RowError: if a label lies beyond the outputs.
    """
    _refuse_one_output(width)
    label = next((name for name in (label, *LABEL_COLUMNS) if name in rows.column_names), label)
    if label not in rows.column_names:
        return
    check_class_count(width, rows.features[label], "the model", label)
    for start, column in label_columns(rows, label):
        if are_classes(column, width) is not False:
            continue
        for i, value in enumerate(column.to_pylist(), start):
            numbers = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, int)]
            if max(numbers, default=0) >= width:
                problem = f"class {max(numbers)}, but the model has {width} outputs"
                remedy = "Predict with a model of all the classes, or drop rows of the others with dataset.filter."
                raise row_error(rows.with_format(None)[i : i + 1], 0, label, problem, remedy, i)


def same_names(model: object, names: Names | None) -> None:
    """
    Refuse a model that names its outputs otherwise than the rows on which it is trained, or in another order.

    Raises:
        ValueError: if the names or their order differ; the message shows both.
    """
    same_order(names_of_model(model), names, _MODEL, "the rows it is trained on", _SET)


def names_of_outputs(trainer: object, rows: Dataset, label: str, width: int, *, fold: bool) -> Names | None:
    """
    Names of a model's outputs, in their order, which may be another one than that of the rows.

    A trained model follows the numbers of the rows it was trained on; another one those of its `config.id2label`.

    Args:
        trainer (`Trainer`):
            Of the predictions.
        rows (`Dataset`), label (`str`):
            Rows and their label column.
        width (`int`):
            Outputs. Names of another number belong to something else, such as the encoder under a head of one's own.
        fold (`bool`):
            Whether the trainer was trained on other rows of the same dataset.

    Returns:
        `tuple[str, ...]`, or `None` where nobody names them.

    Raises:
        ValueError: if the rows to predict have other classes, or the names of the model are not those of the rows that
            it was trained on, in their order.
    """
    columns = (label, *LABEL_COLUMNS)
    names = names_of_column(rows.features, *columns)
    model_names = names_of_model(getattr(trainer, "model", None))
    model_names = model_names if model_names and len(model_names) == width else None
    is_trained = fold or getattr(getattr(trainer, "state", None), "global_step", 0) > 0
    trained_on = getattr(getattr(trainer, "train_dataset", None), "features", None) if is_trained else None
    trained_names = names_of_column(trained_on, *columns) or (names if fold else None)
    same_order(model_names, trained_names, _MODEL, "the rows it was trained on", _SET)
    source = _MODEL if trained_names is None else "the rows the model was trained on"
    outputs = trained_names or model_names
    order_between(outputs, names, source, f"column {label!r} of the rows to predict", _SET)  # refuses other classes
    return outputs


def warn_of_order(outputs: Names | None, rows: Dataset, label: str) -> None:
    """Say that predictions are in the order of the model, where the rows have another one."""
    names = names_of_column(rows.features, label, *LABEL_COLUMNS)
    if order_between(outputs, names, _MODEL, "the rows", _SET) is not None:
        logger.warning(
            "The model counts the classes in another order than column %r (%s; %s): 'pred' holds its numbers, as a "
            "ClassLabel with its names, and 'probs' is in its order. relabel, noisy_accuracy and "
            "filter(ConsensusFilter(), batched=True) translate them; a filter row by row does not see the names.",
            label, list(outputs or ())[:MOST_NAMES], list(names or ())[:MOST_NAMES],
        )  # fmt: skip


def _refuse_one_output(width: int | None) -> None:
    if width == 1:
        raise ValueError(
            "the model has one output: a number, and no distribution over classes. Train a head with an output for "
            "each class (num_labels=2 for two)."
        )
