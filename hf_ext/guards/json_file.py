"""JSON that a saved folder holds: read within bounds, every fault a sentence. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_ext.guards.yaml_file import read_text

__all__ = ["read_object"]

MAX_BYTES = 64 * 2**20
"""Longest file read; tokenizers of a quarter of a million tokens have some 20 MB."""


def read_object(path: str | Path) -> dict[str, Any]:
    """
    Read a file that holds one JSON object.

    Args:
        path (`str` or `Path`):
            Of UTF-8 text.

    Returns:
        `dict`: its content. The values may have any type: whoever uses one checks it.

    Raises:
        ValueError: the file is too long, no UTF-8, no JSON, nested too deeply, or holds something else.
        OSError: it cannot be opened; the message names it.
    """
    text = read_text(path, MAX_BYTES)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is no JSON: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object, found {type(values).__name__}")
    return values
