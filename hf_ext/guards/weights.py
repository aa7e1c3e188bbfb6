"""Weights from which nothing can be learned: zero, or too small for float32, the type of losses."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from hf_ext.guards import arrow_checks
from hf_ext.guards.row_errors import RowError
from hf_ext.guards.row_rules import number_problem

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LEAST_WEIGHT = float(np.finfo(np.float32).tiny)
"""The least weight that counts, 1.2e-38: below it float32 drops digits, down to none, and 1 / weight overflows."""


def refuse_vanishing_weights(dataset: Dataset, dataset_name: str = "train") -> None:
    """
    Refuse rows whose every `weight` is zero in float32; warn where none is large enough to count.

    Args:
        dataset (`Dataset`):
            Rows with a column `weight`: a number, or a list of them.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            For the message.

    Raises:
        ValueError: if every weight is zero, or float32 makes it so.
    """
    tables = dataset.select_columns(["weight"]).with_format("arrow").iter(batch_size=10_000)
    largest = 0.0
    # one weight that counts is enough, and mostly the first batch has it
    for table in tables:
        largest = max(largest, arrow_checks.largest_weight(table))
        if largest >= LEAST_WEIGHT:
            return
    if largest == 0:
        raise ValueError(
            f"Every weight of the {dataset_name} dataset is 0, so nothing would be learned. Remove the column "
            "'weight' (then every row counts 1), or fill it again."
        )
    verdict = (
        f"Every weight of the {dataset_name} dataset vanishes in float32, the type of losses, so nothing would be "
        f"learned: the largest is {largest:.2g}, and below {LEAST_WEIGHT:.2g} a weight counts nothing. Multiply all "
        "of them by one number, so that the largest is about 1."
    )
    if np.float32(largest) == 0:
        raise ValueError(verdict)
    logger.warning(verdict)


def require_row_weights(dataset: Dataset) -> None:
    """
    Refuse a column `weight` that does not hold a finite number of at least 0 for each row.

    Raises:
        RowError: names the first row.
    """
    for index, value in enumerate(dataset.with_format(None)["weight"]):
        problem = number_problem(value)
        if problem is not None:
            message = f"row {index:,}, column 'weight': {problem}.\n  Fix the row, or drop it with dataset.filter."
            raise RowError(message, index, "weight")


__all__ = ["LEAST_WEIGHT", "refuse_vanishing_weights", "require_row_weights"]
