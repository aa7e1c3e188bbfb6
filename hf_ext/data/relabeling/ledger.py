"""The ledger: two columns that say what each row's label has cost, and through which channel it came."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

EPSILON = "label_dp_epsilon"
"""Column of the nats spent on the label, float32, never below what was spent."""

CHANNEL = "label_dp_channel"
"""Column of the channel the label came through: mechanism, classes, format, a hash, such as `rr-7-v2-1f0c...`."""

FORMAT = "2"
"""Of the draw; names without one are of the first, whose labels have the same channel from other noise."""

TRUE_LABEL = "true-label"
"""In `CHANNEL`: the label is the true one; the budget was spent on copies released elsewhere."""

NOTHING_SPENT = {EPSILON: 0.0, CHANNEL: ""}
"""The ledger of a row whose label was never randomised, beside rows whose labels were."""


class PrivacyBudgetError(ValueError):
    """A second draw from a label whose budget is spent, without word on what the draw is from."""


def channel_id(mechanism: str, num_classes: int, facts: bytes) -> str:
    """A short name of a channel: mechanism, classes and format in plain, everything else hashed."""
    return f"{mechanism}-{num_classes}-v{FORMAT}-{hashlib.sha256(facts).hexdigest()[:12]}"


def has_ledger(columns: Iterable[str]) -> bool:
    """Whether one of the ledger's columns is among these."""
    return bool({EPSILON, CHANNEL} & set(columns))


def has_spent(rows: Dataset) -> bool:
    """Whether the ledger says of any row that its label has cost something; the columns alone do not."""
    plain = rows.with_format(None)
    epsilons = plain[EPSILON][:] if EPSILON in rows.column_names else []
    channels = plain[CHANNEL][:] if CHANNEL in rows.column_names else []
    return any(x is not None and x > 0 for x in epsilons) or any(channels)


def spent(batch: Mapping[str, Any], rows: int) -> tuple[NDArray[np.float64], list[str]]:
    """
    What the ledger says of each row of a batch; 0 and an empty string where a row has none.

    Rows of a concatenated dataset of which only one part was randomised hold nulls there.
    """
    epsilons = batch.get(EPSILON, [None] * rows)
    channels = batch.get(CHANNEL, [None] * rows)
    spent_so_far = np.array([0.0 if x is None else float(x) for x in epsilons], dtype=np.float64)
    return np.nan_to_num(spent_so_far, nan=0.0), ["" if name is None else str(name) for name in channels]


def rounded_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """As float32, but never below: a ledger must not understate."""
    single = values.astype(np.float32)
    return np.where(single.astype(np.float64) < values, np.nextafter(single, np.float32(np.inf)), single)
