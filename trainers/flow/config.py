"""Configuration of FLOW."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_ext.guards.numbers import TextOrNumber
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig


@dataclass
class FlowSFTConfig(WeightedSFTConfig):
    r"""
    Configuration of [`FlowSFTTrainer`]: [`WeightedSFTConfig`] and two fields.

    Parameters:
        tau (`str`, *optional*, defaults to `"median"`):
            Temperature in nats per token: `"median"` of the documents' mean losses under the original model (the
            paper's), `"ess:0.8"` for the $\tau$ at which the effective sample size is 0.8 of the documents, or a
            number.
        original_cache_dir (`str`, *optional*):
            Where the losses under the original model are kept. Defaults to `original_losses` in `output_dir`. A
            resumed run must find them there: by then the model in hand is no longer the original one.
    """

    tau: TextOrNumber = field(
        default="median",
        metadata={
            "help": "Temperature in nats per token: 'median' (the paper's), 'ess:SHARE' for the tau at which the "
            "effective sample size is that share of the documents, or a number."
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
