"""
Stop at a value that is not finite, before the optimiser sees it.

transformers' `logging_nan_inf_filter=True`, its default, replaces a NaN loss in the log by the mean of the losses
before it. One NaN loss then makes every parameter NaN while the log goes on showing finite numbers, and the run ends
as if nothing had happened. A trainer here calls [`check_finite`] on its weights, log-probabilities and loss before
`backward`. A loss that is finite may still have a gradient that is not, and a finite gradient may still throw a
parameter out of range: [`check_gradient`] comes before every optimiser step, [`parameter_error`] before every save.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

MAX_ROWS_SHOWN = 8


class NonFiniteError(FloatingPointError):
    """
    A NaN or an infinity in training.

    Attributes:
        name (`str`):
            What was not finite: `"loss"`, `"log-prob"`, `"weight"`, `"gradient"`, `"parameter"`.
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
        [`NonFiniteError`]: if a value is not finite; it names the values, step, rank, rows and the first bad value.
    """
    values = values.detach()
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = ~finite
    rows = [] if row_index is None else _rows_of(bad, row_index.detach())
    message = (
        f"{name} {_extent(values)}, at step {step:,} on rank {rank}.\n"
        f"  dataset rows: {_listing(rows)}\n"
        "  The optimiser step was not taken. Look at these rows, lower the learning rate or clip gradients, and "
        "prefer bf16 to fp16; then resume from the last checkpoint."
    )
    raise NonFiniteError(message, name, step, rank, rows)


def check_gradient(
    norm: Tensor | float,
    parameters: Iterable[tuple[str, Parameter]],
    *,
    step: int,
    rank: int,
    row_index: Tensor | None = None,
) -> None:
    """
    Raise when the norm of a gradient is a NaN or an infinity.

    Args:
        norm (`torch.Tensor`, scalar, or `float`):
            Of the gradient, over all parameters and processes.
        parameters (iterable of `str` and `torch.nn.Parameter`):
            With their gradients, in order: the first to blame is named. Read only where the norm is not finite.
        step (`int`):
            Optimiser steps taken so far.
        rank (`int`):
            Index of this process.
        row_index (`torch.Tensor`, *optional*):
            Dataset rows of the whole step on this process, -1 where there is none.

    Raises:
        [`NonFiniteError`]: if the norm is not finite; its name is `"gradient"`, with step, rank and rows.
    """
    norm = torch.as_tensor(norm)
    if bool(torch.isfinite(norm)):
        return
    gradients = ((name, value.grad) for name, value in parameters if value.grad is not None)
    worst = first_not_finite(gradients)
    if worst is not None:
        place = f"first in parameter {worst[0]!r}, where it {_extent(worst[1])}"
    else:
        place = "no single value of it is to blame: too large to be squared, or summed over processes"
    rows = [] if row_index is None else _rows_of(torch.ones_like(row_index, dtype=torch.bool), row_index)
    message = (
        f"gradient has the norm {float(norm)}, at step {step:,} on rank {rank}; {place}.\n"
        f"  dataset rows of the step on this rank: {_listing(rows)}\n"
        "  The optimiser step was not taken. Look at these rows, at their weights, and at layers or losses of your "
        "own whose derivative may be infinite; lower the learning rate, prefer bf16 to fp16; resume from the last "
        "checkpoint."
    )
    raise NonFiniteError(message, "gradient", step, rank, rows)


def parameter_error(
    parameters: Iterable[tuple[str, Tensor]],
    *,
    step: int,
    rank: int,
    row_index: Tensor | None = None,
    advice: str = "",
) -> NonFiniteError | None:
    """
    The error for a model that is not finite, or `None` where it is.

    Args:
        parameters (iterable of `str` and `torch.Tensor`):
            By name, and running statistics. Of a sharded one the part on this process is read; what is quantised or
            on the meta device is not.
        step (`int`):
            Optimiser steps taken so far.
        rank (`int`):
            Index of this process.
        row_index (`torch.Tensor`, *optional*):
            Dataset rows of the last step on this process.
        advice (`str`, *optional*):
            What is still whole, and what to do now.
    """
    worst = first_not_finite(parameters)
    if worst is None:
        return None
    name, values = worst
    rows = [] if row_index is None else _rows_of(torch.ones_like(row_index, dtype=torch.bool), row_index)
    message = (
        f"parameter {name!r} {_extent(values)}, after step {step:,} on rank {rank}.\n"
        f"  dataset rows of that step on this rank: {_listing(rows)}\n"
        f"  The model is neither saved nor pushed. {advice}"
    )
    return NonFiniteError(message.rstrip(), "parameter", step, rank, rows)


@torch.no_grad()
def first_not_finite(values: Iterable[tuple[str, Tensor]]) -> tuple[str, Tensor] | None:
    """The first of some named tensors with a NaN or an infinity, with one synchronisation for all of them."""
    readable = [(name, part) for name, tensor in values if (part := readable_part(tensor)) is not None]
    if not readable:
        return None
    # moved to the CPU one by one, because the parts of a model may lie on several devices
    flags = torch.stack([torch.isfinite(part).all().cpu() for _, part in readable])
    return None if bool(flags.all()) else readable[int((~flags).nonzero()[0])]


def readable_part(values: Tensor) -> Tensor | None:
    """The values on this process where they can be read as numbers: not quantised, not on the meta device."""
    values = values.detach()
    # of a sharded parameter (DTensor) the part on this process
    if hasattr(values, "to_local"):
        values = values.to_local()
    if values.is_sparse:
        values = values.coalesce().values()
    # One byte a value is a quantised format, and so is a tensor of a class of its own: neither knows `isfinite`.
    is_number = (values.is_floating_point() or values.is_complex()) and values.dtype.itemsize > 1
    return values if is_number and type(values) in (Tensor, Parameter) and not values.is_meta else None


def _extent(values: Tensor) -> str:
    """How many values are not finite, and the first."""
    bad = ~torch.isfinite(values)
    position = tuple(torch.nonzero(bad)[0].tolist())
    first = float(values[position])
    if values.ndim == 0:
        return f"is {first}"
    return f"has {int(bad.sum()):,} of {values.numel():,} values not finite, first {first} at {position}"


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
