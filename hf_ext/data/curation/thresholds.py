"""The score at which a share of a set is kept: by words or by documents, ties decided by what the documents are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.guards.numbers import SHARE


class Cut(NamedTuple):
    """
    Where a set was cut.

    Args:
        threshold (`float`):
            Lowest score that is kept.
        is_kept (`np.ndarray` of shape `(documents,)`):
            Which documents stay: all above the threshold, and of those that are at it as many as the share takes.
        kept_share (`float`):
            Share of the weights that they make up; at least what was asked for, by less than one document.
    """

    threshold: float
    is_kept: npt.NDArray[np.bool_]
    kept_share: float


def share_cut(
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    keep_share: float,
) -> Cut:
    """
    Keep the documents with the highest scores until a share of the weight is reached.

    Documents of one score are taken by their keys: with keys that are hashes of the texts the same texts stay,
    however the set is split into shards or ordered.

    Args:
        scores (`np.ndarray` of shape `(documents,)`):
            No NaN.
        weights (`np.ndarray` of shape `(documents,)`):
            Words of each document, or ones.
        keys (`np.ndarray` of shape `(documents,)`):
            What decides between equal scores.
        keep_share (`float`):
            Above 0 and at most 1.

    Raises:
        ValueError: if there is no document with a weight, a score is NaN, or the share is no share.
    """
    problem = SHARE.problem_of(keep_share)
    if problem is not None:
        raise ValueError(f"keep_share {problem}.")
    if np.isnan(scores).any():
        raise ValueError(f"score {int(np.flatnonzero(np.isnan(scores))[0]):,} is NaN: check the classifier.")
    total = int(weights.sum())
    if total < 1:
        raise ValueError("There is nothing to keep a share of: the set has no document with a word in it.")
    order = np.lexsort((keys, -scores))
    weight_so_far = np.cumsum(weights[order])
    # the decimal number that was written down: 0.07 * 100 is above 7 in floating point, and would keep one more
    target = math.ceil(Fraction(str(keep_share)) * total)
    num_kept = int(np.searchsorted(weight_so_far, target)) + 1
    is_kept = np.zeros(len(scores), dtype=bool)
    is_kept[order[:num_kept]] = True
    return Cut(float(scores[order[num_kept - 1]]), is_kept, int(weight_so_far[num_kept - 1]) / total)
