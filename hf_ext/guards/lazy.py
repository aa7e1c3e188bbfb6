"""Public names of a package that are loaded on first use (PEP 562): importing the package imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from hf_ext.guards.extras import naming_extras


def lazy_names(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    `__getattr__`, `__dir__` and `__all__` of a package, from one table.

    `tools/exports.py` writes the same table as `__init__.pyi`, for type checkers and editors.

    Args:
        package (`str`):
            The package's `__name__`.
        exports (`Mapping[str, Sequence[str]]`):
            Module to the public names that it defines. None of them may be the name of a module of the package.
    """
    homes = {name: module for module, names in exports.items() for name in names}
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with naming_extras():
            value = getattr(import_module(homes[name]), name)
        namespace[name] = value  # the next look-up does not come here
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return load, names, sorted(homes)
