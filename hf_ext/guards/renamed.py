"""Old names of arguments and attributes: they work for one more version, with a warning that has the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["renamed_attribute", "renamed_parameter"]

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def renamed_parameter(**names: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """
    Let a function take a keyword under its old name too: `@renamed_parameter(arm="run")`.

    The function raises a TypeError if both names are given.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            for old_name, new_name in names.items():
                if old_name in kwargs:
                    if new_name in kwargs:
                        raise TypeError(
                            f"{function.__name__} got {old_name}= and {new_name}=, two names of one argument"
                        )
                    _warn(f"{function.__name__}({old_name}=...)", f"{new_name}=")
                    kwargs[new_name] = kwargs.pop(old_name)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_attribute(old_name: str, new_name: str) -> Any:
    """A property that reads and sets the attribute `new_name`; stands in a class under its old name."""

    def read(instance: object) -> Any:
        _warn(old_name, new_name)
        return getattr(instance, new_name)

    def write(instance: object, value: object) -> None:
        _warn(old_name, new_name)
        setattr(instance, new_name, value)

    return property(read, write)


def _warn(old_name: str, new_name: str) -> None:
    # A FutureWarning: Python hides a DeprecationWarning that is raised in code other than the main script's.
    message = f"{old_name} is now called {new_name}; the old name goes with the next version."
    warnings.warn(message, FutureWarning, stacklevel=3)  # the line of the user, who calls what calls this
