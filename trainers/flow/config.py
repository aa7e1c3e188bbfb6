"""Configuration of FLOW."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_ext.guards.numbers import TextOrNumber
from hf_ext.trainers.base.config import check_choice
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig


@dataclass
class FlowSFTConfig(WeightedSFTConfig):
    r"""
    Configuration of [`FlowSFTTrainer`]: [`WeightedSFTConfig`] and eight fields.

    Parameters:
        normalize (`str`, *optional*, defaults to `"tokens"`):
            Another default than [`WeightedSFTConfig`]'s: dividing by each step's sum of weights undoes FLOW as batches
            get smaller, and wholly at one row a step.
        tau (`str`, *optional*, defaults to `"median"`):
            Temperature in nats per token: `"median"` of the documents' mean losses under the original model (the
            paper's), `"ess:0.8"` for the $\tau$ at which the effective sample size is 0.8 of the documents, or a
            number.
        weight_scale (`str`, *optional*, defaults to `"mean"`):
            `"mean"`: weights are divided by their mean over the training set's supervised tokens, so that a step is as
            large as plain SFT's. `"none"`: $e^{-\ell/\tau}$, the paper's letter; steps are then about $e^{-1}$ times
            as large.
        flow_floor (`float`, *optional*, defaults to `0.0`):
            Least weight relative to the mean (unitless, below 1): hard rows go on teaching that much.
        flow_anneal (`float`, *optional*, defaults to `0.0`):
            Share of the training, at its end, over which weights go to 1 in a straight line: hard rows are won back.
        flow_level (`str`, *optional*, defaults to `"row"`):
            What has a weight: every `"row"` (document), by its mean loss, or every `"token"`, by its own.
        source_column (`str`, *optional*):
            Column that names each row's source. Every source has a temperature and a mean weight of its own.
        tau_rows (`int`, *optional*, defaults to `1000`):
            On a stream, rows that are scored before the first step to find $\tau$ and the mean: a uniform sample of
            the first ten times as many. Other datasets are scored whole.
        original_cache_dir (`str`, *optional*):
            Where the losses under the original model are kept. Defaults to `original_losses` in `output_dir`. A
            resumed run must find them there: by then the model in hand is no longer the original one.
    """

    normalize: str = field(
        default="tokens",
        metadata={
            "help": "Denominator of the weighted loss: 'tokens' (the number of supervised tokens: FLOW acts alike at "
            "any batch size) or 'weights' (their sum in each step, which undoes FLOW where a step has few rows).",
            "choices": ["weights", "tokens"],
        },
    )
    tau: TextOrNumber = field(
        default="median",
        metadata={
            "help": "Temperature in nats per token: 'median' (the paper's), 'ess:SHARE' for the tau at which the "
            "effective sample size is that share of the documents, or a number."
        },
    )
    weight_scale: str = field(
        default="mean",
        metadata={
            "help": "'mean': weights are divided by their mean over the training set's tokens, so that a step is as "
            "large as plain SFT's. 'none': exp(-loss / tau), the paper's letter.",
            "choices": ["mean", "none"],
        },
    )
    flow_floor: float = field(
        default=0.0,
        metadata={"help": "Least weight relative to the mean (unitless, below 1): hard rows go on teaching so much."},
    )
    flow_anneal: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training, at its end, over which weights go to 1 in a straight line. 0: never; "
            "1: from the first step on."
        },
    )
    flow_level: str = field(
        default="row",
        metadata={
            "help": "What has a weight: every 'row', by its mean loss under the original model, or every 'token', by "
            "its own.",
            "choices": ["row", "token"],
        },
    )
    source_column: str | None = field(
        default=None,
        metadata={"help": "Column that names each row's source: every source has a tau and a mean weight of its own."},
    )
    tau_rows: int = field(
        default=1000,
        metadata={
            "help": "On a stream, rows that are scored before the first step to find tau: a uniform sample of the "
            "first ten times as many."
        },
    )
    original_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the losses under the original model. Default: original_losses in output_dir."},
    )

    def __post_init__(self) -> None:
        self.tau = str(self.tau)  # YAML and Python may give a number
        number = self.tau_number
        if number is None and self.tau != "median" and not self.tau.startswith("ess:"):
            raise ValueError(f"tau must be 'median', 'ess:SHARE' or a number of nats per token, got {self.tau!r}.")
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"tau must be positive and finite (nats per token), got {self.tau!r}.")
        check_choice(self, "weight_scale", ("mean", "none"))
        check_choice(self, "flow_level", ("row", "token"))
        super().__post_init__()
        if self.original_cache_dir is None and self.output_dir is not None:
            self.original_cache_dir = f"{self.output_dir}/original_losses"

    @property
    def tau_number(self) -> float | None:
        """`tau` as a number of nats per token, or `None` where it is a rule."""
        try:
            return float(self.tau)
        except ValueError:
            return None
