"""Hooks of the retrieval trainers: `SentenceTransformerTrainer` and `SparseEncoderTrainer`."""

from __future__ import annotations

from sentence_transformers import SentenceTransformerTrainer, SparseEncoderTrainer

from hf_ext._upstream.trainer import BaseTrainerHooks

TOUCHED = (
    ("sentence_transformers.SentenceTransformerTrainer", "_save", "training_args.bin, a pickle, would be saved"),
    ("sentence_transformers.SentenceTransformerTrainer", "_push_from_checkpoint", "pickles could be published"),
    ("sentence_transformers.SentenceTransformerTrainer", "_load_best_model", "a damaged checkpoint could be loaded"),
    ("sentence_transformers.SparseEncoderTrainer", "_save", "training_args.bin, a pickle, would be saved"),
    ("sentence_transformers.SparseEncoderTrainer", "_push_from_checkpoint", "pickles could be published"),
)


class RetrievalTrainerHooks(BaseTrainerHooks):
    """The hooks of [`BaseTrainerHooks`] for hosts that keep no metrics between logs: ratios join the line itself."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the ratios of training summed over processes."""
        if self.model.training and "loss" in logs:
            logs |= self.take_ratios("train")
        super().log(logs, start_time)


class SentenceTransformerTrainerHooks(RetrievalTrainerHooks, SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` with the hooks of [`RetrievalTrainerHooks`]."""


class SparseEncoderTrainerHooks(RetrievalTrainerHooks, SparseEncoderTrainer):
    """`SparseEncoderTrainer` with the hooks of [`RetrievalTrainerHooks`]."""
