"""Query vectors that need not be computed again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


class VectorCache:
    """
    The vectors last used, by the text that was encoded.

    The text holds the exemplars, so another pool, other settings or another exclusion is another key; the caller adds
    what else decides a vector.

    Args:
        size (`int`): vectors that are kept; 0 is none.
    """

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.kept: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0

    def clear(self) -> None:
        """Forget everything."""
        self.kept.clear()

    def vectors(self, texts: list[str], state: str, encode: Callable[[list[str]], Any]) -> Any:
        """
        Vectors of the texts; those not kept are encoded in one call, each text once.

        Args:
            texts (`list[str]`): what the model reads, less the prompt.
            state (`str`): all else that decides the vectors.
            encode (`Callable`): texts to `(texts, dim)`, or a list.
        """
        keys = [hashlib.blake2b(f"{state}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.kept}
        self.hits += len(texts) - len(missing)
        fresh = encode(list(missing.values())) if missing or not texts else []
        found = dict(zip(missing, fresh, strict=True))
        for key in keys:
            if key in self.kept:
                self.kept.move_to_end(key)
                found[key] = self.kept[key]
        rows = [found[key] for key in keys]
        for key in missing:
            self.kept[key] = found[key]
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return _joined(rows, fresh) if texts else fresh


def _joined(rows: list[Any], fresh: Any) -> Any:
    """Rows in the form that `encode` gives."""
    if isinstance(rows[0], torch.Tensor):
        as_list = isinstance(fresh, list) and len(fresh) > 0
        return rows if as_list else torch.stack(rows)
    import numpy as np

    return np.stack(rows)
