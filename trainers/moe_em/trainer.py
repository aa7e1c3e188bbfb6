"""A stock trainer whose optimiser is a fit of a mixture of experts, on the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_ext._upstream.stock import StockTrainerHooks
from hf_ext.data.vectors.embedding import input_columns
from hf_ext.data.vectors.encoders import EncoderLike, as_encoder, load_encoder
from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.configuration_moe import MoEConfig
from hf_ext.moe.em import MixtureFit
from hf_ext.moe.encoders import StockEncoder, stock_encoder
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from hf_ext.moe.partition import PartitionReport, partition_report
from hf_ext.moe.results import EMResult
from hf_ext.trainers.base.trainer import BaseTrainer
from hf_ext.trainers.moe_em.card import MixtureCard
from hf_ext.trainers.moe_em.config import MoEEMConfig
from hf_ext.trainers.moe_em.fitting import diagnostic_logs, new_fit, read_fit, step_logs, write_fit
from hf_ext.trainers.moe_em.optimizer import MixtureOptimizer, StopWithFit, mixture_optimizer
from hf_ext.trainers.moe_em.rows import (
    WEIGHT,
    FeatureReader,
    FeatureRows,
    LabelKind,
    check_spread,
    collate,
    kind_of_labels,
    require_rows,
    sets_of,
)

_REFUSED = ("model", "model_init", "data_collator", "compute_loss_func", "optimizers", "optimizer_cls_and_kwargs")


class MoEEMTrainer(BaseTrainer, StockTrainerHooks, Trainer):
    r"""
    [`~transformers.Trainer`] of a mixture of experts on frozen features, fitted by EM and L-BFGS over all rows.

    $$\mathcal{L} = -\frac{1}{\sum_n w_n} \sum_n w_n \log \sum_i g_i(x_n)\, p(y_n \mid x_n, i)
    + \frac{\lambda}{2} \left( \|W\|^2 + \|B\|^2 \right)$$

    One iteration of the fit is one step of the host. Features are computed once, kept by their fingerprint, and held
    in float64; each process has a share of the rows. The model takes the fit over where it is evaluated or saved.

    Args:
        encoder (*optional*):
            What reads the rows: a name or folder, a pair of a transformers model and its tokenizer, a
            feature-extraction pipeline, or a `SentenceTransformer`, as in
            [`~hf_ext.moe.encoders.stock_encoder`]. Without one the rows have a column `embeddings`.
        args ([`MoEEMConfig`], *optional*):
            A plain `TrainingArguments` is taken too.
        train_dataset (`Dataset`):
            See the columns below.
        eval_dataset (`Dataset` or a mapping of them, *optional*):
            Held-out rows: they are evaluated, and a restart stops early, the best one is taken and `ridge="auto"` is
            chosen by their likelihood.
        **kwargs:
            As in [`~transformers.Trainer`]: `compute_metrics` gets log-probabilities, or means of linear experts.

    | column | type | |
    |---|---|---|
    | `text` or `input_column` | str or image | read by the encoder |
    | `embeddings` | list of `d` floats | read without an encoder |
    | `label` | `ClassLabel`, name or int; float or list of floats | class; number (linear experts) |
    | `weight` | float, optional | multiplies the row's likelihood |

    Raises:
        ValueError: if rows are a stream or have no usable column, there are fewer than `k (d + 1)` of them without a
            ridge, all labels of linear experts are the same or float32 does not hold them, the model would be
            sharded, or a run goes on from one with other experts, settings, encoder or rows (each is listed).
        RowError: if a feature is not finite, a label is no class (-100 among them), or a weight is negative.

    Metrics: `loss` (nats a row with the penalty, before the step), `nll`, `passes`, `seconds`, `n_i_min`, `n_i_max`,
    `held_out_nll`; at the end `gate_entropy`, `snr_min`, `snr_max`, `mim_lambda_max`, `predicted_iterations` and
    more of [`~hf_ext.moe.diagnostics.Diagnostics`].

    Attributes:
        fit ([`~hf_ext.moe.em.MixtureFit`], *optional*):
            Of the last training.
        fit_result ([`~hf_ext.moe.results.EMResult`], *optional*):
            What the model holds of it.

    Reference: Fruytier, Mokhtari and Sanghavi 2025 (arXiv 2411.06056).
    """

    method = "moe_em"
    config_class: ClassVar[type[MoEEMConfig]] = MoEEMConfig
    card_class = MixtureCard
    loss_is_scaled_for_ga = True  # the denominator is the whole accumulated batch's
    weight_remedy = "Look at learning_rate and at the column 'weight', where there is one."
    args: MoEEMConfig
    model: MoEForSequenceClassification
    optimizer: Optimizer | None

    def __init__(
        self,
        encoder: EncoderLike | None = None,
        args: MoEEMConfig | TrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.own_config(args, self.method)
        self._refuse(kwargs)
        require_rows(train_dataset, "training")
        for name, rows in sets_of(eval_dataset).items():
            require_rows(rows, name)
        assert train_dataset is not None
        if args.ridge == "auto" and not eval_dataset:
            raise ValueError("ridge='auto' compares penalties on held-out rows: give eval_dataset, or a number.")
        source = load_encoder(encoder, str(args.device)) if isinstance(encoder, (str, Path)) else encoder
        stock = None if source is None else stock_encoder(source)
        if stock is not None:
            stock.model.to(args.device)
        show_progress = not args.disable_tqdm and args.process_index == 0
        self.reader = FeatureReader(source, args.input_column, args.label_column, args.embed_batch_size, show_progress)
        self.label_kind = kind_of_labels(train_dataset, args.label_column, args.expert_type)
        self.train_rows = self.reader.read(train_dataset, self.label_kind)
        if self.label_kind.is_number:
            assert self.train_rows.labels is not None
            check_spread(self.train_rows.labels, args.label_column)
        self.held_out_rows = [
            self.reader.read(rows, self.label_kind, self.train_rows.features.shape[1], name)
            for name, rows in sets_of(eval_dataset).items()
        ]
        self._encoder_identity = self._identity(source, train_dataset)
        self.fit: MixtureFit | None = None
        self.fit_result: EMResult | None = None
        self._stored_iteration: int | None = None
        super().__init__(
            model=_new_model(args, self.label_kind, self.train_rows.features.shape[1], stock),
            args=args,
            data_collator=collate,
            train_dataset=self.train_rows,
            eval_dataset=eval_dataset,
            **({} if stock is None else {"processing_class": stock.processor}),
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "a mixture is whole on every process, which holds a share of the rows: FSDP and DeepSpeed ZeRO, which "
                "cut the model, are not supported. Launch several plain processes instead."
            )
        self.add_callback(StopWithFit())

    @classmethod
    def host_values(cls, args: TrainingArguments) -> dict[str, Any]:
        """Fields of plain arguments, whose usual three epochs would be three iterations."""
        values = super().host_values(args)
        stock_epochs = TrainingArguments.__dataclass_fields__["num_train_epochs"].default
        return values | ({"num_train_epochs": None} if args.num_train_epochs == stock_epochs else {})

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        for name in _REFUSED:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{type(self).__name__} does not support {name}: the model, its loss and its optimiser are those "
                    "of the mixture. An encoder is the first argument."
                )

    def _identity(self, source: Any, rows: Dataset) -> str:
        """What a resumed run must share of the encoder."""
        if source is None:
            return "the column 'embeddings'"
        _, are_images = input_columns(rows.features, self.reader.input_column, source)
        return str(as_encoder(source, are_images).identity())

    # --- rows ------------------------------------------------------------------------------------------------------

    def carried_columns(self) -> tuple[str, ...]:
        """Weights of rows, which the loss reads."""
        return (WEIGHT,)

    def get_train_dataloader(self) -> DataLoader:
        """Mini-batches for a stock optimiser; for a fit one batch an epoch that stands for all rows."""
        if self.args.is_stochastic:
            return super().get_train_dataloader()
        return DataLoader([{}], batch_size=1, collate_fn=lambda rows: {})  # type: ignore[arg-type]

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """As the host, of rows whose features are computed, or found, now."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(None if rows is None else self._read(rows, "evaluation"))

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As the host, of rows whose features are computed, or found, now; they need no labels."""
        return super().get_test_dataloader(self._read(test_dataset, "test"))

    def _read(self, rows: Any, name: str) -> Any:
        if isinstance(rows, FeatureRows):
            return rows
        require_rows(rows, name)
        for feature_rows in (self.train_rows, *self.held_out_rows):
            if feature_rows.rows is rows:
                return FeatureRows(rows, feature_rows.features, feature_rows.labels)
        kind = self.label_kind if self.args.label_column in rows.column_names else None
        features = self.reader.read(rows, kind, self.model.config.input_dim, name)
        return FeatureRows(rows, features.features, features.labels)

    # --- the fit ---------------------------------------------------------------------------------------------------

    def before_training(self, checkpoint: str | None) -> None:
        """
        Make the fit, or the first parameters of a stock optimiser; go on from a checkpoint of the same.

        Raises:
            ValueError: if rows cannot be fitted, or the checkpoint is of another fit; each difference is listed.
        """
        self.fit = new_fit(self.args, self.model.config.shape(), self.train_rows, self.held_out_rows)
        self.fit_result = None
        self._stored_iteration = None
        if checkpoint is not None:
            read_fit(Path(checkpoint), self.fit, self.args.is_stochastic, self._facts())
        elif self.args.is_stochastic:
            self.optimizer = None  # of an earlier training, whose moments are of other parameters
            self.model.set_mixture(self.fit.parameters(self.fit.state.point[0]))

    def _facts(self) -> dict[str, str]:
        return {"method": self.args.method, "encoder": self._encoder_identity}

    def create_optimizer(self, model: Module | None = None) -> Optimizer:
        """The fit as an optimiser, or a stock one."""
        if self.args.is_stochastic:
            return super().create_optimizer(model)
        assert self.fit is not None
        self.optimizer = MixtureOptimizer((p for p in self.model.parameters() if p.requires_grad), self.fit)
        return self.optimizer

    def training_step(
        self, model: Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As the host; of a fit the objective so far, for the optimiser itself looks at the rows."""
        optimizer = mixture_optimizer(self.optimizer)
        if optimizer is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        return torch.tensor(optimizer.objective(), device=self.args.device, dtype=torch.float32)

    def has_steps_left(self) -> bool:
        """Whether there is a step to train; a fit that has ended has none."""
        has_ended = not self.args.is_stochastic and self.fit is not None and self.fit.finished
        return super().has_steps_left() and not has_ended

    def check_gradient(self, norm: Tensor | float, parameters: Iterable[tuple[str, Parameter]]) -> None:
        """As of any trainer here; a fit leaves no gradient to look at."""
        if self.args.is_stochastic:
            super().check_gradient(norm, parameters)

    def take_over_fit(self) -> None:
        """Copy what is fitted so far into the model, on every process; costs an evaluation of each restart."""
        if self.args.is_stochastic or self.fit is None:
            return
        iteration = int(self.fit.state.iteration)
        if iteration == self._stored_iteration:
            return
        self.fit_result = self.fit.result()
        self.model.set_mixture(self.fit_result.parameters)
        self._stored_iteration = iteration

    def check_result(self) -> None:
        """Take over the last iteration, say what the fit looks like, and check the model."""
        self.take_over_fit()
        self._log_diagnostics()
        super().check_result()

    def check_best(self, folder: str) -> None:
        """The best checkpoint is loaded next: the fit, too, goes back to what it was there."""
        super().check_best(folder)
        self._log_diagnostics()
        if self.fit is None or self.args.is_stochastic:
            return
        self.fit_result = None
        if not self.args.save_only_model:
            read_fit(Path(folder), self.fit, False, self._facts())
            self.fit_result = self.fit.result()
        self._stored_iteration = int(self.fit.state.iteration)  # the host loads what was taken over then

    def _log_diagnostics(self) -> None:
        if self.args.is_stochastic or self.finished_checkpoint is not None or self.fit is None:
            return
        self.log(diagnostic_logs(self.fit, self.is_world_process_zero()))

    # --- loss of a stock optimiser ---------------------------------------------------------------------------------

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Weights of the rows of one optimiser step, over micro-batches and processes."""
        if not self.args.is_stochastic:
            return None
        total = torch.stack([_weights_of(batch).sum() for batch in batches]).sum().to(device)
        return self.sum_over_processes(total) if self.args.average_tokens_across_devices else total

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean of `moe_nll` over the weighted rows, in training with the penalty."""
        inputs = dict(inputs)
        weights = _weights_of(inputs)
        inputs.pop(WEIGHT, None)
        outputs = model(**inputs)
        if not self.model.training:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        mixture = self.model.mixture
        nll = moe_nll(
            outputs.router_logits, outputs.expert_logits, inputs["labels"],
            expert_type=self.model.config.expert_type, variance=mixture.variance(),
        )  # fmt: skip
        self.guard("loss", nll)
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (weights * nll).sum() / total
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradient is averaged over processes
        assert self.fit is not None
        scale = float(self.fit.objective.rows.standardisation.label_scale)
        gate, experts = mixture.squared_coefficients()
        # The micro-batches of a step add up to one penalty.
        share = 1.0 if num_items_in_batch is None else float(self.current_gradient_accumulation_steps)
        loss = loss + 0.5 * float(self.args.ridge) * (gate + experts / scale**2) / share
        return (loss, outputs) if return_outputs else loss

    # --- logs ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what the last iteration of a fit shows in place of a gradient's norm and a learning rate."""
        optimizer = mixture_optimizer(self.optimizer)
        if optimizer is not None:
            logs.pop("train_samples_per_second", None)  # an iteration is one sample to the host
        if "loss" in logs and optimizer is not None and optimizer.last_log is not None:
            for name in ("grad_norm", "learning_rate"):
                logs.pop(name, None)
            logs |= step_logs(optimizer.last_log)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted: an iteration has no tokens."""
        return 0

    # --- what comes out --------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the host, of what is fitted so far."""
        self.take_over_fit()
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As of any trainer here, with what is fitted so far; `encoder/` holds the encoder as a stock folder."""
        self.take_over_fit()
        super().save_model(output_dir, _internal_call=_internal_call)

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        """As of any trainer here, with the fit in float64 beside the model."""
        with super().writing_checkpoint(folder):
            yield
            if self.args.should_save and not self.args.save_only_model:
                assert self.fit is not None
                write_fit(Path(folder), self.fit, self.args.is_stochastic, self._facts())

    def plot_partition(
        self, folder: str | Path, rows: Dataset | None = None, *, typical_rows: int = 3
    ) -> PartitionReport:
        """
        Write who handles what: `partition.json`, `.md` and, where matplotlib is installed, `.svg` and `.png`.

        JSON and Markdown hold excerpts of rows and are left out of pushes.

        Args:
            folder (`str` or `Path`):
                Where to write, on the main process.
            rows (`Dataset`, *optional*):
                Rows to divide; those of training by default.
            typical_rows (`int`, *optional*, defaults to 3):
                Rows to name of each expert.

        Returns:
            [`~hf_ext.moe.partition.PartitionReport`]
        """
        self.take_over_fit()
        chosen = self.train_rows if rows is None else self._read(rows, "partition")
        report = partition_report(
            self.model.mixture_parameters(),
            torch.from_numpy(np.array(chosen.features)),
            None if chosen.labels is None else torch.from_numpy(chosen.labels),
            text_of=lambda index: self.reader.text_of(chosen.rows, index),
            typical_rows=typical_rows,
        )
        if self.is_world_process_zero():
            report.save(folder)
        return report


def _weights_of(batch: dict[str, Any]) -> Tensor:
    return batch[WEIGHT] if WEIGHT in batch else torch.ones(len(batch["labels"]), device=batch["labels"].device)


def _new_model(
    args: MoEEMConfig, kind: LabelKind, width: int, stock: StockEncoder | None
) -> MoEForSequenceClassification:
    """The model that the fit goes into."""
    expert_type = args.expert_type or ("linear" if kind.is_number else "softmax")
    if (expert_type == "linear") != kind.is_number:
        kinds = "numbers" if kind.is_number else "classes"
        raise ValueError(
            f"expert_type={expert_type!r} does not go with column {args.label_column!r}, which holds {kinds}: cast "
            "the column, or leave expert_type to it."
        )
    labels: dict[str, Any] = {"num_labels": kind.size}
    if kind.names is not None:
        numbers = {name: number for number, name in enumerate(kind.names)}
        labels = {"id2label": dict(enumerate(kind.names)), "label2id": numbers}
    encoder = {} if stock is None else {
        "encoder_config": stock.model.config.to_dict(), "pooling": stock.pooling, "normalize": stock.normalize,
    }  # fmt: skip
    config = MoEConfig(
        input_dim=width, num_experts=args.num_experts, expert_type=expert_type, symmetric=args.symmetric,
        shared_variance=args.shared_variance, **encoder, **labels,
    )  # fmt: skip
    return MoEForSequenceClassification(config, None if stock is None else stock.model)
