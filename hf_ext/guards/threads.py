"""Threads that libraries share: numba and torch may run on one OpenMP, which has one number of threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["torch_threads_kept"]


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """
    Leave torch's number of threads as it was, for code that runs numba in parallel.

    numba sets OpenMP's number to the machine's when it first starts its threads, and torch then sums in another order:
    a training run beside it would not repeat bit for bit. Imports nothing.
    """
    torch = sys.modules.get("torch")
    num_threads = torch.get_num_threads() if torch is not None else None
    try:
        yield
    finally:
        if torch is not None and torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
