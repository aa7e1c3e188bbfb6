"""How right predictions are, read off noisy labels alone: no clean label is seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.relabeling.channel import FloatArray, RRChannel, notes_on_accuracy
from hf_ext.data.relabeling.class_names import numbered_alike
from hf_ext.data.relabeling.columns import IGNORED_LABEL, Column, per_row
from hf_ext.data.relabeling.estimates import CONFIDENCE, Estimate

Channels = RRChannel | Mapping[str, RRChannel]
"""One channel for all rows, or that of each name in `label_dp_channel`."""

IN_SAMPLE = (
    "in-sample predictions: the model saw these labels and agrees with their noise, so that this figure is too high; "
    "predict out of fold (fold_column=...) or on held-out rows"
)
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


def noisy_accuracy(
    labels: Column,
    predictions: Column,
    channel: Channels,
    *,
    out_of_fold: Column | None = None,
    channel_ids: Sequence[str] | None = None,
) -> Estimate:
    r"""
    Accuracy of predictions against the true labels, from the noisy ones: $(\mathrm{agree} - q) / (p - q)$.

    Args:
        labels (array of shape `(rows,)`, or a list of lists for tokens):
            Given labels, as they came out of the channel.
        predictions (as `labels`):
            Predicted classes.
        channel ([`RRChannel`], or a mapping of names to them):
            What the labels passed through; a mapping where rows of unequal channels stand together.
        out_of_fold (bool or array of them, *optional*):
            The column `pred_is_out_of_fold`. `False` anywhere warns: a model agrees with the noise it was trained on.
        channel_ids (`Sequence[str]`, *optional*):
            The column `label_dp_channel`, for a mapping.

    Returns:
        [`Estimate`]: unbiased for predictions that do not depend on these labels' noise, unclipped, with a 95 %
        interval: Wilson's for one label a row, else over rows, as the tokens of a row stand and fall together.

    Raises:
        ValueError: if there are no labels, the lengths differ, or the mapping lacks the name of a channel.
        RowError: if a value is no class.

    Reference: $E[\mathrm{agree}] = a p + (1 - a) q$; Warner 1965, *Randomized Response*.
    """
    terms, sizes, agree = _terms(labels, predictions, channel, channel_ids)
    n = int(sizes.sum())
    if isinstance(channel, RRChannel) and agree is not None:
        estimate = channel.accuracy(agree, n)
    else:
        estimate = _of_rows(terms, sizes, None if not isinstance(channel, RRChannel) else channel)
    if out_of_fold is not None and not np.all(np.asarray(out_of_fold, dtype=bool)):
        warnings.warn(f"noisy_accuracy was given {IN_SAMPLE}.", stacklevel=2)
        estimate = replace(estimate, notes=(*estimate.notes, IN_SAMPLE))
    return estimate


def accuracy_difference(
    labels: Column,
    first: Column,
    second: Column,
    channel: Channels,
    *,
    channel_ids: Sequence[str] | None = None,
) -> Estimate:
    """
    Accuracy of `first` minus that of `second` on the same rows, with the standard error of the paired difference.

    Rows on which the two agree cancel, so that two like predictions are told apart by far fewer rows than two
    intervals would need.

    Args:
        labels, channel, channel_ids:
            As in [`noisy_accuracy`].
        first, second (as `labels`):
            Two columns of predicted classes, both out of fold or held out.

    Returns:
        [`Estimate`]: of the difference, in [-1, 1] up to noise.

    Raises:
        ValueError, RowError: as [`noisy_accuracy`].
    """
    first_terms, sizes, _ = _terms(labels, first, channel, channel_ids)
    second_terms, _, _ = _terms(labels, second, channel, channel_ids)
    return _of_rows(first_terms - second_terms, sizes, None)


def _of_rows(terms: FloatArray, sizes: NDArray[np.int64], channel: RRChannel | None) -> Estimate:
    """Ratio of sums over rows, with the delta method's error."""
    n = int(sizes.sum())
    rows = int((sizes > 0).sum())
    value = float(terms.sum()) / n
    squares = float(((terms - value * sizes) ** 2).sum())
    se = math.sqrt(rows / max(rows - 1, 1) * squares) / n
    notes = () if channel is None else notes_on_accuracy(value)
    if rows < 2:
        return Estimate(value, math.inf, -math.inf, math.inf, n, notes)
    return Estimate(value, se, value - _Z * se, value + _Z * se, n, notes)


def _terms(
    labels: Column, predictions: Column, channel: Channels, channel_ids: Sequence[str] | None
) -> tuple[FloatArray, NDArray[np.int64], float | None]:
    """Each row's sum of (agree - q) / (p - q), its labels, and the share that agrees where a row has one label."""
    batch = {"labels": labels, "predictions": predictions}
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError(
            f"{len(labels):,} labels and {len(predictions):,} predictions: give as many, and at least one."
        )
    features = {name: getattr(column, "features", None) for name, column in batch.items()}  # of a dataset's column
    bound = channel_classes(channel)
    given_classes, predicted_classes, _ = numbered_alike(batch, features, "labels", "predictions", bound)
    lengths = given_classes.lengths
    if not same_shape(lengths, predicted_classes.lengths):
        raise ValueError("labels and predictions differ in their numbers of tokens.")
    labelled = given_classes.flat != IGNORED_LABEL
    if not labelled.any():
        raise ValueError("every label is -100: there is nothing to compare with.")
    agree = ((given_classes.flat == predicted_classes.flat) & labelled).astype(np.float64)
    q, contrast = channel_values(channel, channel_ids, lengths, len(given_classes.flat))
    terms = np.where(labelled, (agree - q) / contrast, 0.0)
    if lengths is None:
        return terms, given_classes.counts, float(agree.mean())
    return per_row(terms, lengths), given_classes.counts, None


def same_shape(lengths: NDArray[np.int64] | None, other_lengths: NDArray[np.int64] | None) -> bool:
    """Whether two columns have one class a row each, or as many tokens in every row."""
    if lengths is None or other_lengths is None:
        return lengths is other_lengths
    return np.array_equal(lengths, other_lengths)


def channel_classes(channel: object) -> int | None:
    """Classes of a channel, or of those in a mapping; `None` without one, and where they differ."""
    channels = channel.values() if isinstance(channel, Mapping) else [channel]
    numbers = {getattr(entry, "num_classes", None) for entry in channels}
    return numbers.pop() if len(numbers) == 1 else None


def channel_values(
    channel: Channels, channel_ids: Sequence[str] | None, lengths: NDArray[np.int64] | None, entries: int
) -> tuple[Any, Any]:
    """
    q and p - q of every entry: two numbers for one channel, else arrays of shape `(entries,)`.

    Raises:
        ValueError: if a mapping comes without names, or lacks one of them.
    """
    if isinstance(channel, RRChannel):
        return channel.q, channel.contrast
    if not isinstance(channel, Mapping):
        raise TypeError(f"channel must be an RRChannel or a mapping of names to them, got {type(channel).__name__}.")
    if channel_ids is None:
        raise ValueError("a mapping of channels needs channel_ids, the column 'label_dp_channel'.")
    unknown = sorted(set(map(str, channel_ids)) - set(channel))
    if unknown:
        raise ValueError(
            f"no channel named {unknown[0]!r} in the mapping, which has {sorted(channel)}. "
            "RandomizedResponse.channel_id is the name of its channel; replaced labels have none."
        )
    pairs = np.array([(channel[str(name)].q, channel[str(name)].contrast) for name in channel_ids])
    if lengths is not None:
        pairs = pairs.repeat(lengths, axis=0)
    assert len(pairs) == entries
    return pairs[:, 0], pairs[:, 1]
