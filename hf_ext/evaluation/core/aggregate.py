"""CORE and EXTENDED from accuracies, their errors, and the paired difference of two models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.evaluation.core.tasks import CORE_TASKS, EXTENDED_TASKS, TASKS, Version, check_choice
from hf_ext.evaluation.intervals import CONFIDENCE

__all__ = ["CoreIncomplete", "Difference", "Score", "accuracy_of", "aggregate_core", "core_score", "mean_difference"]


class CoreIncomplete(ValueError):
    """
    Not all of CORE's 22 tasks are there, so a mean over them is no CORE.

    Attributes:
        missing (`list[str]`):
            Labels of the tasks that are not.
    """

    def __init__(self, missing: Sequence[str], remedy: str) -> None:
        self.missing = list(missing)
        self.remedy = remedy
        count = len(CORE_TASKS) - len(self.missing)
        super().__init__(f"{count} of CORE's {len(CORE_TASKS)} tasks: {', '.join(self.missing)} missing. {remedy}")

    def __reduce__(self) -> tuple[type[CoreIncomplete], tuple[list[str], str]]:
        return type(self), (self.missing, self.remedy)


def aggregate_core(
    accuracies: Mapping[str, float], version: Version = "v2", *, partial: bool = False
) -> dict[str, Any]:
    r"""
    DCLM's scores from the accuracies of its tasks: means of the centred accuracy $(a_t - b_t) / (1 - b_t)$.

    Args:
        accuracies (`Mapping[str, float]`):
            Label to the share of rows that were right, 0 to 1.
        version (`str`, *optional*, defaults to `"v2"`):
            Whose table of baselines $b_t$: `"v2"`, DCLM's of September 2025, or `"v1"`, of the paper and nanochat. The
            same accuracies give a CORE one to three points higher in v1.
        partial (`bool`, *optional*, defaults to `False`):
            Whether a mean over fewer than the 22 tasks is wanted, under a name of its own.

    Returns:
        `dict`: `version`; `centered`, label to centred accuracy; `core_v2` (or `core_v1`), or with `partial` and `n`
        of the 22 tasks `core{n}_v2`; and `extended_v2` where all 53 labels are there.

    Raises:
        CoreIncomplete: if a task of CORE is missing, unless `partial` is set; `missing` names them.
        ValueError: if a label is unknown, if an accuracy is no number from 0 to 1, or if none of CORE is there.

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794), section 3.5 and appendix G.
    """
    check_choice("version", version, Version)
    for label, accuracy in accuracies.items():
        if label not in TASKS:
            raise ValueError(f"{label!r} is no task of DCLM's evaluation; its labels are {', '.join(TASKS)}.")
        if not (isinstance(accuracy, Real) and 0 <= float(accuracy) <= 1):
            raise ValueError(f"The accuracy of {label!r} must be a number from 0 to 1, got {accuracy!r}.")
    centered = {label: TASKS[label].centered(float(value), version) for label, value in accuracies.items()}
    missing = [label for label in CORE_TASKS if label not in accuracies]
    if missing and not partial:
        raise CoreIncomplete(missing, "partial=True gives the mean of the others, which is not CORE.")
    if len(missing) == len(CORE_TASKS):
        raise ValueError("None of CORE's tasks is there.")
    core_values = [centered[label] for label in CORE_TASKS if label in centered]
    scores = {_score_name(len(core_values), version, is_whole=not missing): math.fsum(core_values) / len(core_values)}
    if all(label in centered for label in EXTENDED_TASKS):
        scores[f"extended_{version}"] = math.fsum(centered[label] for label in EXTENDED_TASKS) / len(EXTENDED_TASKS)
    return {"version": version, "centered": centered, **scores}


def _score_name(num_tasks: int, version: Version, *, is_whole: bool) -> str:
    return f"core_{version}" if is_whole else f"core{num_tasks}_{version}"


@dataclass(frozen=True)
class Score:
    """
    A mean of centred accuracies.

    Args:
        name (`str`):
            `core_v2` for all 22 tasks on all of their rows; `core16_v2` for 16 of them, `core22_v2` where rows lack;
            `extended_v2` for all 53 labels.
        value (`float`):
            Unitless; 0 is guessing, 1 is perfect.
        standard_error (`float`):
            Of the value, over other rows of the same tasks.
        num_tasks (`int`):
            Tasks in it.
    """

    name: str
    value: float
    standard_error: float
    num_tasks: int

    def __str__(self) -> str:
        """Value and standard error, as a table shows them."""
        return f"{self.value:.4f} ± {self.standard_error:.4f}"


def core_score(
    accuracies: Mapping[str, float], standard_errors: Mapping[str, float], version: Version, *, is_subset: bool
) -> Score:
    r"""
    The mean over those of CORE's tasks that are there, and its standard error $\sqrt{\sum_t s_t^2 / (1 - b_t)^2} / T$.

    Args:
        accuracies, standard_errors (`Mapping[str, float]`):
            Of the tasks, in shares; those outside of CORE do not count.
        version (`str`):
            Of the baselines.
        is_subset (`bool`):
            Whether a task lacks rows: then even all 22 are no CORE.

    Raises:
        ValueError: if none of CORE's tasks is there.
    """
    scores = aggregate_core(accuracies, version, partial=True)
    labels = [label for label in CORE_TASKS if label in accuracies]
    is_whole = len(labels) == len(CORE_TASKS)
    value = scores[_score_name(len(labels), version, is_whole=is_whole)]
    name = _score_name(len(labels), version, is_whole=is_whole and not is_subset)
    return Score(name, value, _mean_error(standard_errors, labels, version), len(labels))


def extended_score(
    accuracies: Mapping[str, float], standard_errors: Mapping[str, float], version: Version
) -> Score | None:
    """The mean over all 53 labels, with its standard error; `None` where one of them is missing."""
    if any(label not in accuracies for label in EXTENDED_TASKS):
        return None
    name = f"extended_{version}"
    value = aggregate_core(accuracies, version)[name]
    return Score(name, value, _mean_error(standard_errors, EXTENDED_TASKS, version), len(EXTENDED_TASKS))


def _mean_error(standard_errors: Mapping[str, float], labels: Sequence[str], version: Version) -> float:
    squares = [(standard_errors[label] / (1 - TASKS[label].baseline(version))) ** 2 for label in labels]
    return math.sqrt(math.fsum(squares)) / len(labels)


def accuracy_of(correct: ArrayLike, categories: Sequence[str] | None = None) -> tuple[float, float]:
    r"""
    Accuracy and its standard error, binomial: $\sqrt{p (1 - p) / n}$; with categories the mean over them, each with
    its own.

    Args:
        correct (array of `bool`, shape `(rows,)`):
            Whether each row was right.
        categories (`Sequence[str]`, *optional*):
            Of each row.

    Returns:
        `tuple[float, float]`: shares.
    """
    parts = _by_category(np.asarray(correct, dtype=np.float64), categories)
    means = [float(category.mean()) for category in parts]
    variances = [mean * (1 - mean) / len(category) for mean, category in zip(means, parts, strict=True)]
    return math.fsum(means) / len(means), math.sqrt(math.fsum(variances)) / len(means)


@dataclass(frozen=True)
class Difference:
    """
    How much better a model is than another on the same rows, in centred accuracy.

    Args:
        mean (`float`):
            The model's minus the other's.
        half_width (`float` or `None`):
            Half of the 95 % interval over rows, paired; `None` where a task has a single row.
    """

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        """The mean with its sign, and the half-width."""
        return f"{self.mean:+.4f}" if self.half_width is None else f"{self.mean:+.4f} ± {self.half_width:.4f}"


def paired_difference(
    correct: ArrayLike, other_correct: ArrayLike, baseline: float, categories: Sequence[str] | None = None
) -> Difference:
    r"""
    The difference of two models' centred accuracy on one task's rows, with a normal interval over the rows.

    The variance is that of the row's differences, $\sum_i (d_i - \bar d)^2 / (n (n - 1))$, so what both models find
    easy or hard adds nothing to it.

    Args:
        correct, other_correct (arrays of `bool`, shape `(rows,)`):
            Whether each row was right, under the model and under the other.
        baseline (`float`):
            What guessing gets, a share.
        categories (`Sequence[str]`, *optional*):
            Of each row: the mean is over them.
    """
    differences = np.asarray(correct, dtype=np.float64) - np.asarray(other_correct, dtype=np.float64)
    parts = _by_category(differences, categories)
    mean = math.fsum(float(category.mean()) for category in parts) / len(parts)
    half_width = None
    if all(len(category) > 1 for category in parts):
        variance = math.fsum(float(category.var(ddof=1)) / len(category) for category in parts) / len(parts) ** 2
        half_width = _quantile() * math.sqrt(variance) / (1 - baseline)
    return Difference(mean / (1 - baseline), half_width)


def mean_difference(differences: Iterable[Difference]) -> Difference:
    """The mean over tasks; its interval is theirs added as independent ones."""
    parts = list(differences)
    mean = math.fsum(difference.mean for difference in parts) / len(parts)
    widths = [difference.half_width for difference in parts]
    if any(width is None for width in widths):
        return Difference(mean, None)
    return Difference(mean, math.sqrt(math.fsum(width**2 for width in widths if width is not None)) / len(parts))


def _by_category(values: NDArray[np.float64], categories: Sequence[str] | None) -> list[NDArray[np.float64]]:
    if categories is None:
        return [values]
    names = np.asarray(categories)
    return [values[names == name] for name in sorted(set(categories))]


def _quantile() -> float:
    return NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
