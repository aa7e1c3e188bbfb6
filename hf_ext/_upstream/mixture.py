"""Hooks of any host trainer for rows of several sources: prepared apart, drawn by a sampler, measured quietly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module
from torch.utils.data import Sampler
from transformers import Trainer

from hf_ext._upstream.rows import AnyDataset

TOUCHED = (
    ("trl.SFTTrainer", "_prepare_dataset", "sources would be prepared and packed as one"),
    ("trl.DPOTrainer", "_prepare_dataset", "sources would be prepared as one"),
    ("transformers.Trainer", "_get_train_sampler", "rows would be drawn without regard to their source"),
    ("transformers.Trainer", "_save_checkpoint", "a checkpoint would not hold which sources were drawn"),
    ("trl.SFTTrainer", "_metrics", "forwards on the target would be in the metrics of training"),
    ("trl.SFTTrainer", "_total_train_tokens", "tokens of the target would be counted as trained on"),
    ("trl.DPOTrainer", "_total_train_tokens", "tokens of the target would be counted as trained on"),
)

_METRICS = ("_metrics", "_total_train_tokens", "ratio_sums")  # TRL's, and those of our hooks


class MixtureHooks(Trainer):
    """
    Public hooks of any host trainer; stands before it in the bases.

    - `prepare_sources(first, prepare)`: in place of the host's preparing of its train rows, where it prepares any;
    - `train_sampler()`: in place of the host's, where it gives one;
    - `before_checkpoint()`: before anything of a checkpoint is written;
    - `metrics_as_before()`: a context in which forwards leave no trace in the metrics.
    """

    def prepare_sources(self, first: AnyDataset, prepare: Callable[[AnyDataset, str], AnyDataset]) -> AnyDataset:
        """Prepared train rows; `prepare(rows, name)` is the host's way with rows that were not checked yet."""
        raise NotImplementedError

    def train_sampler(self) -> Sampler | None:
        """The sampler of the train rows; `None` is the host's."""
        return None

    def before_checkpoint(self) -> None:
        """Called on every process; the default does nothing."""

    @contextmanager
    def metrics_as_before(self) -> Iterator[None]:
        """Inside, what forwards add to the metrics of the next log is taken away again."""
        former = {name: copy.deepcopy(getattr(self, name)) for name in _METRICS if hasattr(self, name)}
        try:
            yield
        finally:
            for name, value in former.items():
                setattr(self, name, value)

    def _prepare_dataset(self, dataset: AnyDataset, *settings: Any) -> AnyDataset:
        host: Any = super()
        if settings[-1] != "train":
            return host._prepare_dataset(dataset, *settings)
        is_checked = getattr(self, "rows_are_checked", False)  # those that a constructor of ours was given

        def prepare(rows: AnyDataset, name: str) -> AnyDataset:
            self.rows_are_checked = is_checked and rows is dataset
            try:
                return host._prepare_dataset(rows, *settings[:-1], name)
            finally:
                self.rows_are_checked = is_checked

        return self.prepare_sources(dataset, prepare)

    def _get_train_sampler(self, train_dataset: AnyDataset | None = None) -> Sampler | None:
        sampler = self.train_sampler()
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        self.before_checkpoint()
        super()._save_checkpoint(model, trial)


def prepares_rows(host: type[Trainer]) -> bool:
    """Whether a host's constructor tokenises the rows it is given; the hooks above do not count."""
    return any("_prepare_dataset" in vars(base) for base in host.__mro__ if base is not MixtureHooks)


def draws_its_own_batches(host: type[Trainer]) -> bool:
    """Whether a host makes the loader of its train rows itself, so that no sampler can be given to it."""
    return host.get_train_dataloader is not Trainer.get_train_dataloader


__all__ = ["TOUCHED", "MixtureHooks", "draws_its_own_batches", "prepares_rows"]
