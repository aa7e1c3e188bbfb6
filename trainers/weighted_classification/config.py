"""Configuration of weighted classification."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_ext.guards.numbers import check_numbers
from hf_ext.trainers.base.config import check_choice, license_field


@dataclass
class WeightedConfig(TrainingArguments):
    r"""
    Configuration of [`WeightedTrainer`]: [`~transformers.TrainingArguments`] and four fields.

    Parameters:
        normalize (`str`, *optional*, defaults to `"weights"`):
            What the weighted sum of losses is divided by: `"weights"` (their sum in the step) or `"rows"` (the number
            of rows in the step, as in FLOW).
        head_only (`bool`, *optional*, defaults to `False`):
            Whether only the head is trained, on the frozen features of the backbone, whose normalisation statistics
            stay as they are: a linear probe.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the classes.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

    normalize: str = field(
        default="weights",
        metadata={
            "help": "Divide the weighted sum of losses by 'weights' (their sum in the step) or 'rows' (the number of "
            "rows in the step, as in FLOW).",
            "choices": ["weights", "rows"],
        },
    )
    head_only: bool = field(
        default=False,
        metadata={"help": "Train the head alone, on frozen features (a linear probe)."},
    )
    label_column: str = field(default="label", metadata={"help": "Column of the classes."})
    model_license: str | None = license_field()

    def __post_init__(self) -> None:
        check_choice(self, "normalize", ("weights", "rows"))
        check_numbers(self)
        super().__post_init__()
        if self.label_smoothing_factor != 0:
            raise ValueError("label_smoothing_factor does not go with weighted rows: leave it at 0.")
