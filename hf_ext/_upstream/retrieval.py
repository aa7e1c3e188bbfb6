"""The seam of the retrieval trainers: `SentenceTransformerTrainer` and `SparseEncoderTrainer`.

`sft.py`'s `TOUCHED` lists the private names used here: the hooks are those of [`Seam`], which the
hosts inherit from transformers' `Trainer`.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformerTrainer, SparseEncoderTrainer

from hf_ext._upstream.sft import Seam


class RetrievalSeam(Seam):
    """
    A trainer of sentence-transformers with the hooks of [`Seam`]; stands before the host in the bases below.

    These hosts have no store of metrics: ratios join the line that is being logged.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the ratios of training summed over processes."""
        if self.model.training and "loss" in logs:
            logs |= self.take_ratios("train")
        super(Seam, self).log(logs, start_time)  # past Seam's own, which fills a store that TRL's trainers have

    def add_metric(self, name: str, value: float) -> Any:
        """Not there: these hosts keep no metrics between logs."""
        raise NotImplementedError(f"{type(self).__name__} logs ratios alone: use add_ratio({name!r}, ...).")


class SentenceTransformerSeam(RetrievalSeam, SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` with the hooks of [`RetrievalSeam`]."""


class SparseEncoderSeam(RetrievalSeam, SparseEncoderTrainer):
    """`SparseEncoderTrainer` with the hooks of [`RetrievalSeam`]."""
