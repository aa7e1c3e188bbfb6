"""What the SFT recipes share: arguments, data, launch, report. A method's `train.py` names its trainer and config."""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

import hf_ext
from hf_ext.cli.errors import exit_status
from hf_ext.guards.world import check_world_size
from hf_ext.hub.retry import PushError
from hf_ext.recipes.loading import check_model_name, first_rows, load_rows, load_splits, pick_split, rename_columns
from hf_ext.recipes.parser import RecipeParser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NOT_PUSHED = 3
"""Exit status where training may have succeeded and the model is saved, but the Hub did not take it."""

REPORT_SEED = 20_000  # far from the seeds of training stores: a report needs samples that nobody trained on


@dataclass
class SFTRecipeArguments(ScriptArguments):
    """
    TRL's script arguments and what a weighted SFT recipe adds.

    Parameters:
        eval_dataset_name (`str`, *optional*):
            Dataset of the evaluation rows; by default the split `dataset_test_split` of the training dataset.
        prompt_column, completion_column (`str`, *optional*):
            Columns renamed to `prompt` and `completion`; only these two and `weight` are kept.
        prompt_template (`str`, *optional*):
            Text around a string prompt, with `{prompt}` in it.
        max_train_rows, max_eval_rows (`int`, *optional*):
            Take the first rows only.
        expected_num_processes (`int`, *optional*):
            Stop unless this many processes train together.
        report (`bool`, *optional*, defaults to `False`):
            Whether to measure what was learned and forgotten after training, into `output_dir` and the card.
        report_num_tokens (`int`, *optional*, defaults to `16384`):
            Fresh context-free tokens sampled from the original model for the report.
        report_general_text (`str`, *optional*):
            Dataset with a column `text`, unrelated to the target, for the report.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub name of the evaluation rows. Default: dataset_test_split."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column to use as 'prompt' (then name completion_column too)."}
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "Column to use as 'completion' (then name prompt_column too)."}
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": r"Text around a string prompt, such as 'Question: {prompt}\nAnswer: '; needs both columns."},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    expected_num_processes: int | None = field(
        default=None, metadata={"help": "Stop unless this many processes train together."}
    )
    report: bool = field(
        default=False,
        metadata={"help": "After training, measure what was learned and forgotten: output_dir/report and the card."},
    )
    report_num_tokens: int = field(
        default=16_384, metadata={"help": "Fresh context-free tokens for the report, from the original model."}
    )
    report_general_text: str | None = field(
        default=None, metadata={"help": "File, folder or Hub name of general text (column 'text') for the report."}
    )


@dataclass
class ContextFreeRecipeArguments(SFTRecipeArguments):
    """
    [`SFTRecipeArguments`] and the sampling of context-free rows before training.

    Parameters:
        context_free_num_tokens (`int`, *optional*):
            Sample at least so many tokens from the model into `context_free_path` first, if they are not there yet.
        context_free_max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest row, in sampled tokens.
        context_free_start (`str`, *optional*, defaults to `"bos"`):
            What every row begins with: `bos`, `separator` or a text.
    """

    context_free_num_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Sample at least so many tokens from the original model into context_free_path (default: "
            "context_free in output_dir) before training, if they are not there yet."
        },
    )
    context_free_max_new_tokens: int = field(
        default=128, metadata={"help": "Longest context-free row, in sampled tokens."}
    )
    context_free_start: str = field(
        default="bos", metadata={"help": "What every context-free row begins with: 'bos', 'separator' or a text."}
    )


@dataclass(frozen=True)
class SFTRecipe:
    """
    A launchable method of the SFT family.

    Args:
        method (`str`): the method's name, as in `hf-ext train`.
        trainer (`str`): name of its trainer class in `hf_ext`.
        config (`str`): name of its config class in `hf_ext`.
        arguments (`type`): its script arguments.
    """

    method: str
    trainer: str
    config: str
    arguments: type[SFTRecipeArguments] = SFTRecipeArguments

    def make_parser(
        self, subparsers: argparse._SubParsersAction | None = None, prog: str | None = None
    ) -> RecipeParser:
        """The recipe's parser, alone or as one of `subparsers`, as in TRL's scripts."""
        types = (self.arguments, getattr(hf_ext, self.config), ModelConfig, DatasetMixtureConfig)
        if subparsers is not None:
            return subparsers.add_parser(self.method, help=f"Train with {self.trainer}", dataclass_types=types)
        return RecipeParser(types, prog=prog)

    def run(self, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        """
        Parse `argv` (the process's by default) and train.

        Returns:
            `int`: the exit status, as of [`exit_status`], and `NOT_PUSHED` where the Hub did not take what was saved.
        """
        parser = self.make_parser(prog=prog)

        def command() -> int:
            try:
                self.main(*parser.parse_args_and_config(argv))
            except PushError as error:
                print(f"{parser.prog}: error: {error}", file=sys.stderr)
                return NOT_PUSHED
            return 0

        return exit_status(command, parser.prog)

    def main(
        self,
        script_args: SFTRecipeArguments,
        training_args: Any,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Load, train, save; push and report if asked.

        Raises:
            ValueError: an argument cannot be honoured; everything that can be checked is checked before training.
            PushError: the Hub did not take the model; it is saved by then, unless the Hub refused before training.
        """
        from trl import get_peft_config, get_quantization_config

        check_world_size(script_args.expected_num_processes)
        _check_arguments(script_args, training_args, model_args, dataset_args)
        training_args.model_init_kwargs = _model_init_kwargs(training_args, model_args)
        rows, held_out = load_train_and_eval(script_args, training_args, dataset_args)
        if isinstance(script_args, ContextFreeRecipeArguments):
            sample_context_free_rows(script_args, training_args, model_args)

        trainer = getattr(hf_ext, self.trainer)(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=rows,
            eval_dataset=held_out if training_args.eval_strategy != "no" else None,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=_resume(training_args.resume_from_checkpoint))
        trainer.accelerator.print("Training completed.")
        trainer.save_model(training_args.output_dir, _internal_call=True)  # the push comes last, with the report
        trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
        if script_args.report:
            write_report(trainer, script_args, model_args, held_out)
        try:
            if training_args.push_to_hub:
                trainer.push_to_hub(dataset_name=script_args.dataset_name)
                trainer.accelerator.print(f"Model pushed to the Hub: {trainer.hub_model_id}.")
        finally:
            trainer.end()  # trackers and the process group


# --- arguments -------------------------------------------------------------------------------------------------------


def _check_arguments(
    script_args: SFTRecipeArguments, training_args: Any, model_args: ModelConfig, dataset_args: DatasetMixtureConfig
) -> None:
    """Refuse now what would fail, or be ignored, after a long run."""
    check_model_name(model_args.model_name_or_path, model_args.model_revision, training_args.trust_remote_code)
    if bool(dataset_args.datasets) == bool(script_args.dataset_name):
        what = "both were given" if script_args.dataset_name else "neither was given"
        raise ValueError(f"give either dataset_name or a 'datasets' mixture (YAML); {what}")
    if training_args.n_gpu > 1:
        raise ValueError(
            f"one process sees {training_args.n_gpu} GPUs, and would train with DataParallel, which is not supported. "
            f"Start one process each (hf-ext train --num_processes {training_args.n_gpu}, or accelerate launch), or "
            "set CUDA_VISIBLE_DEVICES=0."
        )
    sampling = getattr(script_args, "context_free_num_tokens", None) is not None
    if (script_args.report or sampling) and _is_sharded(training_args):
        raise ValueError(
            "report and context_free_num_tokens need the whole model in each process; FSDP or DeepSpeed shards it. "
            "Run 'hf-ext data context-free' before, or 'hf-ext eval forgetting' after this run instead."
        )
    resume = _resume(training_args.resume_from_checkpoint)
    if resume is True and _last_checkpoint(training_args.output_dir) is None:
        raise ValueError(f"resume_from_checkpoint is true, but there is no checkpoint in {training_args.output_dir!r}")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise ValueError(f"resume_from_checkpoint={resume!r}: there is no such folder")
    if script_args.report and script_args.dataset_streaming:
        raise ValueError("report measures a fixed set of rows: set dataset_streaming to false, or report to false")


def _is_sharded(training_args: Any) -> bool:
    import os

    launched = any(os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true" for kind in ("FSDP", "DEEPSPEED"))
    return launched or bool(training_args.fsdp) or bool(training_args.deepspeed)


def _last_checkpoint(folder: str) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(folder) if Path(folder).is_dir() else None


def _resume(value: str | bool | None) -> str | bool | None:
    """`resume_from_checkpoint` as the trainer takes it: the command line has only strings."""
    words = {"true": True, "yes": True, "1": True, "false": None, "no": None, "0": None, "none": None, "": None}
    return words.get(str(value).lower(), value)


def _model_init_kwargs(training_args: Any, model_args: ModelConfig) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


# --- rows ------------------------------------------------------------------------------------------------------------


def load_train_and_eval(
    script_args: SFTRecipeArguments, training_args: Any, dataset_args: DatasetMixtureConfig
) -> tuple[Any, Any]:
    """
    Training rows, and evaluation rows where `eval_strategy` or `report` needs them (else `None`).

    Raises:
        ValueError: a dataset, split or column is missing.
    """
    from trl import get_dataset

    streaming = script_args.dataset_streaming
    name = script_args.dataset_name or "datasets"
    if dataset_args.datasets:
        splits = get_dataset(dataset_args)
    else:
        splits = load_splits(name, script_args.dataset_config, streaming)
    rows = pick_split(splits, script_args.dataset_train_split, name)
    held_out = None
    if training_args.eval_strategy != "no" or script_args.report:
        held_out = _evaluation_rows(script_args, splits, name)
        held_out = first_rows(_renamed(held_out, script_args), script_args.max_eval_rows)
    return first_rows(_renamed(rows, script_args), script_args.max_train_rows), held_out


def _evaluation_rows(script_args: SFTRecipeArguments, splits: Any, name: str) -> Any:
    split = script_args.dataset_test_split
    if script_args.eval_dataset_name is None:
        if split not in splits:
            raise ValueError(
                f"evaluation needs rows: dataset {name!r} has no split {split!r} (it has {sorted(splits)}). Pass "
                "eval_dataset_name or dataset_test_split, or set eval_strategy to 'no' and report to false."
            )
        return splits[split]
    loaded = load_splits(script_args.eval_dataset_name, script_args.dataset_config, script_args.dataset_streaming)
    return pick_split(loaded, None if len(loaded) == 1 else split, script_args.eval_dataset_name)


def _renamed(rows: Any, script_args: SFTRecipeArguments) -> Any:
    return rename_columns(rows, script_args.prompt_column, script_args.completion_column, script_args.prompt_template)


# --- the original model ----------------------------------------------------------------------------------------------


def load_original(training_args: Any, model_args: ModelConfig) -> PreTrainedModel:
    """The model before tuning as the trainer loads it (same revision and dtype), on this process's device."""
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        **{"trust_remote_code": training_args.trust_remote_code, **training_args.model_init_kwargs},
        quantization_config=get_quantization_config(model_args),
    )
    return model.to(training_args.device)


def sample_context_free_rows(
    script_args: ContextFreeRecipeArguments, training_args: Any, model_args: ModelConfig
) -> None:
    """
    Fill `context_free_path` where `context_free_num_tokens` asks for it; a store that is complete is taken as it is.

    Raises:
        ValueError: neither a store nor a number of tokens is named, or the store was made with other settings.
    """
    import torch
    from transformers import AutoTokenizer

    if script_args.context_free_num_tokens is None:
        if training_args.context_free_path is None:
            raise ValueError(
                "context_free needs rows sampled from the original model: pass context_free_num_tokens (they are "
                "sampled first), or context_free_path with a store made by 'hf-ext data context-free'"
            )
        return
    if training_args.context_free_path is None:
        training_args.context_free_path = str(Path(training_args.output_dir) / "context_free")
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    hf_ext.generate_context_free(
        load_original(training_args, model_args),
        tokenizer,
        script_args.context_free_num_tokens,
        output_dir=training_args.context_free_path,
        max_new_tokens=script_args.context_free_max_new_tokens,
        seed=training_args.seed,
        start=script_args.context_free_start,
        # the rows must come from the model as training runs it
        autocast_dtype=torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None,
        show_progress=not training_args.disable_tqdm,
    )


def write_report(trainer: Any, script_args: SFTRecipeArguments, model_args: ModelConfig, held_out: Any) -> None:
    """
    Measure the tuned model against the original one, print the table, and write it into `output_dir` and the card.

    Writes `report/forgetting.json`, `.md`, `.svg`, `.png` and the store of fresh samples `report/fresh_samples`.
    """
    args, tokenizer = trainer.args, trainer.processing_class
    folder = Path(args.output_dir) / "report"
    original = load_original(args, model_args)
    fresh = hf_ext.generate_context_free(  # on every process: they share the work
        original,
        tokenizer,
        script_args.report_num_tokens,
        output_dir=folder / "fresh_samples",
        seed=REPORT_SEED + args.seed,
        show_progress=not args.disable_tqdm,
    )
    # On every process as well: the host library's preparation waits for all of them.
    unpacked = copy.copy(args)
    unpacked.packing = unpacked.shuffle_dataset = False
    target = hf_ext.prepare_sft_rows(held_out, tokenizer, unpacked, dataset_name="eval")
    if trainer.accelerator.is_main_process:
        general = script_args.report_general_text
        report = hf_ext.forgetting_report(
            original,
            {trainer.method: trainer.accelerator.unwrap_model(trainer.model)},
            tokenizer,
            target=target,
            context_free=fresh,
            general_text=None if general is None else load_rows(general),
            batch_size=args.per_device_eval_batch_size,
            max_length=args.max_length or 1024,
            show_progress=not args.disable_tqdm,
        )
        report.save(folder)
        trainer.forgetting_report = report
        print(report.to_markdown())
        print(f"Report written to {folder}.")
    trainer.accelerator.wait_for_everyone()
    trainer.create_model_card(dataset_name=script_args.dataset_name)
