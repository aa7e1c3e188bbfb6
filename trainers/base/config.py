"""Settings that the trainers share: what happens to a malformed row, and the licence on the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from transformers import PreTrainedModel

from hf_ext.guards.best_metric import fill_direction
from hf_ext.guards.numbers import check_numbers

# What a host's configuration adds to settings that stand before it in the bases. Deriving from it here would put its
# defaults in front of those of TRL's configurations, which come later in the bases.
if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments as HostArguments
else:
    HostArguments = object

AnyModel: TypeAlias = "str | PreTrainedModel | PeftModel"
BAD_ROW_CHOICES = ("raise", "drop")


def license_field() -> Any:
    """The field `model_license` of a configuration."""
    return field(
        default=None,
        metadata={"help": "Licence identifier for the model card, such as 'apache-2.0'. Default: the base model's."},
    )


@dataclass
class RowSettings(HostArguments):
    """
    The last fields of every trainer that reads rows; stands before all else in a configuration's bases.

    Parameters:
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at the first malformed row; `"drop"` leaves malformed rows out and writes them to a file.
        bad_rows_path (`str`, *optional*):
            Where dropped rows are written, as JSON lines. Defaults to `bad_rows.jsonl` in `output_dir`.
        model_license (`str`, *optional*):
            Licence identifier for the model card (such as `"apache-2.0"`).
    """

    on_bad_row: str = field(
        default="raise",
        metadata={
            "help": "'raise' stops at the first malformed row and names it; 'drop' leaves malformed rows out, logs "
            "how many, and writes them to bad_rows_path.",
            "choices": list(BAD_ROW_CHOICES),
        },
    )
    bad_rows_path: str | None = field(
        default=None,
        metadata={"help": "File for dropped rows (JSON lines). Default: bad_rows.jsonl in output_dir."},
    )
    model_license: str | None = license_field()

    def __post_init__(self) -> None:
        check_choice(self, "on_bad_row", BAD_ROW_CHOICES)
        check_numbers(self)
        fill_direction(self)
        super().__post_init__()
        if self.bad_rows_path is None and self.output_dir is not None:
            self.bad_rows_path = f"{self.output_dir}/bad_rows.jsonl"


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """
    Refuse a setting that takes one of a few words and has another.

    Raises:
        ValueError: if the value of the field `name` is none of `choices`.
    """
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def default_output_dir(model: AnyModel, name: str) -> str:
    """The folder of a run without arguments, as TRL names it: the model's name and the method's."""
    model_name = model if isinstance(model, str) else (getattr(model.config, "_name_or_path", "") or "model")
    return f"{model_name.rstrip('/').split('/')[-1]}-{name}"
