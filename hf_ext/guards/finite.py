"""
Stop at a value that is not finite, before the optimiser sees it.

transformers' `logging_nan_inf_filter=True`, its default, replaces a NaN loss in the log by the mean of the losses
before it. One NaN loss then makes every parameter NaN while the log goes on showing finite numbers, and the run ends
as if nothing had happened. A trainer here calls [`check_finite`] on its weights, log-probabilities and loss before
`backward`.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ROWS_SHOWN = 8


class NonFiniteError(FloatingPointError):
    """
    A NaN or an infinity in training.

    Attributes:
        name (`str`):
            What was not finite: `"loss"`, `"log-prob"`, `"weight"`.
        step (`int`):
            Optimiser steps taken before it.
        rank (`int`):
            Process that met it.
        row_indices (`list[int]`):
            Dataset rows (`row_index`) it came from, sorted; empty where they are not known.
    """

    def __init__(self, message: str, name: str, step: int, rank: int, row_indices: list[int]) -> None:
        super().__init__(message)
        self.name = name
        self.step = step
        self.rank = rank
        self.row_indices = row_indices


def check_finite(name: str, values: Tensor, *, step: int, rank: int, row_index: Tensor | None = None) -> None:
    """
    Raise when a tensor holds a NaN or an infinity, and say which dataset rows it came from.

    A tensor without one costs a single reduction (on a GPU, one synchronisation).

    Args:
        name (`str`):
            What the values are, for the message: `"loss"`, `"log-prob"`, `"weight"`.
        values (`torch.Tensor` of any shape):
            The values to check.
        step (`int`):
            Optimiser steps taken so far.
        rank (`int`):
            Index of this process.
        row_index (`torch.Tensor`, *optional*):
            Dataset row of each value, -1 where there is none (padding). Of the shape of `values`; `(batch, seq_len)`
            for values `(batch, seq_len - 1)`, whose row is then that of the predicted token; or `(batch,)`, one a
            batch row. With any other shape, and for a scalar, all rows of the batch are named.

    Raises:
        [`NonFiniteError`]: with the name, step, rank, rows and the first bad value.
    """
    values = values.detach()
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = ~finite
    rows = [] if row_index is None else _rows_of(bad, row_index.detach())
    position = tuple(torch.nonzero(bad)[0].tolist())
    first = float(values[position])
    count = int(bad.sum())
    what = (
        f"is {first}"
        if values.ndim == 0
        else f"has {count:,} of {values.numel():,} values not finite, first {first} at {position}"
    )
    message = (
        f"{name} {what}, at step {step:,} on rank {rank}.\n"
        f"  dataset rows: {_listing(rows)}\n"
        "  The optimiser step was not taken. Look at these rows, lower the learning rate or clip gradients, and "
        "prefer bf16 to fp16; then resume from the last checkpoint."
    )
    raise NonFiniteError(message, name, step, rank, rows)


def _rows_of(bad: Tensor, row_index: Tensor) -> list[int]:
    """Sorted dataset rows of the bad values; of the whole batch where shapes do not say more."""
    bad = bad.to(row_index.device)
    if (
        row_index.ndim == bad.ndim > 0
        and row_index.shape[:-1] == bad.shape[:-1]
        and row_index.shape[-1] == bad.shape[-1] + 1
    ):
        row_index = row_index[..., 1:]  # value t predicts token t + 1
    if row_index.shape == bad.shape:
        chosen = row_index[bad]
    elif row_index.ndim == 1 and bad.ndim > 1 and row_index.shape[0] == bad.shape[0]:
        chosen = row_index[bad.flatten(1).any(dim=1)]
    else:
        chosen = row_index.flatten()
    return [row for row in torch.unique(chosen).tolist() if row >= 0]


def _listing(rows: list[int]) -> str:
    if not rows:
        return "not known"
    more = len(rows) - MAX_ROWS_SHOWN
    return ", ".join(f"{row:,}" for row in rows[:MAX_ROWS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
