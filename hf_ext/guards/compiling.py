"""Functions compiled by numba, kept on disk where there is a place for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """
    Compile at the first call, and keep the result for the next process where numba can write.

    numba keeps it beside the source or in the user's cache folder; where it can write to neither, as in a read-only
    installation of a user without a home, `cache=True` raises at import: the function is compiled anew each time.

    What is kept is taken for current while the function's own file is unchanged. So a compiled function calls only
    compiled ones of its file.

    Args:
        function (`Callable`, *optional*):
            What to compile; without it this is a decorator with options.
        options:
            Further ones of `numba.njit`, such as `parallel`.
    """
    if function is None:
        return partial(compiled, **options)
    from numba import njit

    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(nogil=True, **options)(function)


@cache
def compiled_module(name: str) -> Any:
    """
    A module of compiled functions, or `None` where numba cannot be used, so that the same has to be done plainly.

    Args:
        name (`str`):
            Of the module; its function `try_out` compiles what it has.
    """
    try:
        module = import_module(name)
        module.try_out()  # a cache that cannot be written, on a full disk, shows here
    except (ImportError, OSError) as error:
        logger.info("numba cannot be used (%s): plain Python. Install hf-ext[fast] for many times the speed.", error)
        return None
    return module
