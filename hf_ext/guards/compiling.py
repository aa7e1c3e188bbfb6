"""Functions compiled by numba, kept on disk where there is a place for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Compile at the first call, and keep the result for the next process where numba can write.

    numba keeps it beside the source or in the user's cache folder; where it can write to neither, as in a read-only
    installation of a user without a home, `cache=True` raises at import: the function is compiled anew each time.
    """
    from numba import njit

    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(nogil=True)(function)
