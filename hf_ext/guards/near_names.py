"""Names that look like one that was mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, possible_names: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing where no possible name is close."""
    close_names = difflib.get_close_matches(name, list(possible_names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close_names))}?" if close_names else ""
