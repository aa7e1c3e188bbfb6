"""A stock trainer of classifiers whose loss knows the channel its labels came through."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import Trainer

from hf_ext._upstream.stock import StockTrainerHooks
from hf_ext.data.relabeling import RRChannel
from hf_ext.data.relabeling.accuracy import channel_classes
from hf_ext.data.relabeling.consensus import LABEL_PROBS
from hf_ext.data.relabeling.heads import outputs_of
from hf_ext.data.relabeling.ledger import CHANNEL
from hf_ext.guards.rows import ROW_INDEX, RowError
from hf_ext.guards.weights import refuse_vanishing_weights
from hf_ext.losses.label_noise import forward_corrected_nll, soft_nll
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.consensus.card import ClassifierCard
from hf_ext.trainers.consensus.labels import checked_rows, same_eval_names

WEIGHT, CHANNEL_INDEX = "weight", "channel_index"
IDENTITY = (1.0, 0.0)  # p and q of labels that went through nothing


class NoisyLabels(BaseTrainer, StockTrainerHooks):
    """
    The loss of noisy labels for a stock trainer; stands before it in the bases. See [`ForwardCorrectedTrainer`].

    Batches may carry `weight` (a row's multiplier), `channel_index` (which of several channels), `label_probs` (soft
    labels, which take the place of the given ones) and `__hf_ext_row__` (for errors).
    """

    method = "consensus"
    card_class = ClassifierCard
    loss_name = "the loss corrected for the channel"

    def __init__(self, *args: Any, channel: RRChannel | Mapping[str, RRChannel] | None = None, **kwargs: Any) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"compute_loss_func is this trainer's own: {self.loss_name}. For a loss of yours, "
                "use transformers' Trainer."
            )
        self.noise = self.make_loss(channel)
        self.card_facts_of_run: dict[str, Any] = {}
        self.card_name: str | None = None
        rows = kwargs.get("train_dataset")
        if isinstance(rows, Dataset) and WEIGHT in rows.column_names:
            refuse_vanishing_weights(rows)
        kwargs = self._with_channel_index(self._with_checked_labels(kwargs))
        super().__init__(*args, **kwargs, compute_loss_func=self.noise)
        self.loss_is_scaled_for_ga = True
        if self.args.label_smoothing_factor != 0:
            raise ValueError("label_smoothing_factor is skipped silently where a loss is given: leave it at 0.")

    def make_loss(self, channel: RRChannel | Mapping[str, RRChannel] | None) -> ChannelLoss:
        """The loss of a micro-batch, which the host calls as its `compute_loss_func`."""
        return ChannelLoss(self, channel)

    def _with_checked_labels(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Rows of which every label is a class: the loss would stop at another one in the middle of an epoch."""
        same_eval_names(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        self.num_classes = channel_classes(self.noise.channel) or outputs_of(kwargs.get("model"))
        for name, title in (("train_dataset", "training"), ("eval_dataset", "evaluation")):
            if kwargs.get(name) is not None:
                kwargs[name] = checked_rows(kwargs[name], self.num_classes, title)
        return kwargs

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the host; rows that the constructor did not see are looked at now."""
        if isinstance(eval_dataset, Dataset | IterableDataset):
            eval_dataset = checked_rows(eval_dataset, self.num_classes, "evaluation")
        return super().get_eval_dataloader(eval_dataset)

    def carried_columns(self) -> tuple[str, ...]:
        """What the loss reads beside logits and labels."""
        return WEIGHT, CHANNEL_INDEX, LABEL_PROBS, ROW_INDEX

    def _with_channel_index(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of several channels each row gets the number of its own."""
        if not isinstance(self.noise.channel, Mapping):
            return kwargs
        for name in ("train_dataset", "eval_dataset"):
            if isinstance(kwargs.get(name), Dataset):
                kwargs[name] = add_channel_index(kwargs[name], self.noise.names)
        return kwargs

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As the host, with the columns that the loss reads kept out of the model's sight."""
        loss_columns = {name: inputs[name] for name in self.carried_columns() if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in loss_columns}
        self.noise.take(loss_columns)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As the host; rows without labels go to the model without the loss's columns."""
        if not any(name in inputs for name in self.label_names):
            inputs = {name: value for name, value in inputs.items() if name not in self.carried_columns()}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Labels of the accumulated batch, or the sum of their weights."""
        if WEIGHT not in batches[0] or "labels" not in batches[0]:
            return super().count_items(batches, device)
        total = sum(_spread(batch[WEIGHT], batch["labels"])[batch["labels"] != -100].sum() for batch in batches)
        total = torch.as_tensor(total, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        return self.sum_over_processes(total) if self.args.average_tokens_across_devices else total


class ChannelLoss:
    """`compute_loss_func` of [`NoisyLabels`]: the logits through the channel of each row."""

    def __init__(self, trainer: NoisyLabels, channel: RRChannel | Mapping[str, RRChannel] | None) -> None:
        self._trainer = weakref.ref(trainer)  # the trainer holds its loss
        self.channel = channel
        self.columns: dict[str, Tensor] = {}
        self.names: tuple[str, ...] = ()
        self.matrices: Tensor | None = None
        if isinstance(channel, Mapping):
            if not channel:
                raise ValueError("channel is an empty mapping: name at least one channel, as label_dp_channel does.")
            self.names = tuple(sorted(channel))
            self.matrices = torch.stack([torch.as_tensor(channel[name].matrix()) for name in self.names])

    @property
    def trainer(self) -> NoisyLabels:
        """The trainer whose loss it is."""
        trainer = self._trainer()
        assert trainer is not None, "a loss is computed by a living trainer"
        return trainer

    def take(self, columns: dict[str, Tensor]) -> None:
        """Columns of the batch whose loss comes next."""
        self.columns = columns

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a micro-batch, finite."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        rows = self.columns.get(ROW_INDEX)
        weight = self.columns.get(WEIGHT)
        self.trainer.guard("logits", logits, rows)
        if weight is not None:
            self.trainer.guard("weight", weight, rows)
            weight = _spread(weight, labels)
        items = num_items_in_batch if self.trainer.model.training else None
        loss = self.nll(logits, labels, weight, items)
        self.trainer.guard("loss", loss, rows)
        return loss

    def nll(self, logits: Tensor, labels: Tensor, weight: Tensor | None, items: Tensor | int | None) -> Tensor:
        """The loss of a micro-batch; `items` is the denominator of the whole step, `None` outside of training."""
        if LABEL_PROBS in self.columns:
            return soft_nll(logits, self.columns[LABEL_PROBS], weights=weight, denominator=items)
        return forward_corrected_nll(logits, labels, self._channel(labels), weights=weight, denominator=items)

    def _channel(self, labels: Tensor) -> tuple[float, float] | Tensor:
        """$p$ and $q$ of one channel, or the matrix of each row's (or token's) own."""
        if self.channel is None:
            return IDENTITY
        if isinstance(self.channel, RRChannel):
            return self.channel.p, self.channel.q
        assert self.matrices is not None
        if CHANNEL_INDEX not in self.columns:
            raise ValueError(
                f"the batch has no {CHANNEL_INDEX!r}, so that the channel of its rows is not known: give the datasets "
                "to the constructor, by name, and set remove_unused_columns=False if a collator of yours drops it."
            )
        matrices = self.matrices.to(labels.device)[self.columns[CHANNEL_INDEX]]  # (batch, num_classes, num_classes)
        return matrices if labels.ndim == 1 else matrices[:, None].expand(*labels.shape, *matrices.shape[1:])


class ForwardCorrectedTrainer(NoisyLabels, Trainer):
    r"""
    [`~transformers.Trainer`] of a classifier whose rows came through known channels, each its own.

    $$\mathcal{L} = -\frac{1}{D} \sum_i w_i \log \sum_y f_y(x_i)\, T^{(c_i)}_{y, s_i}$$

    Args:
        channel ([`~hf_ext.data.relabeling.RRChannel`], or a mapping of names to them, *optional*):
            One for all rows; or by the name in `label_dp_channel` (`RandomizedResponse.channel_id`), for concatenated
            data of unequal channels. `None` is cross-entropy.
        *args, **kwargs:
            As in [`~transformers.Trainer`]; datasets by name.

    | column | type | |
    |---|---|---|
    | `label` (or `labels`) | int | the noisy class, or -100 and classes of tokens |
    | `label_dp_channel` | str | names the channel; needed for a mapping |
    | `weight` | float, optional | multiplies the row's loss |

    Requirements: a model that returns `logits`. With one channel and a stock trainer of yours, no subclass is needed:
    `Trainer(compute_loss_func=forward_loss_func(channel))`.

    Raises:
        ValueError: if there is a loss function or label smoothing beside it, if a channel has no name in the mapping,
            or if the weights are all zero or vanish.
        RowError: if the channel of a row is not in the mapping, or its label is no class; of a stream
            when the row is read.
        NonFiniteError: if a logit, weight or loss is not finite; the optimiser step is not taken.

    Relations: a single channel gives `forward_loss_func`'s loss; epsilon without bound gives cross-entropy.

    Reference: Patrini et al. 2017, Theorem 2 (arXiv 1609.03683).
    """


@cache
def noisy_labels_trainer(host: type[Trainer]) -> type:
    """
    A stock trainer class with the loss of [`NoisyLabels`], its checkpoints and its card.

    Raises:
        TypeError: if it is no `Trainer`, or has a loss of its own, in which the channel has no place.
    """
    if not (isinstance(host, type) and issubclass(host, Trainer)):
        raise TypeError(f"trainer_cls must be transformers' Trainer or a subclass, got {host!r}.")
    if issubclass(host, NoisyLabels):
        return host
    if host.compute_loss is not Trainer.compute_loss:
        raise TypeError(
            f"{host.__name__} computes a loss of its own, in which the channel has no place. Use a trainer whose loss "
            "is transformers' own; for a sentence-transformers encoder, SentenceHead with transformers' Trainer."
        )
    return type(f"NoisyLabels{host.__name__}", (NoisyLabels, host), {"__doc__": NoisyLabels.__doc__})


def add_channel_index(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """
    Add `channel_index`, the number of each row's channel among `names`.

    Raises:
        ValueError: if the rows have no `label_dp_channel`.
        RowError: if a row names a channel that is not there.
    """
    if CHANNEL not in dataset.column_names:
        raise ValueError(
            f"no column {CHANNEL!r}, by which a row's channel is known; the rows have {dataset.column_names}. "
            "RandomizedResponse writes it."
        )
    numbers = {name: number for number, name in enumerate(names)}
    row_channels = dataset.with_format(None)[CHANNEL][:]
    for i, name in enumerate(row_channels):
        if name not in numbers:
            first_names = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            message = (
                f"row {i:,}, column {CHANNEL!r}: {str(name)[:80]!r} is none of the channels given ({first_names})."
            )
            raise RowError(
                f"{message}\n  Add it to the mapping; labels that came through nothing have none.", i, CHANNEL
            )
    rows = dataset.remove_columns(CHANNEL_INDEX) if CHANNEL_INDEX in dataset.column_names else dataset
    return rows.add_column(CHANNEL_INDEX, [numbers[name] for name in row_channels])


def _spread(weight: Tensor, labels: Tensor) -> Tensor:
    """A row's weight at each of its labels."""
    return weight if weight.shape == labels.shape else weight[:, None].expand(labels.shape)
