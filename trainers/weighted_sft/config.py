"""Configuration of weighted supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from hf_ext.guards.best_metric import fill_direction
from hf_ext.guards.numbers import check_numbers


@dataclass
class WeightedSFTConfig(SFTConfig):
    r"""
    Configuration of [`WeightedSFTTrainer`]: [`~trl.SFTConfig`] and five fields.

    Parameters:
        normalize (`str`, *optional*, defaults to `"weights"`):
            What the weighted sum of token losses is divided by: `"weights"` (the sum of weights: the loss keeps the
            scale of plain SFT) or `"tokens"` (their number, as in the FLOW paper's code).
        reduction (`str`, *optional*, defaults to `"token"`):
            `"token"`: every supervised token counts alike; `"row"`: every document's mean loss counts alike.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at the first malformed row; `"drop"` leaves malformed rows out and writes them to a file.
        bad_rows_path (`str`, *optional*):
            Where dropped rows are written, as JSON lines. Defaults to `bad_rows.jsonl` in `output_dir`.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

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
    on_bad_row: str = field(
        default="raise",
        metadata={
            "help": "'raise' stops at the first malformed row and names it; 'drop' leaves malformed rows out, logs "
            "how many, and writes them to bad_rows_path.",
            "choices": ["raise", "drop"],
        },
    )
    bad_rows_path: str | None = field(
        default=None,
        metadata={"help": "File for dropped rows (JSON lines). Default: bad_rows.jsonl in output_dir."},
    )
    model_license: str | None = field(
        default=None,
        metadata={"help": "Licence identifier for the model card, such as 'apache-2.0'. Default: the base model's."},
    )

    def __post_init__(self) -> None:
        for name, allowed in (
            ("normalize", ("weights", "tokens")),
            ("reduction", ("token", "row")),
            ("on_bad_row", ("raise", "drop")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        check_numbers(self)
        fill_direction(self)
        super().__post_init__()
        if self.bad_rows_path is None and self.output_dir is not None:
            self.bad_rows_path = f"{self.output_dir}/bad_rows.jsonl"
