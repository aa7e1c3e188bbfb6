"""Public names of a package that are loaded on first use (PEP 562): importing the package imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

Exports: TypeAlias = Mapping[str, Sequence[str]]


def lazy_names(
    package: str, exports: Exports, more_exports: Callable[[], Exports] = dict
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    `__getattr__` and `__dir__` of a package, from one table; `__all__` comes from it as well.

    `tools/exports.py` writes the same names as `__init__.pyi`, for type checkers and editors.

    Args:
        package (`str`):
            The package's `__name__`.
        exports (`Mapping[str, Sequence[str]]`):
            Module to the public names that it defines. None of them may be the name of a module of the package.
        more_exports (`Callable`, *optional*):
            Gives further ones. It is called only for a name that is not in `exports`, and where all are asked for.
    """
    homes = homes_of(exports)
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name == "__all__":  # `import *` looks it up here too
            return sorted({*homes, *homes_of(more_exports())})
        home = homes.get(name) or (None if name.startswith("_") else homes_of(more_exports()).get(name))
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from hf_ext.guards.extras import naming_extras  # `import hf_ext` needs it not yet

        with naming_extras():
            value = getattr(import_module(home), name)
        namespace[name] = value  # the next look-up does not come here
        return value

    def names() -> list[str]:
        return sorted({*namespace, *load("__all__")})

    return load, names


def homes_of(exports: Exports) -> dict[str, str]:
    """Public name to the module that defines it."""
    return {name: module for module, names in exports.items() for name in names}
