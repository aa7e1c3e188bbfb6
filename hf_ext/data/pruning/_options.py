"""Which options each pruning method has, and of what type, read off the functions that take them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

import numpy as np

from hf_ext.data.pruning.matching import gm_matching

__all__ = ["check_options"]

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "none",
}
_BY_GROUP = ("random", "moderate", "easy", "hard", "k_center")
_BY_SCORES = ("el2n", "grand", "forgetting", "uncertainty")
_GIVEN = ("X", "k", "groups", "return")  # by `select_rows` itself


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """
    Refuse options that a method does not have, or of another type.

    Args:
        method (`str`):
            A selector's name; what one that was registered takes is its own affair.
        options (`Mapping[str, Any]`):
            As `select_rows` takes them.

    Raises:
        ValueError: names the option, and those that there are.
    """
    hints = _option_hints(method)
    if hints is None:
        return
    for name, value in options.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"method={method!r} has no option {name!r}.{hint} It has {', '.join(sorted(hints))}.")
        kinds = set(get_args(hints[name])) or {hints[name]}
        if kinds <= set(_KINDS) and not any(_is(value, kind) for kind in kinds):
            words = " or ".join(words for kind, words in _KINDS.items() if kind in kinds)
            raise ValueError(f"{name} must be {words}, got {value!r}.")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return kind is bool
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind))


@cache
def _option_hints(method: str) -> dict[str, Any] | None:
    """Option to type hint; `None` where only the selector itself knows."""
    matching = get_type_hints(gm_matching)
    shared = {name: matching[name] for name in ("metric", "center", "budget", "min_per_group")}
    if method in ("gm", "herding"):
        return {name: hint for name, hint in matching.items() if name not in _GIVEN}
    if method == "gm_official":
        fixed = (*_GIVEN, "center", "theta0", "metric", "target_scale")
        return {"first": Any, **{name: hint for name, hint in matching.items() if name not in fixed}}
    if method in _BY_SCORES:
        return {"keep": str, **shared}
    return shared if method in _BY_GROUP else None
