"""Configuration of consensus retraining."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_ext.guards.numbers import check_numbers
from hf_ext.trainers.base.config import check_choice, license_field

CHOICES = {
    "mode": ("auto", "consensus", "full", "bayes", "bayes_soft"),
    "round_loss": ("forward", "ce"),
    "budget": ("auto", "steps", "epochs"),
}


@dataclass
class ConsensusConfig(TrainingArguments):
    r"""
    Configuration of [`ConsensusRecipe`]: [`~transformers.TrainingArguments`], which every round takes, and these.

    Parameters:
        channel_epsilon (`float`, *optional*):
            Nats per label of the randomised response that the labels went through; the channel passed to the recipe
            by default, or the ledger's.
        num_classes (`int`, *optional*):
            Number of classes of that channel.
        rounds (`int`, *optional*, defaults to `1`):
            Rounds of retraining after the first round on the noisy labels.
        mode (`str`, *optional*, defaults to `"auto"`):
            Labels of a retraining round: `"consensus"` (rows whose prediction is the given label), `"full"` (all rows,
            predicted labels), `"bayes"`, `"bayes_soft"`, or `"auto"`: all of them are candidates (`"bayes"` alone is
            tried only when named).
        round_loss (`str`, *optional*, defaults to `"forward"`):
            Loss of the first round: `"forward"` (corrected for the channel) or `"ce"` (the paper's).
        cross_fit (`int`, *optional*, defaults to `0`):
            0 relabels by predictions of the very rows a model was trained on, as in the paper; K of at least 2 by K
            models, each of which predicts the rows it has not seen.
        reinit (`bool`, *optional*, defaults to `True`):
            Whether every round starts from `model_init()`. With `False` it starts from the round before, which has
            learned noise.
        budget (`str`, *optional*, defaults to `"auto"`):
            A round on fewer rows takes as many optimiser `"steps"` as the first (at most four times its epochs), or as
            many `"epochs"`; `"auto"`: both are candidates.
        min_rows_per_class (`int`, *optional*, defaults to `1`):
            Classes that keep fewer rows are warned of.
        select_on_noisy_eval (`bool`, *optional*, defaults to `True`):
            Whether retraining has to earn its place: the first round and the candidates are compared by accuracy read
            off the noisy labels, on out-of-fold predictions of all training rows. It multiplies the cost of training
            by about `selection_folds` times the number of candidates.
        selection_folds (`int`, *optional*, defaults to `4`):
            Folds of that comparison.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the noisy labels; `"labels"` where the rows have that alone.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

    channel_epsilon: float | None = field(
        default=None,
        metadata={"help": "Nats per label of the randomised response. Default: the ledger's label_dp_epsilon."},
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "Classes of the channel. Default: those of the label column's ClassLabel."}
    )
    rounds: int = field(default=1, metadata={"help": "Rounds of retraining after the first round on noisy labels."})
    mode: str = field(
        default="auto",
        metadata={
            "help": "Labels of a retraining round: 'consensus' (rows whose prediction is the given label), 'full' "
            "(all rows, predicted labels), 'bayes', 'bayes_soft', or 'auto': chosen on noisy labels.",
            "choices": list(CHOICES["mode"]),
        },
    )
    round_loss: str = field(
        default="forward",
        metadata={
            "help": "Loss of the first round: 'forward' (corrected for the known channel) or 'ce' (the paper's).",
            "choices": list(CHOICES["round_loss"]),
        },
    )
    cross_fit: int = field(
        default=0,
        metadata={"help": "0: relabel by in-sample predictions, as in the paper. K >= 2: by K out-of-fold models."},
    )
    reinit: bool = field(
        default=True, metadata={"help": "Start every round from model_init() rather than from the round before."}
    )
    budget: str = field(
        default="auto",
        metadata={
            "help": "A round on fewer rows takes as many optimiser 'steps' as the first round (at most four times its "
            "epochs) or as many 'epochs'; 'auto': chosen on noisy labels.",
            "choices": list(CHOICES["budget"]),
        },
    )
    min_rows_per_class: int = field(
        default=1, metadata={"help": "Warn of classes that keep fewer rows than this in a retraining round."}
    )
    select_on_noisy_eval: bool = field(
        default=True,
        metadata={
            "help": "Compare the first round with retraining by accuracy from noisy labels, out of fold, and keep the "
            "simplest within one standard error of the best. False: run mode and budget as they are given."
        },
    )
    selection_folds: int = field(default=4, metadata={"help": "Folds of that comparison, at least 2."})
    label_column: str = field(default="label", metadata={"help": "Column of the noisy labels."})
    model_license: str | None = license_field()

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(self, name, choices)
        for name, least in (("rounds", 1), ("min_rows_per_class", 1), ("selection_folds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.cross_fit == 1 or self.cross_fit < 0:
            raise ValueError(f"cross_fit must be 0 (in-sample predictions) or at least 2 folds, got {self.cross_fit}.")
        if self.channel_epsilon is not None and not 0 < self.channel_epsilon < math.inf:
            raise ValueError(f"channel_epsilon must be a finite number of nats above 0, got {self.channel_epsilon}.")
        if not self.select_on_noisy_eval and "auto" in (self.mode, self.budget) and self.mode in ("auto", "consensus"):
            name = "mode" if self.mode == "auto" else "budget"
            raise ValueError(
                f"{name}='auto' is decided on noisy labels: leave select_on_noisy_eval=True, or name a {name}."
            )
        check_numbers(self)
        super().__post_init__()
        if self.label_smoothing_factor != 0:
            raise ValueError(
                "label_smoothing_factor does not go with a loss that is corrected for the channel: the trainer would "
                "skip it silently. Leave it at 0."
            )
