"""Configuration of mixtures of experts by EM."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_ext.guards.best_metric import fill_direction
from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.numbers import SIZE, TextOrNumber, check_numbers
from hf_ext.losses.moe_likelihood import EXPERT_TYPES
from hf_ext.moe.arguments import METHODS, EMArguments
from hf_ext.trainers.base.config import license_field

logger = logging.getLogger(__name__)

# Stock optimisers on mini-batches, and the learning rate of each method that has one.
OPTIMIZERS = {"sgd": "sgd", "adam": "adamw_torch"}
LEARNING_RATES = {"gd": 1.0, "gradient_em": 1.0, "sgd": 0.1, "adam": 5e-3}
MOST_STEPS = 1000
_ENDLESS = 2**62  # the trainer counts iterations: a fit that had a limit of its own could not be trained on
_PRECISIONS = ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval")
_OF_THE_FIT = (
    "em_iterations", "inner_steps", "eta", "restarts", "finalists", "tol", "max_reseeds", "whiten", "patience",
)  # fmt: skip


@dataclass
class MoEEMConfig(TrainingArguments):
    r"""
    Configuration of [`MoEEMTrainer`]: [`~transformers.TrainingArguments`] and these.

    An iteration of a fit reads all rows; it is one step and one epoch of the host, so `logging_steps`, `save_steps`
    and `eval_steps` count iterations. A fit ends by itself, and after 1,000 iterations unless `max_steps` or
    `num_train_epochs` says otherwise. Batch size, gradient accumulation and schedule are read by `"sgd"` and
    `"adam"` alone, whose steps are those of the host.

    Parameters:
        num_experts (`int`, *optional*, defaults to `2`):
            $k \ge 1$; one is plain regression.
        expert_type (`str`, *optional*):
            `"softmax"`, `"logistic"` or `"linear"`; by default softmax for classes and linear for numbers.
        symmetric (`bool`, *optional*, defaults to `False`):
            Two linear or logistic experts with opposite coefficients.
        shared_variance (`bool`, *optional*, defaults to `True`):
            One variance for all linear experts.
        method (`str`, *optional*, defaults to `"auto"`):
            `"em"`, `"em+lbfgs"`, `"lbfgs"`, `"gradient_em"` or `"gd"`, as in [`~hf_ext.moe.arguments.EMArguments`];
            `"auto"`: half of the restarts by `"em+lbfgs"` and half by `"lbfgs"`.
            `"sgd"`, `"adam"`: stock optimisers on mini-batches of the same loss.
        ridge (`str` or `float`, *optional*, defaults to `1e-4`):
            Penalty in nats a row on half a squared coefficient of standardised features; `"auto"` compares five on
            the rows of `eval_dataset`.
        em_iterations (`int`, *optional*, defaults to `2`):
            EM iterations before L-BFGS takes over.
        inner_steps (`int`, *optional*):
            Steps of an M-step: 3 for the gate of linear experts and 2 for others by default.
        eta (`float`, *optional*, defaults to `1.0`):
            Length of EM's step in (0, 2).
        restarts, finalists (`int`, *optional*, default to `8` and `1`):
            Random starts, and how many of them are fitted to the end: half of the others are given up after 12 passes
            each, half of the rest after 24, and so on.
        tol (`float`, *optional*, defaults to `1e-7`):
            Nats a row: a restart that gains less three times in a row has converged.
        patience (`int`, *optional*, defaults to `10`):
            Iterations without a better likelihood of the rows of `eval_dataset` after which a restart stops.
        max_reseeds (`int`, *optional*, defaults to `2`):
            Times that a dead expert starts again.
        whiten (`bool`, *optional*, defaults to `True`):
            Whether steps are taken in whitened coordinates; the objective is the same.
        learning_rate (`float`, *optional*):
            1 for `"gd"` and `"gradient_em"`, 0.1 for `"sgd"`, 0.005 for `"adam"` by default; others have none.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the classes or numbers.
        input_column (`str`, *optional*):
            What the encoder reads: `text`, or the only column of texts or images by default.
        embed_batch_size (`int`, *optional*, defaults to `64`):
            Rows that the encoder gets at a time.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Epochs: of 'sgd' and 'adam' over the rows, otherwise iterations."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Of 'gd' and 'gradient_em' (default 1), 'sgd' (0.1) and 'adam' (0.005)."}
    )
    num_experts: int = field(default=2, metadata={"help": "Experts; one is plain regression."})
    expert_type: str | None = field(
        default=None,
        metadata={
            "help": "What an expert is. Default: 'softmax' for classes, 'linear' for numbers.",
            "choices": [*EXPERT_TYPES, None],
        },
    )
    symmetric: bool = field(
        default=False, metadata={"help": "Two linear or logistic experts with opposite coefficients."}
    )
    shared_variance: bool = field(default=True, metadata={"help": "One variance for all linear experts."})
    method: str = field(
        default="auto",
        metadata={
            "help": "'auto', 'em', 'em+lbfgs', 'lbfgs', 'gradient_em', 'gd': all rows an iteration; 'sgd', 'adam': "
            "stock optimisers on mini-batches.",
            "choices": [*METHODS, *OPTIMIZERS],
        },
    )
    ridge: TextOrNumber = field(
        default="1e-4",
        metadata={
            "help": "Penalty in nats a row on half a squared coefficient of standardised features, or 'auto': chosen "
            "among five on the evaluation rows."
        },
    )
    em_iterations: int = field(default=2, metadata={"help": "EM iterations before L-BFGS takes over."})
    inner_steps: int | None = field(
        default=None, metadata={"help": "Steps of an M-step. Default: 3 for the gate of linear experts, otherwise 2."}
    )
    eta: float = field(default=1.0, metadata={"help": "Length of EM's step, above 0 and below 2."})
    restarts: int = field(default=8, metadata={"help": "Random starts."})
    finalists: int = field(default=1, metadata={"help": "Restarts that are fitted to the end."})
    tol: float = field(
        default=1e-7, metadata={"help": "Nats a row: a restart that gains less three times in a row has converged."}
    )
    patience: int = field(
        default=10, metadata={"help": "Iterations without a better likelihood of the evaluation rows before it stops."}
    )
    max_reseeds: int = field(default=2, metadata={"help": "Times that a dead expert starts again."})
    whiten: bool = field(default=True, metadata={"help": "Steps in whitened coordinates; the objective is the same."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes or numbers."})
    input_column: str | None = field(
        default=None,
        metadata={"help": "What the encoder reads. Default: text, or the only column of texts or images."},
    )
    embed_batch_size: int = field(default=64, metadata={"help": "Rows that the encoder gets at a time."})
    model_license: str | None = license_field()

    def __post_init__(self) -> None:
        self.ridge = str(self.ridge)  # YAML and Python may give a number
        choices = (*METHODS, *OPTIMIZERS)
        if self.method not in choices:
            close = did_you_mean(self.method, choices)
            raise ValueError(f"method={self.method!r} is not one of {', '.join(choices)}{close}.")
        for name in ("num_experts", "embed_batch_size"):
            problem = SIZE.problem_of(getattr(self, name))
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        check_numbers(self)
        fill_direction(self)
        if self.num_train_epochs is None:
            self.max_steps = MOST_STEPS if self.max_steps <= 0 else self.max_steps
            self.num_train_epochs = 1.0
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES.get(self.method, 1.0)
        self.fit_arguments()  # which looks at its numbers
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect on a mixture, whose loss is its likelihood.")
        if self.is_stochastic:
            self._set_optimizer()
        else:
            self._leave_out_precision()
        super().__post_init__()

    @property
    def is_stochastic(self) -> bool:
        """Whether a stock optimiser takes steps on mini-batches."""
        return self.method in OPTIMIZERS

    @property
    def ridge_value(self) -> float | str:
        """`ridge` as a number, or `"auto"`."""
        try:
            return float(self.ridge)
        except ValueError:
            return self.ridge

    def fit_arguments(self) -> EMArguments:
        """
        Settings of the fit; those of a stock optimiser begin as one restart of gradient descent does.

        Raises:
            ValueError: if one is out of range, or does not go with the method.
        """
        values = {name: getattr(self, name) for name in _OF_THE_FIT}
        values |= {"method": self.method, "ridge": self.ridge_value, "max_iterations": _ENDLESS}
        if self.is_stochastic:
            values |= {"method": "gd", "restarts": 1, "finalists": 1}
        if self.method in LEARNING_RATES and self.learning_rate:
            values["learning_rate"] = self.learning_rate
        return EMArguments(**values)

    def _set_optimizer(self) -> None:
        if self.ridge == "auto":
            raise ValueError(f"ridge='auto' compares fits, and method={self.method!r} is none: give a number.")
        self.optim = OPTIMIZERS[self.method]
        if self.weight_decay:
            raise ValueError(f"weight_decay={self.weight_decay} would come beside ridge={self.ridge}: leave it at 0.")

    def _leave_out_precision(self) -> None:
        names = [name for name in _PRECISIONS if getattr(self, name)]
        if not names:
            return
        logger.warning(
            "%s=True has no effect on a fit by method=%r, which is in float64 and leaves a float32 model. To embed "
            "rows faster, load the encoder in 16 bits.", names[0], self.method,
        )  # fmt: skip
        for name in names:
            setattr(self, name, False)
