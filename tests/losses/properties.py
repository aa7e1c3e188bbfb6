"""
What the property tests of losses share: how many examples, and small tensors that are quick to draw.

`HF_EXT_EXAMPLES` sets the examples a property, 500 by default; the slow suite runs the same tests with 10,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

MAX_EXAMPLES = int(os.environ.get("HF_EXT_EXAMPLES", "500"))
EXAMPLES = settings(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tensors(
    *bounds: tuple[float, float],
    dtype: type[np.floating] = np.float64,
    max_rows: int = 3,
    max_columns: int = 4,
    columns: int | None = None,
) -> st.SearchStrategy[tuple[Tensor, ...]]:
    """
    One tensor for each `(lowest, highest)` value, all of one shape `(rows, columns)`.

    Hypothesis draws the shape and a seed; the values follow from the seed, which is six times as fast as drawing each.
    """

    def fill(seed: int, rows: int, width: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng(seed)
        return tuple(torch.from_numpy(_values(rng, low, high, (rows, width)).astype(dtype)) for low, high in bounds)

    widths = st.integers(1, max_columns) if columns is None else st.just(columns)
    return st.builds(fill, st.integers(0, 2**32 - 1), st.integers(1, max_rows), widths)


def _values(rng: np.random.Generator, low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
    """Anything in the bounds; a few values over and over; all alike; or close to one value."""
    special = np.clip([low, high, 0.0, 1.0, -1.0, (low + high) / 2], low, high)
    anything = rng.uniform(low, high, shape)
    match rng.integers(4):
        case 0:
            return anything
        case 1:
            return np.where(rng.random(shape) < 0.6, rng.choice(special, shape), anything)
        case 2:
            return np.full(shape, rng.choice([*special, anything[0, 0]]))
        case _:
            return np.clip(rng.choice(special) + 10.0 ** -rng.integers(1, 9) * anything, low, high)


def permutations() -> st.SearchStrategy[Callable[[int], Tensor]]:
    """A function from `n` to an order of `n` things."""

    def order(seed: int) -> Callable[[int], Tensor]:
        return lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    return st.builds(order, st.integers(0, 2**32 - 1))


def central_difference(loss: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Gradient of a scalar `loss` in the float64 tensor `at`, one entry at a time: no autograd."""
    gradient = torch.empty_like(at)
    flat = gradient.view(-1)
    for i in range(at.numel()):
        values = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[i] += sign * step
            values.append(loss(moved))
        flat[i] = (values[0] - values[1]) / (2 * step)
    return gradient


def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar `loss` in `at` by autograd."""
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient
