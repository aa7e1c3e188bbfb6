"""Verifiers of a user's own, found by name."""

from __future__ import annotations

from typing import Any


def even(prompt: Any, completion: str, row: dict[str, Any]) -> float:
    """Whether the answer has an even number of characters: about half of a random model's answers."""
    return float(len(completion) % 2 == 0)


def broken(prompt: Any, completion: str, row: dict[str, Any]) -> float:
    """No number that could be ranked."""
    return float("nan")


NO_FUNCTION = 3
