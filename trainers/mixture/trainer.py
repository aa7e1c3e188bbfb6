"""Any trainer on several sources, whose shares follow what each does for a target."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from hf_ext._upstream.mixture import MixtureHooks, draws_its_own_batches, prepares_rows
from hf_ext._upstream.rows import AnyDataset
from hf_ext.bandits.mixture import SideObservationMixture
from hf_ext.guards.row_errors import RowError
from hf_ext.trainers.base.config import AnyModel, default_output_dir
from hf_ext.trainers.mixture import METHOD
from hf_ext.trainers.mixture.config import MixtureSFTConfig
from hf_ext.trainers.mixture.feedback import MixtureFeedbackCallback
from hf_ext.trainers.mixture.rows import MixtureSampler, concatenated, joined, refuse_target_rows
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer


class MixtureTraining(MixtureHooks):
    """
    What [`with_mixture`] puts before a host trainer.

    Args:
        *args, **kwargs:
            As the host's, without `train_dataset`.
        mixture ([`SideObservationMixture`]):
            The sources.

    Attributes:
        mixture ([`SideObservationMixture`]):
            The same.
        feedback ([`MixtureFeedbackCallback`]):
            What the steps have shown.
        target_dataset (`Dataset`, *optional*):
            The prepared target rows.

    Raises:
        RowError: if a row of a source is malformed and the host looks at rows; it names source and row.
        ValueError: if `train_dataset` is given, a target row is in a source, or a setting takes the choice of rows out
            of the mixture's hands.
    """

    is_measuring = False

    def __init__(self, *args: Any, mixture: SideObservationMixture, **kwargs: Any) -> None:
        if kwargs.pop("train_dataset", None) is not None:
            raise ValueError("train_dataset is given beside mixture=, whose sources are what is trained on.")
        sources = mixture.sources
        if mixture.target is not None:
            refuse_target_rows(sources, mixture.target)
        self.mixture = mixture
        self.feedback = MixtureFeedbackCallback(mixture)
        self.target_dataset: AnyDataset | None = mixture.target
        self.source_sizes: list[int] = [len(rows) for rows in sources.values()]
        self._is_prepared = False
        self._target_loader: DataLoader | None = None
        self._target_gradient: list[Tensor | None] = []
        self._target_norm = 0.0
        self._values: list[float] = []  # of the micro-batches of the step so far
        self._num_batches = 0
        first, *_ = mixture.names
        rows = sources[first] if prepares_rows(type(self)) else concatenated(sources)
        with self._naming_source(first):
            super().__init__(*args, **kwargs, train_dataset=rows)
        if prepares_rows(type(self)) and not self._is_prepared:  # the rows were prepared by the user
            self.train_dataset = concatenated(sources)
        if len(self.train_dataset) != sum(self.source_sizes):
            raise ValueError(
                f"{type(self).__name__} has made {len(self.train_dataset):,} rows of {sum(self.source_sizes):,}: "
                "which source each is of is not known any more. Prepare the rows before."
            )
        self._refuse_settings()
        self.add_callback(self.feedback)

    def _refuse_settings(self) -> None:
        accelerator = self.args.accelerator_config
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        refused = {
            f"train_sampling_strategy={self.args.train_sampling_strategy!r}": (
                self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance"),
                "a micro-batch holds rows of one source, as the mixture draws them",
            ),
            "auto_find_batch_size": (self.args.auto_find_batch_size, "the mixture is laid out for one batch size"),
            "ignore_data_skip": (self.args.ignore_data_skip, "a resumed run goes on where its rows were"),
            "split_batches or dispatch_batches": (
                bool(accelerator.split_batches) or bool(accelerator.dispatch_batches),
                "each process draws its own part of a micro-batch",
            ),
            "reward='alignment' under FSDP or DeepSpeed": (
                is_sharded and self.mixture.reward == "alignment",
                "no process has a whole gradient; take reward='probe_drop' or 'loss'",
            ),
        }
        for setting, (is_set, reason) in refused.items():
            if is_set:
                raise ValueError(f"{type(self).__name__} does not support {setting}: {reason}.")

    # --- rows ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _naming_source(self, name: str) -> Iterator[None]:
        try:
            yield
        except RowError as error:
            row = error.row_index
            words = str(error).removeprefix(f"train dataset, row {row:,}")
            if words != str(error) and not prepares_rows(type(self)):  # which has all sources in one train dataset
                ends = np.cumsum(self.source_sizes).tolist()
                position = bisect_right(ends, row)
                row -= ends[position] - self.source_sizes[position]
                name = self.mixture.names[position]
                words = f"row {row:,}{words}"
            if not words.startswith("row "):  # of other sources, and of evaluation sets, the message says which
                raise
            raise RowError(f"source {name!r} dataset, {words}", row, error.column) from error.__cause__

    def prepare_sources(self, first: AnyDataset, prepare: Callable[[AnyDataset, str], AnyDataset]) -> AnyDataset:
        """Each source, and the target, prepared apart; `first` is the first source, as the constructor left it."""
        sources = self.mixture.sources
        prepared = [prepare(first, "train")]
        prepared += [prepare(sources[name], f"source {name!r}") for name in self.mixture.names[1:]]
        for name, rows in zip(sources, prepared, strict=True):
            if len(rows) == 0:
                raise ValueError(f"source {name!r} has no row left once it is prepared: nothing can be drawn from it.")
        if self.mixture.target is not None:
            self.target_dataset = prepare(self.mixture.target, "target")
        raw_sizes = [len(rows) for rows in sources.values()]
        self.source_sizes = [len(rows) for rows in prepared]
        self._is_prepared = True
        return joined(dict(zip(self.mixture.names, prepared, strict=True)), raw_sizes)

    def train_sampler(self) -> Sampler | None:
        """The mixture's, laid out for the batches of this training."""
        batches_per_step = self.args.gradient_accumulation_steps
        rows_per_step = self.get_total_train_batch_size(self.args)
        self.mixture.lay_out(self.source_sizes, rows_per_step // batches_per_step, batches_per_step)
        return MixtureSampler(self.mixture)

    # --- what is observed ------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Draw the micro-batches of a step; where it is observed, the target is looked at first."""
        step = self.state.global_step
        self.mixture.first_step = step
        self._values, self._target_gradient = [], []
        is_observed = self.mixture.is_observed(step)
        if is_observed and self.mixture.rewards_blocks:
            self._observe_block(step)
        elif is_observed and self.mixture.reward == "alignment":
            with self.metrics_as_before():
                target_batches, num_target_items = super().get_batch_samples(*self._target_batches(step))
            self._target_gradient = self._gradient_of(target_batches, num_target_items, step)
        # After the target's, so that the host's checks know the rows of this step.
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._num_batches = len(batches) if is_observed and not self.mixture.rewards_blocks else 0
        return batches, num_items

    def training_step(
        self, model: Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The host's; a micro-batch's alignment, or its loss, is noted where it is observed."""
        if self.is_measuring or not self._num_batches:
            return super().training_step(model, inputs, num_items_in_batch)
        if self._target_gradient:
            with self._apart(model):
                loss = super().training_step(model, inputs, num_items_in_batch)
                self._values.append(self._alignment())
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._values.append(float(loss))
        if len(self._values) == self._num_batches:
            self._observe_batches()
        return loss

    @contextmanager
    def _apart(self, model: Any) -> Iterator[None]:
        """Inside, gradients are the micro-batch's alone, over all processes; then they are added to those before."""
        parameters = self._trained()
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        if hasattr(model, "require_backward_grad_sync"):  # DDP sums over processes with a step's last one alone
            model.require_backward_grad_sync = True
        yield
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None:  # added in place, as backward does it: the same bits
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def _observe_batches(self) -> None:
        """Rewards of the step's micro-batches, the same on every process."""
        values = self._values
        if self._target_gradient:
            self.feedback.alignments = values
        else:
            local_values = torch.tensor([values], dtype=torch.float32, device=self.args.device)
            means = self.accelerator.gather(local_values).double().mean(dim=0)
            values = (means * len(means)).tolist()
        self.feedback.observe(values)
        self._target_gradient, self._num_batches = [], 0

    def _alignment(self) -> float:
        """Cosine of the angle between the gradient and the target's; NaN where one of both is 0."""
        gradient = [parameter.grad for parameter in self._trained()]
        scale = self._product(gradient, gradient) ** 0.5 * self._target_norm
        return self._product(gradient, self._target_gradient) / scale if scale > 0 else float("nan")

    def _product(self, first: list[Tensor | None], second: list[Tensor | None]) -> float:
        """Inner product of two gradients, of which a parameter may have none."""
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        terms = [
            torch.sum(one * other, dtype=dtype)
            for one, other in zip(first, second, strict=True)
            if one is not None and other is not None
        ]
        return float(torch.stack(terms).sum()) if terms else 0.0

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _target_batches(self, step: int) -> tuple[Iterator[dict[str, Any]], int, torch.device]:
        """This process's micro-batches of target rows for a measurement, collated as for training."""
        assert self.target_dataset is not None, "the mixture has seen to it"
        if self._target_loader is None:  # it leaves out columns that the model does not take
            self._target_loader = self.get_test_dataloader(self.target_dataset)
        loader = self._target_loader
        world = self.accelerator.num_processes
        positions = self.mixture.target_positions(step // self.mixture.reward_every, len(self.target_dataset))
        positions = positions[: max(len(positions) // world, 1) * world]  # as many rows on each process
        share = positions[self.accelerator.process_index :: world] if len(positions) >= world else positions
        size = self.args.per_device_train_batch_size
        parts = [share[start : start + size].tolist() for start in range(0, len(share), size)]
        batches = (loader.collate_fn([loader.dataset[row] for row in part]) for part in parts)
        return batches, len(parts), self.args.device

    @contextmanager
    def _measuring(self, step: int) -> Iterator[None]:
        """Forwards that leave no trace: neither in metrics, nor in random numbers, nor in the mode of the model."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        was_training = self.model.training
        self.is_measuring = True
        try:
            with self.metrics_as_before(), torch.random.fork_rng(devices):
                # A resumed run restores its random state after its first batches are drawn.
                torch.manual_seed(self.mixture.seed + step)
                yield
        finally:
            self.is_measuring = False
            self.model.train(was_training)

    def _gradient_of(self, batches: list, num_items: Tensor | int | None, step: int) -> list[Tensor | None]:
        """Gradient of the loss on micro-batches, over all processes; no gradient is left in the model."""
        model = self.model_wrapped
        self.current_gradient_accumulation_steps = len(batches)
        with self._measuring(step):
            for position, inputs in enumerate(batches):
                is_last = position == len(batches) - 1
                with nullcontext() if is_last else self.accelerator.no_sync(model):
                    super().training_step(model, inputs, num_items)
        gradient = [None if value.grad is None else value.grad.detach().clone() for value in self._trained()]
        model.zero_grad()
        self._target_norm = self._product(gradient, gradient) ** 0.5
        return gradient

    def _observe_block(self, step: int) -> None:
        """The reward of the steps since the last measurement, which one source has led."""
        mixture = self.mixture
        if callable(mixture.reward):
            reward = self._mean_over_processes(float(mixture.reward(self))) if step else None
        else:
            loss = self._target_loss(step)
            reward = None if mixture.former_loss is None else mixture.former_loss - loss
            mixture.former_loss = loss
        if reward is not None:
            mixture.tell(step - mixture.reward_every, [reward])

    def _target_loss(self, step: int) -> float:
        """Mean loss of the target rows of a measurement, as in evaluation."""
        batches, _, _ = self._target_batches(step)
        total, count = 0.0, 0
        with self._measuring(step):
            self.model.eval()
            for inputs in batches:
                num_rows = len(next(value for value in inputs.values() if hasattr(value, "__len__")))
                loss, _, _ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
                total += float(loss) * num_rows
                count += num_rows
        return self._mean_over_processes(total / count)

    def _mean_over_processes(self, value: float) -> float:
        values = torch.tensor([value], dtype=torch.float32, device=self.args.device)
        return float(self.accelerator.gather(values).double().mean())

    # --- log and checkpoints ---------------------------------------------------------------------------------------

    def before_checkpoint(self) -> None:
        """The mixture goes into the state that the host is about to write."""
        self.feedback.save(self.state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with share, mean and standard error of each source beside the loss of training."""
        if "loss" in logs:
            logs |= self.mixture.metrics()
        super().log(logs, start_time)


@cache
def with_mixture(host: type[Trainer]) -> type[Any]:
    """
    The trainer `host`, on several sources whose shares follow what each does for a target.

    Args:
        host (`type`):
            `Trainer`, `SFTTrainer`, `DPOTrainer`, or a subclass of them that lets the host draw its rows: those of
            hf-ext for language models and preferences too.

    Returns:
        `type`: a subclass named `...WithMixture`. It takes the arguments of the host, with `mixture=` in place of
        `train_dataset=`.

    Raises:
        TypeError: if it is no trainer, or one that draws its own batches.

    Example:
        >>> mixture = SideObservationMixture({"maths": maths, "web": web}, target=held_out)
        >>> trainer = with_mixture(SFTTrainer)("Qwen/Qwen3-0.6B", args, mixture=mixture)
    """
    if not (isinstance(host, type) and issubclass(host, Trainer)):
        raise TypeError(f"with_mixture needs a class of trainers, got {host!r}.")
    if issubclass(host, MixtureTraining):
        raise TypeError(f"{host.__name__} trains on a mixture already: give it mixture=.")
    if draws_its_own_batches(host):
        raise TypeError(
            f"{host.__name__} draws its batches itself: no mixture can draw its rows. Take Trainer, SFTTrainer, "
            "DPOTrainer or a trainer made of them."
        )
    return type(f"{host.__name__}WithMixture", (MixtureTraining, host), {"__doc__": MixtureTraining.__doc__})


def mixture_of(
    args: MixtureSFTConfig, sources: Mapping[str, Dataset], target: Dataset | None
) -> SideObservationMixture:
    """The mixture of sources that a configuration describes."""
    return SideObservationMixture(
        sources,
        target,
        reward=args.reward,
        reward_every=args.reward_every,
        target_rows=args.target_rows,
        floor_share=args.floor_share,
        reward_window=args.reward_window,
        seed=args.seed,
    )


class MixtureSFTTrainer(MixtureTraining, WeightedSFTTrainer):
    r"""
    [`WeightedSFTTrainer`] on several sources, whose shares follow what each does for a target.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            As in `SFTTrainer`.
        args ([`MixtureSFTConfig`], *optional*):
            A plain `SFTConfig` is taken too.
        sources (`dict[str, Dataset]`):
            Name to rows, all with the same columns; `weight` may be one of them.
        target (`Dataset`, *optional*):
            Held-out rows of what the model is to become good at; only `reward="loss"` does without.
        mixture ([`SideObservationMixture`], *optional*):
            In place of `sources` and `target`: a mixture of your own settings.
        **kwargs:
            As in [`WeightedSFTTrainer`].

    Raises:
        RowError: if a row of a source is malformed; it names source, row and column (see `on_bad_row`).
        NonFiniteError: if a loss or gradient is not finite, before the optimiser step it would spoil.
        ValueError: if a setting cannot be honoured, sources have unlike columns, or a target row is in a source.

    Metrics: those of [`WeightedSFTTrainer`]; `mixture/<name>/share`, `mixture/<name>/mean` (of its reward) and
    `mixture/<name>/se`.

    Relations: [`with_mixture`] does the same for any other trainer.

    Reference: see [`SideObservationMixture`].
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "hf-ext", "mixture"]
    _name = "Mixture"
    _paper: ClassVar[dict[str, str]] = METHOD.paper_words
    config_class = MixtureSFTConfig
    method = "mixture"
    args: MixtureSFTConfig

    def __init__(
        self,
        model: AnyModel,
        args: TrainingArguments | None = None,
        *,
        sources: Mapping[str, Dataset] | None = None,
        target: Dataset | None = None,
        mixture: SideObservationMixture | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, default_output_dir(model, self._name))
        if (mixture is None) == (sources is None) or (mixture is not None and target is not None):
            raise ValueError("MixtureSFTTrainer takes sources= (and target=), or a mixture= that has both.")
        if mixture is None:
            mixture = mixture_of(args, sources or {}, target)
        super().__init__(model, args, mixture=mixture, **kwargs)
