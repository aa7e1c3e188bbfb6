"""Names of classes: whether a model and a dataset, or two columns, number the same classes alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel
from numpy.typing import NDArray

from hf_ext.data.relabeling.columns import ClassColumn, class_column

Names = tuple[str, ...]
MOST_NAMES = 12  # of a message
ALIGN = "dataset.align_labels_with_mapping({name: number}, column) renumbers a ClassLabel"


def class_label_of(feature: object) -> ClassLabel | None:
    """A `ClassLabel`, or that of a list of them; `None` of another feature."""
    while feature is not None and not isinstance(feature, ClassLabel):
        feature = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return feature


def names_of_feature(feature: object) -> Names | None:
    """
    Names of a `ClassLabel`, or of a list of them, by number.

    Returns:
        `tuple[str, ...]`, or `None` of another feature and where the names are the numbers themselves.
    """
    class_label = class_label_of(feature)
    return None if class_label is None else _told(class_label.names)


def names_of_column(features: object, *columns: str) -> Names | None:
    """Names of the first of these columns that has them; `features` may be `None`, as of a stream that tells none."""
    feature_of = features if isinstance(features, Mapping) else {}
    names_of_each = (names_of_feature(feature_of[name]) for name in columns if name in feature_of)
    return next((names for names in names_of_each if names is not None), None)


def names_of_model(model: object) -> Names | None:
    """
    Names that a classifier gives its outputs: `config.id2label`, or the `label_names` of a `SentenceHead`.

    Returns:
        `tuple[str, ...]`, or `None` where it has none, or those that transformers makes up (`LABEL_0`, ...).
    """
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and labels:
        return _told([labels[i] for i in range(len(labels))]) if set(labels) == set(range(len(labels))) else None
    names = getattr(model, "label_names", None)
    return _told(names) if isinstance(names, Sequence) and not isinstance(names, str) and names else None


def order_between(
    source: Names | None, target: Names | None, source_is: str, target_is: str, remedy: str
) -> NDArray[np.int64] | None:
    """
    Where each class of `target` stands in `source`, by name; case, blanks, hyphens and underscores do not count.

    Args:
        source (`tuple[str, ...]`, *optional*), target (`tuple[str, ...]`, *optional*):
            Names by number; `None` where nothing is known, which fits everything.
        source_is (`str`), target_is (`str`):
            Named in the message.
        remedy (`str`):
            Its last sentence.

    Returns:
        Array of shape `(classes,)`: class `k` of the target is class `order[k]` of the source. `None` where they are
        in the same order, or one of them has no names; further names at the target's end do not matter.

    Raises:
        ValueError: if the names are others.
    """
    if source is None or target is None or source == target:
        return None
    keys = [_keys(names) for names in (source, target)]
    if any(len(set(part)) < len(part) for part in keys):  # "a" and "A" are two classes here
        keys = [list(source), list(target)]
    if keys[0] == keys[1][: len(source)]:  # of a target with more names, which nobody needs, the first ones
        return None
    if set(keys[0]) != set(keys[1]) or len(source) != len(target):
        raise ValueError(
            _contradiction(source, target, source_is, target_is, "these are not the same classes", remedy)
        )
    places = {key: place for place, key in enumerate(keys[0])}
    order = np.array([places[key] for key in keys[1]], dtype=np.int64)
    return None if np.array_equal(order, np.arange(len(order))) else order


def same_order(source: Names | None, target: Names | None, source_is: str, target_is: str, remedy: str) -> None:
    """
    Refuse two sets of names of another order, whichever of them has further ones; arguments as [`order_between`].

    Raises:
        ValueError: if the order or the names are others.
    """
    if source is not None and target is not None and len(source) > len(target):
        same_order(target, source, target_is, source_is, remedy)
    elif order_between(source, target, source_is, target_is, remedy) is not None:
        assert source is not None
        assert target is not None
        raise ValueError(_contradiction(source, target, source_is, target_is, "the order is another", remedy))


def check_class_count(num_classes: int | None, feature: object, subject: str, column: str) -> None:
    """
    Refuse more classes than the label column has names for: some of them could not be written into it.

    Fewer are fine: names that no row has, such as one for unlabelled rows.

    Raises:
        ValueError: if `num_classes` is larger.
    """
    class_label = class_label_of(feature)
    if num_classes is not None and class_label is not None and num_classes > class_label.num_classes:
        raise ValueError(
            f"{subject} has {num_classes} classes, but column {column!r} is a ClassLabel of "
            f"{class_label.num_classes}: {_shown(tuple(class_label.names))}. Give both the same classes."
        )


def numbered_alike(
    batch: Mapping[str, Any],
    features: Mapping[str, Any],
    label: str,
    prediction: str,
    num_classes: int | None,
    offset: int | None = 0,
) -> tuple[ClassColumn, ClassColumn, NDArray[np.int64] | None]:
    """
    Given and predicted classes, the predicted ones under the numbers of the given.

    Args:
        batch (`Mapping`):
            Columns, `label` and `prediction` among them.
        features (`Mapping`):
            As far as they are known.
        num_classes (`int`, *optional*):
            Bound of the classes, beside those of a `ClassLabel`.
        offset (`int`, *optional*, defaults to 0):
            As for [`class_column`].

    Returns:
        `tuple`: the two, and which class of the prediction each class of the label is: distributions beside the
        prediction have its order. `None` where it is the same.

    Raises:
        ValueError: if the two columns name other classes.
        RowError: if a value is no class of its column.
    """
    columns = (label, prediction)
    names, predicted_names = (names_of_column(features, column) for column in columns)
    places = [f"column {column!r}" for column in columns]
    order = order_between(predicted_names, names, places[1], places[0], "Give the classes of both the same names.")
    class_labels = [class_label_of(features.get(column)) for column in columns]
    bounds = [
        min((k for k in (num_classes, getattr(feature, "num_classes", None)) if k is not None), default=None)
        for feature in (class_labels[0], class_labels[1] or class_labels[0])
    ]
    given_classes, predicted_classes = (
        class_column(batch, column, bound, offset=offset) for column, bound in zip(columns, bounds, strict=True)
    )
    return given_classes, predicted_classes.numbered(order), order


def _told(names: Sequence[Any]) -> Names | None:
    """Names as text; `None` where each is but its number, as in `LABEL_0` or `0`."""
    texts = tuple(str(name) for name in names)
    are_numbers = all(text.casefold() in (str(i), f"label_{i}") for i, text in enumerate(texts))
    return None if are_numbers else texts


def _keys(names: Names) -> list[str]:
    return [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in names]


def _shown(names: Names) -> str:
    listing = ", ".join(f"{i} {name!r}" for i, name in enumerate(names[:MOST_NAMES]))
    return listing + (f", ... ({len(names)} names)" if len(names) > MOST_NAMES else "")


def _contradiction(source: Names, target: Names, source_is: str, target_is: str, problem: str, remedy: str) -> str:
    return f"{source_is}: {_shown(source)}; {target_is}: {_shown(target)}: {problem}. {remedy}"
