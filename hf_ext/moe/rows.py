"""Rows of a fit: checked, standardised, weighted, and added up over processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_ext.moe.parameters import MixtureShape

logger = logging.getLogger(__name__)

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""Adds up a float64 tensor over processes and returns the sum, the same on each: `dist.all_reduce`, in effect."""

_CPU_BLOCK = 2**19  # numbers of a block of rows: gate and expert outputs of the block stay in the cache
_GPU_BLOCK = 2**26


def alone(values: Tensor) -> Tensor:
    """The sum over one process."""
    return values


@dataclass(frozen=True)
class Standardisation:
    """
    Shift and scale of features and labels, from weighted sums over the rows of all processes.

    Args:
        mean, scale (`torch.Tensor` of shape `(d,)`):
            A feature is used as `(x - mean) / scale`.
        label_mean (`torch.Tensor` of shape `(m,)`), label_scale (`torch.Tensor`, scalar):
            Labels of linear experts likewise; 0 and 1 of other experts. A symmetric pair has no mean: a shift would
            break the symmetry.
    """

    mean: Tensor
    scale: Tensor
    label_mean: Tensor
    label_scale: Tensor


@dataclass(frozen=True)
class MixtureRows:
    """
    Rows of this process, ready for a fit.

    Args:
        X (`torch.Tensor` of shape `(n, d + 1)`):
            Standardised features, then a column of ones; float64.
        y (`torch.Tensor` of shape `(n,)` or `(n, m)`):
            Classes, or standardised numbers in float64.
        weights (`torch.Tensor` of shape `(n,)`):
            Row weights over their sum on all processes: a weighted sum is a mean over the data set.
        total (`float`):
            Sum of the row weights over all processes: the number of rows where they are not weighted.
        standardisation ([`Standardisation`]):
            How `X` and `y` came about.
        sums (`torch.Tensor`):
            Weighted sums of the raw columns: a fit that is resumed compares them.
    """

    X: Tensor
    y: Tensor
    weights: Tensor
    total: float
    standardisation: Standardisation
    sums: Tensor

    def blocks(self, width: int) -> Iterator[slice]:
        """Slices of consecutive rows, small enough that `width` numbers a row fit the cache."""
        most_numbers = _GPU_BLOCK if self.X.is_cuda else _CPU_BLOCK
        size = max(256, most_numbers // max(1, width))
        for start in range(0, len(self.X), size):
            yield slice(start, start + size)


def mixture_rows(
    X: Tensor,
    y: Tensor,
    shape: MixtureShape,
    *,
    sample_weight: Tensor | None = None,
    standardize: bool = True,
    standardisation: Standardisation | None = None,
    reduce: Reduce = alone,
) -> MixtureRows:
    """
    Check rows and make them ready for a fit.

    Args:
        X (`torch.Tensor` of shape `(n, d)`):
            Features, without a column of ones.
        y (`torch.Tensor` of shape `(n,)`, linear experts also `(n, m)`):
            Classes from 0, or numbers.
        shape ([`MixtureShape`]):
            Of the mixture.
        sample_weight (`torch.Tensor` of shape `(n,)`, *optional*):
            Non-negative, unitless; a weight of 2 is the row twice.
        standardize (`bool`, *optional*, defaults to `True`):
            Whether to shift and scale features and, of linear experts, labels, so that `ridge` means the same on any
            data.
        standardisation ([`Standardisation`], *optional*):
            That of the training rows, for held-out rows.
        reduce (`Callable`, *optional*):
            Sum over processes; by default there is one.

    Returns:
        [`MixtureRows`] on the device of `X`.

    Raises:
        ValueError: if a value is not finite (row and column are named), a label is no class (-100 among them), a
            weight is negative, labels of linear experts are all the same, or shapes do not go together.
    """
    X, y, sample_weight = _checked(X, y, shape, sample_weight)
    total = reduce(sample_weight.sum().reshape(1))[0]
    if not total > 0:
        raise ValueError("there is no row with a weight above 0.")
    if standardisation is None:
        standardisation = _standardisation(X, y, shape, sample_weight / total, standardize, reduce)
        _check_classes(y, shape, sample_weight, reduce)
    sums = reduce(
        torch.cat([total.new_tensor([len(X)]), sample_weight @ X, (sample_weight @ y.to(X).view(len(X), -1))])
    )
    features = (X - standardisation.mean) / standardisation.scale
    if shape.expert_type == "linear":
        y = (y - standardisation.label_mean) / standardisation.label_scale
    weights = sample_weight / total
    return MixtureRows(
        torch.cat([features, torch.ones_like(features[:, :1])], 1), y, weights, float(total), standardisation, sums
    )


def check_row_count(rows: MixtureRows, shape: MixtureShape, ridge: float) -> None:
    """
    Refuse a fit of more coefficients than rows without a penalty; warn of one with it.

    Raises:
        ValueError: if there are fewer than `k (d + 1)` rows and `ridge` is 0.
    """
    least = shape.num_experts * rows.X.shape[1]
    count = int(rows.sums[0])
    if count >= least:
        return
    text = f"{count:,} rows are fewer than num_experts x (features + 1) = {least:,}"
    if ridge == 0:
        raise ValueError(f"{text}, and ridge is 0: the likelihood has no maximum. Set ridge, or take fewer experts.")
    logger.warning("%s: the ridge of %g decides the fit. Compare with num_experts=1 on held-out rows.", text, ridge)


def _checked(X: Tensor, y: Tensor, shape: MixtureShape, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"X {tuple(X.shape)} must be (rows, features).")
    X = X.detach().to(torch.float64)
    y = torch.as_tensor(y, device=X.device)
    if len(y) != len(X):
        raise ValueError(f"X has {len(X):,} rows and y {len(y):,}.")
    check_finite(X, "X")
    if shape.expert_type == "linear":
        y = y.to(torch.float64).reshape(len(y), -1)
        check_finite(y, "y")
        if y.shape[1] != shape.num_outputs:
            raise ValueError(
                f"y has {y.shape[1]} numbers a row, but the experts have num_outputs={shape.num_outputs}."
            )
    else:
        y = class_numbers(y, max(2, shape.num_outputs))
    if sample_weight is None:
        return X, y, torch.ones_like(X[:, 0])
    weights = torch.as_tensor(sample_weight, device=X.device).to(torch.float64)
    if weights.shape != (len(X),):
        raise ValueError(f"sample_weight {tuple(weights.shape)} must hold one number for each of {len(X):,} rows.")
    bad = ~(weights.isfinite() & (weights >= 0))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"sample_weight of row {row:,} is {float(weights[row])}: weights are finite and at least 0.")
    return X, y, weights


def check_finite(values: Tensor, name: str) -> None:
    """
    Refuse numbers `(rows, columns)` that are not finite.

    Raises:
        ValueError: if one is not; the message names its row and column.
    """
    bad = ~values.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        value = float(values[row, column])
        raise ValueError(f"{name} is {value} in row {row:,}, column {column:,}. Drop the row or fill the value.")


def class_numbers(y: Tensor, classes: int) -> Tensor:
    """
    Labels `(rows,)` as int64 classes.

    Raises:
        ValueError: if one is no whole number from 0 to `classes - 1`; the message names its row.
    """
    if y.ndim != 1:
        raise ValueError(f"labels {tuple(y.shape)} must be one class a row.")
    bad = ~((y >= 0) & (y < classes) & (y == y.to(torch.int64)))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        label = y[row].item()
        remedy = "Drop rows of -100: they have no label." if label == -100 else "Number the classes from 0."
        raise ValueError(f"the label of row {row:,} is {label}, not a class from 0 to {classes - 1}. {remedy}")
    return y.to(torch.int64)


def _standardisation(
    X: Tensor, y: Tensor, shape: MixtureShape, weights: Tensor, standardize: bool, reduce: Reduce
) -> Standardisation:
    zeros = torch.zeros_like(X[0])
    mean = zeros
    scale = zeros + 1
    label_mean = X.new_zeros(shape.num_outputs)
    label_scale = X.new_ones(())
    if standardize:
        mean = reduce(weights @ X)
        variance = reduce(weights @ (X - mean).square())
        # A constant column has a variance of rounding errors only: its mean is off by some 1e-16 of its size.
        constant = variance <= (1e-12 * mean).square()
        if bool(constant.any()):
            columns = constant.nonzero()[:, 0].tolist()
            logger.warning(
                "%d of %d features are constant, the first in column %d: their scale is 1.",
                len(columns), len(constant), columns[0],
            )  # fmt: skip
        scale = torch.where(constant, 1.0, variance.sqrt())
    if shape.expert_type != "linear":
        return Standardisation(mean, scale, label_mean, label_scale)
    center = reduce(weights @ y)
    spread = reduce(weights @ (y - center).square())
    if bool((spread <= (1e-12 * center).square()).all()):
        raise ValueError(f"every label is {center[0].item():g}: linear experts need labels that vary.")
    if standardize:
        label_mean = torch.zeros_like(center) if shape.symmetric else center
        label_scale = (spread + (center - label_mean).square()).mean().sqrt()
    return Standardisation(mean, scale, label_mean, label_scale)


def _check_classes(y: Tensor, shape: MixtureShape, weights: Tensor, reduce: Reduce) -> None:
    if shape.expert_type == "linear":
        return
    counts = reduce(torch.bincount(y, weights, minlength=max(2, shape.num_outputs)))
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if absent:
        logger.warning(
            "%d of %d classes are in no row, the first is %d: only the ridge bounds their logits.",
            len(absent), len(counts), absent[0],
        )  # fmt: skip
