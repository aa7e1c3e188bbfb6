"""Scores of a fastText model from a local file, by the package that only predicts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_ext.guards.extras import naming_extras
from hf_ext.guards.inside import require_file


@dataclass(frozen=True)
class FastTextClassifier:
    """
    A supervised fastText model, such as DCLM's, in a file of your own; nothing is downloaded.

    Its C++ reader trusts the file: load none that you would not run.

    Args:
        path (`str`):
            A `.bin` or `.ftz` file.
        label (`str`, *optional*, defaults to `"__label__hq"`):
            The label whose probability is the score.
        threshold (`float`, *optional*):
            The score from which documents are kept. DCLM's is 0.018112, chosen for its pool: find your own.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is no fastText model, or the label is none of its labels.
        MissingExtraError: if fasttext-predict is not installed.
    """

    path: str
    label: str = "__label__hq"
    threshold: float | None = None

    def __post_init__(self) -> None:
        require_file(self.path)
        labels = {label for _, label in _predictions(_model(*self._state), "")}
        if self.label not in labels:
            listing = ", ".join(sorted(labels)[:10])
            raise ValueError(f"{self.path} has no label {self.label!r}, but {listing}. Pass label=.")

    @property
    def _state(self) -> tuple[str, int, int]:
        """The file as it is now: another one under its name is loaded anew."""
        stat = os.stat(self.path)
        return str(Path(self.path).absolute()), stat.st_size, stat.st_mtime_ns

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file and the label."""
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(self.label.encode())
        return digest.hexdigest()[:32]

    def score(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Probability of the label for each text, `(texts,)`."""
        model = _model(*self._state)
        scores = [{label: p for p, label in _predictions(model, text)}[self.label] for text in texts]
        return np.clip(np.array(scores, dtype=float), 0, 1)  # fastText's is off by up to 1e-5


@lru_cache(maxsize=1)  # DCLM's takes 2.4 GB
def _model(path: str, size: int, modified: int) -> Any:
    with naming_extras():
        from fasttext import load_model
    return load_model(path).f


def _predictions(model: Any, text: str) -> list[tuple[float, str]]:
    """Probability and name of every label."""
    # a document is one line, for a line end would be a word of its own; lone surrogates have no UTF-8
    line = " ".join(text.strip().splitlines()).encode("utf-8", "replace").decode()
    # By its own `k` and threshold fastText leaves out labels below 1e-5; below 0 no threshold is one.
    return model.predict(line + "\n", -1, -1.0, "strict")
