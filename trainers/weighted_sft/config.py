"""Configuration of weighted supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from hf_ext.trainers.base.config import RowSettings, check_choice


@dataclass
class LossSettings:
    """The fields of the weighted loss; apart, so that those of [`RowSettings`] come after them in `--help`."""

    normalize: str = field(
        default="weights",
        metadata={
            "help": "Denominator of the weighted loss: 'weights' (their sum: the loss keeps the scale of plain SFT) "
            "or 'tokens' (the number of supervised tokens, as in the FLOW paper's code).",
            "choices": ["weights", "tokens"],
        },
    )
    reduction: str = field(
        default="token",
        metadata={
            "help": "'token': every supervised token counts alike. 'row': every document's mean loss counts alike.",
            "choices": ["token", "row"],
        },
    )


@dataclass
class WeightedSFTConfig(RowSettings, LossSettings, SFTConfig):
    r"""
    Configuration of [`WeightedSFTTrainer`]: [`~trl.SFTConfig`], the fields of [`RowSettings`] and two more.

    Parameters:
        normalize (`str`, *optional*, defaults to `"weights"`):
            What the weighted sum of token losses is divided by: `"weights"` (the sum of weights: the loss keeps the
            scale of plain SFT) or `"tokens"` (their number, as in the FLOW paper's code).
        reduction (`str`, *optional*, defaults to `"token"`):
            `"token"`: every supervised token counts alike; `"row"`: every document's mean loss counts alike.
    """

    def __post_init__(self) -> None:
        check_choice(self, "normalize", ("weights", "tokens"))
        check_choice(self, "reduction", ("token", "row"))
        super().__post_init__()
