"""Options that several verbs share, and what they load. Heavy imports stay inside the functions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.guards.numbers import COUNT, POSITIVE

if TYPE_CHECKING:
    from datasets import Dataset


def option(parser: argparse._ActionsContainer, name: str, *extra: str, **kwargs: Any) -> None:
    """Add an option under its name with hyphens and with underscores, as the training options have both."""
    names = [name, *extra]
    parser.add_argument(*dict.fromkeys(names + [n.replace("-", "_").replace("__", "--", 1) for n in names]), **kwargs)


def add_field_option(parser: argparse._ActionsContainer, metavar: str, description: str) -> None:
    """Add the option of a step's fields, which may be given several times."""
    option(parser, "--option", action="append", default=[], metavar=metavar, help=f"{description}; may be repeated")


def temperature(text: str) -> float | str:
    """
    The `type` of an option for FLOW's temperature: a number of nats per token, `median`, or `ess:SHARE`.

    Raises:
        argparse.ArgumentTypeError: if it is none of these.
    """
    kind, _, share = text.partition(":")
    if text == "median":
        return text
    try:
        if kind == "ess" and 0 < float(share) < 1:
            return text
        return float(POSITIVE(text))
    except (ValueError, argparse.ArgumentTypeError):
        problem = f"must be 'median', 'ess:SHARE' with SHARE in (0, 1) or nats per token above 0, got {text[:80]!r}"
        raise argparse.ArgumentTypeError(problem) from None


def add_rows_options(parser: argparse._ActionsContainer, name: str, description: str, required: bool = False) -> None:
    """Add an option for a dataset and those that pick and rename its rows."""
    group = parser.add_argument_group("rows")
    option(group, name, required=required, metavar="DATA", help=f"{description}: a file, a folder or a Hub name")
    option(group, "--dataset-config", metavar="NAME", help="configuration of a Hub dataset")
    option(group, "--split", metavar="NAME", help="split to read (default: the only one)")
    option(group, "--max-rows", type=COUNT, metavar="N", help="take the first rows only (default: all)")
    option(group, "--prompt-column", metavar="NAME", help="column to use as 'prompt'")
    option(group, "--completion-column", metavar="NAME", help="column to use as 'completion'")
    option(group, "--prompt-template", metavar="TEXT", help="text around a string prompt, with {prompt} in it")


def add_precision_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say in what precision and where a model runs."""
    group = parser.add_argument_group("precision")
    option(
        group,
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="of the weights; must be that of training (default: float32, as in training)",
    )
    option(
        group,
        "--autocast",
        choices=["none", "bf16", "fp16"],
        default="none",
        help="precision of the forward; as in training with --bf16 or --fp16 (default: none)",
    )
    option(group, "--device", help="such as cuda:0 or cpu (default: the accelerator if there is one)")


def rows_of(options: argparse.Namespace, name: str) -> Any:
    """
    The dataset that `add_rows_options` names.

    Raises:
        ValueError: if it cannot be loaded, or a split or column is missing.
    """
    from hf_ext.data.loading import first_rows, load_rows, rename_columns

    rows = load_rows(name, config=options.dataset_config, split=options.split)
    rows = rename_columns(rows, options.prompt_column, options.completion_column, options.prompt_template)
    return first_rows(rows, options.max_rows)


@contextmanager
def telling_rows_by(name: str, title: str = "target dataset, ") -> Iterator[None]:
    """
    Inside, a bad row is told of by the option that named it, with what a command's user can do.

    There is no dataset to filter, no configuration to change, and no `on_bad_row`: what is measured on rows that a
    command leaves out would be said of other rows than those it was given.

    Args:
        name (`str`):
            The option, such as `--items`.
        title (`str`, *optional*):
            How the errors of these rows begin; others pass through.

    Raises:
        RowError: in place of another one.
    """
    from hf_ext.guards.row_errors import RowError, remedy_of

    try:
        yield
    except RowError as error:
        if not str(error).startswith(title):
            raise
        problem, line_break, remedy = str(error).removeprefix(title).rpartition("\n  ")
        if remedy == remedy_of(None):
            first_remedy = "Raise --max-length" if "after truncation" in problem else "Fix the row"
            remedy = f"{first_remedy}, or take it out of what {name} names."
        elif remedy.startswith("Rename your column with dataset.rename_column, name it with"):
            remedy = "Name yours with --prompt-column and --completion-column, or rename them."
        raise RowError(f"{name} {problem}{line_break}{remedy}", error.row_index, error.column) from error


def model_and_tokenizer(
    name: str, dtype: str, device: str | None = None, revision: str | None = None
) -> tuple[Any, Any]:
    """
    Load a model and its tokenizer.

    Raises:
        ValueError: if the model, its tokenizer or the device is not there, or the model is no causal one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_ext.data.loading import check_model_name
    from hf_ext.guards.models import loading_model

    check_model_name(name, revision)
    try:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        target_device = torch.device(device) if device is not None else accelerator or torch.device("cpu")
        # the only way to learn that a device is there and usable
        torch.empty(0, device=target_device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    with loading_model(name):
        # Said aloud: without it transformers asks on a terminal whether to run code that came with the model.
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, trust_remote_code=False)
    # transformers gives a BERT a head of random weights and lets every token read those after it.
    if getattr(model.config, "is_decoder", None) is False and not model.config.is_encoder_decoder:
        raise ValueError(
            f"model {name!r} reads a text in both directions (is_decoder is false in its config.json), so it has no "
            "likelihood of one: name a causal language model"
        )
    # Of a BART's files it makes the decoder alone, which never wrote without the encoder, and the config forgets it.
    if type(model.config).is_encoder_decoder and type(model).__name__ not in (model.config.architectures or ()):
        raise ValueError(f"model {name!r} has an encoder and a decoder: name a causal language model")
    return model.to(target_device), tokenizer


def tuned_model_and_tokenizer(name: str, dtype: str, device: str | None = None) -> tuple[Any, Any]:
    """
    Load a model and its tokenizer; an adapter stays one, on its base model, so that it can be switched off.

    Raises:
        ValueError: as [`model_and_tokenizer`]; or if an adapter cannot be loaded.
    """
    folder = Path(name)
    if not (folder / "adapter_config.json").is_file():
        return model_and_tokenizer(name, dtype, device)
    from peft import PeftConfig, PeftModel
    from transformers import AutoTokenizer

    from hf_ext.guards.models import loading_model

    with loading_model(name, "adapter"):
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    model, tokenizer = model_and_tokenizer(base, dtype, device)
    with loading_model(name, "adapter"):
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return PeftModel.from_pretrained(model, name), tokenizer


def autocast_dtype(options: argparse.Namespace) -> Any:
    """The dtype that `--autocast` names, or `None`."""
    import torch

    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.autocast]


def check_columns(rows: Dataset, output: Path) -> None:
    """
    Refuse rows that the format of `output` cannot hold, before any work is done.

    Raises:
        ValueError: if pictures, sound, film, bytes, times or decimals are to be written as `.jsonl`.
    """
    from hf_ext.data.media import non_json_columns

    columns = non_json_columns(rows) if output.suffix == ".jsonl" else []
    if columns:
        raise ValueError(
            f"--output {str(output)!r}: JSON cannot hold column {columns[0]!r}, {rows.features[columns[0]]}. Name a "
            ".parquet file or a folder without a suffix"
        )


def write_rows(rows: Dataset, output: Path, overwrite: bool = False) -> None:
    """
    Write rows as the suffix of `output` says: `.parquet`, `.jsonl`, or a folder for `load_from_disk`.

    The bytes of pictures, sound and film go along, wherever they lie. A file that is there is replaced; a folder with
    something in it only with `overwrite`. Call `rows_output` first, which checks the place.

    Raises:
        DiskFullError: if there is no room; what was there is intact.
        NotWritableError: if the place cannot be written.
        ValueError: if JSON cannot hold a column.
    """
    from hf_ext.data.media import write_parquet
    from hf_ext.guards.disk import replacing, writing

    check_columns(rows, output)
    with writing("the rows", output), replacing(output, overwrite=overwrite) as temporary:
        if output.suffix == ".parquet":
            write_parquet(rows, temporary)
        elif output.suffix == ".jsonl":
            # Dataset.to_json rounds to ten digits after the point, and weights may be far smaller than that.
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            rows.save_to_disk(temporary)
