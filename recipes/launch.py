"""What every recipe shares: arguments, checks before a long run, rows, and the order train, save, report, push."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

import hf_ext
from hf_ext.data.loading import check_model_name, check_part, first_rows, load_splits, pick_split
from hf_ext.guards.exits import exit_status
from hf_ext.guards.extras import require_extra
from hf_ext.guards.processes import end_with_launcher
from hf_ext.guards.runs import claimed_output
from hf_ext.guards.streams import printing
from hf_ext.guards.world import check_world_size
from hf_ext.hub.retry import PushError
from hf_ext.method import Method
from hf_ext.recipes.parser import RecipeParser

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from hf_ext.data.loading import AnyDataset, AnySplits

NOT_PUSHED = 3
"""Exit status where training may have succeeded and the model is saved, but the Hub did not take it."""
# Settings that are keyword arguments of something else in a host library.
MAPPINGS = (
    "model_init_kwargs",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",  # its name before transformers 5.23
    "dataset_kwargs",
    "lr_scheduler_kwargs",
)


@dataclass
class RecipeArguments(ScriptArguments):
    """
    TRL's script arguments and what every recipe adds.

    Parameters:
        dataset_data_dir (`str`, *optional*):
            Folder inside the dataset.
        eval_dataset_name (`str`, *optional*):
            Dataset of the evaluation rows; by default the split `dataset_test_split` of the training dataset.
        prompt_column (`str`, *optional*):
            Column renamed to `prompt`.
        prompt_template (`str`, *optional*):
            Text around a string prompt, with `{prompt}` in it.
        max_train_rows, max_eval_rows (`int`, *optional*):
            Take the first rows only.
        expected_num_processes (`int`, *optional*):
            Stop unless this many processes train together.
    """

    dataset_data_dir: str | None = field(
        default=None, metadata={"help": "Folder inside a Hub dataset, such as 'harmless-base' of Anthropic/hh-rlhf."}
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub name of the evaluation rows. Default: dataset_test_split."},
    )
    prompt_column: str | None = field(default=None, metadata={"help": "Column to use as 'prompt'."})
    prompt_template: str | None = field(
        default=None,
        metadata={"help": r"Text around a string prompt, such as 'Question: {prompt}\nAnswer: '."},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    expected_num_processes: int | None = field(
        default=None, metadata={"help": "Stop unless this many processes train together."}
    )

    def prepare_rows(self, rows: AnyDataset) -> AnyDataset:
        """Rename what the arguments name; here nothing."""
        return rows

    def wants_held_out(self, training_args: TrainingArguments) -> bool:
        """Whether evaluation rows are needed."""
        return training_args.eval_strategy != "no"


Arguments = TypeVar("Arguments", bound=RecipeArguments)


@dataclass(frozen=True)
class Recipe(Generic[Arguments]):
    """
    A launchable method. A family of methods overrides `check`, `before_training` and `after_training`.

    Args:
        method ([`~hf_ext.method.Method`]): the method's record.
        arguments (`type`): its script arguments.
    """

    method: Method
    arguments: type[Arguments]

    def make_parser(
        self, subparsers: argparse._SubParsersAction | None = None, prog: str | None = None
    ) -> RecipeParser:
        """The recipe's parser, alone or as one of `subparsers`, as in TRL's scripts."""
        types = (self.arguments, getattr(hf_ext, self.method.config), ModelConfig, DatasetMixtureConfig)
        if subparsers is not None:
            return subparsers.add_parser(self.method.name, help=self.method.summary, dataclass_types=types)
        return RecipeParser(types, prog=prog)

    def run(self, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        """
        Parse `argv` (the process's by default) and train.

        Returns:
            `int`: the exit status, as of [`exit_status`], and `NOT_PUSHED` where the Hub did not take what was saved.
        """
        end_with_launcher()
        parser = self.make_parser(prog=prog)

        def command() -> int:
            try:
                arguments = parser.parse_args_and_config(argv)
                # First, for processes that train apart would be refused as two runs.
                check_world_size(arguments[0].expected_num_processes)
                if (answer := self.answer(*arguments)) is not None:
                    print(answer)
                    return 0
                with claimed_output(arguments[1]):  # until the model is saved and pushed
                    self.main(*arguments)
            except PushError as error:
                print(f"{parser.prog}: error: {error}", file=sys.stderr)
                return NOT_PUSHED
            return 0

        return printing(lambda: exit_status(command, parser.prog), parser.prog)

    def main(
        self,
        script_args: Arguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Load, train, save; push and report if asked.

        Raises:
            ValueError: if an argument cannot be honoured; everything that can be checked is checked before training.
            PushError: if the Hub did not take the model; it is saved by then, unless the Hub refused before training.
        """
        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        self.before_loading(training_args, model_args)
        rows, held_out = self.load(script_args, training_args, dataset_args)
        self.before_training(script_args, training_args, model_args)
        with naming_keywords(training_args):
            trainer = self.make_trainer(
                model_args.model_name_or_path,
                training_args,
                model_args,
                train_dataset=rows,
                eval_dataset=held_out if training_args.eval_strategy != "no" else None,
            )
            trainer.train(resume_from_checkpoint=resume_from(training_args.resume_from_checkpoint))
        trainer.accelerator.print("Training completed.")
        trainer.save_model(training_args.output_dir, _internal_call=True)  # the push comes last, with the report
        trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
        self.after_training(trainer, script_args, model_args, held_out)
        try:
            if training_args.push_to_hub:
                trainer.push_to_hub(dataset_name=script_args.dataset_name)
                trainer.accelerator.print(f"Model pushed to the Hub: {trainer.hub_model_id}.")
        finally:
            trainer.end()  # trackers and the process group

    def make_trainer(
        self,
        model: str | PreTrainedModel,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        **rows: AnyDataset | None,
    ) -> Trainer:
        """The trainer of `model`, with the adapter and quantization that the arguments ask for."""
        from trl import get_peft_config, get_quantization_config

        return getattr(hf_ext, self.method.trainer)(
            model=model,
            args=training_args,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            **rows,
        )

    def check(
        self,
        script_args: Arguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        check_arguments(script_args, training_args, model_args, dataset_args)

    def answer(
        self,
        script_args: Arguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> str | None:
        """What is printed in place of a training, where the arguments ask for that; here nothing."""
        return None

    def before_loading(self, training_args: TrainingArguments, model_args: ModelConfig) -> None:
        """Tell the trainer how to load the model."""
        training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)

    def load(
        self, script_args: Arguments, training_args: TrainingArguments, dataset_args: DatasetMixtureConfig
    ) -> tuple[AnyDataset, AnyDataset | None]:
        """Training rows, and evaluation rows where the arguments want them (else `None`)."""
        return load_train_and_eval(script_args, training_args, dataset_args)

    def before_training(
        self, script_args: Arguments, training_args: TrainingArguments, model_args: ModelConfig
    ) -> None:
        """What the trainer needs beyond its rows; here nothing."""

    def after_training(
        self, trainer: Trainer, script_args: Arguments, model_args: ModelConfig, held_out: AnyDataset | None
    ) -> None:
        """What follows saving and comes before the push; here nothing."""


# --- arguments -------------------------------------------------------------------------------------------------------


def check_arguments(
    script_args: RecipeArguments,
    training_args: TrainingArguments,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
    *,
    needs_model: bool = True,
) -> None:
    """Refuse a model, a dataset, a launch or a checkpoint that cannot be used."""
    if needs_model:
        check_model_name(
            model_args.model_name_or_path,
            model_args.model_revision,
            getattr(training_args, "trust_remote_code", False),
        )
    if bool(dataset_args.datasets) == bool(script_args.dataset_name):
        problem = "both were given" if script_args.dataset_name else "neither was given"
        raise ValueError(f"give either dataset_name or a 'datasets' mixture (YAML); {problem}")
    if training_args.n_gpu > 1:
        raise ValueError(
            f"one process sees {training_args.n_gpu} GPUs, and would train with DataParallel, which is not supported. "
            f"Start one process each (hf-ext train --num_processes {training_args.n_gpu}, or accelerate launch), or "
            "set CUDA_VISIBLE_DEVICES=0."
        )
    check_scheduler(training_args)
    check_optimizer_words(training_args)
    if model_args.use_peft:
        require_extra("peft")
    resume = resume_from(training_args.resume_from_checkpoint)
    if resume is True and last_checkpoint(training_args.output_dir) is None:
        raise ValueError(f"resume_from_checkpoint is true, but there is no checkpoint in {training_args.output_dir!r}")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise ValueError(f"resume_from_checkpoint={resume!r}: there is no such folder")


def is_sharded(training_args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will cut the model into parts."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true" for kind in ("FSDP", "DEEPSPEED"))
    return launched or bool(training_args.fsdp) or bool(training_args.deepspeed)


def last_checkpoint(folder: str) -> str | None:
    """The newest checkpoint in a folder, whole or not."""
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(folder) if Path(folder).is_dir() else None


def resume_from(value: str | bool | None) -> str | bool | None:
    """`resume_from_checkpoint` as the trainer takes it: the command line has only strings."""
    words = {"true": True, "yes": True, "1": True, "false": None, "no": None, "0": None, "none": None, "": None}
    return words.get(str(value).lower(), value)


def model_init_kwargs(training_args: TrainingArguments, model_args: ModelConfig) -> dict[str, Any]:
    """How the trainer loads the model."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def check_scheduler(training_args: TrainingArguments) -> None:
    """
    Make the scheduler once on a parameter of its own: the host makes it after the model and all rows are loaded.

    Raises:
        ValueError: if `lr_scheduler_kwargs` has a key or value that the scheduler does not take, or lacks one that it
            needs, or has no effect.
    """
    import torch
    from transformers import SchedulerType, get_scheduler

    kind = SchedulerType(training_args.lr_scheduler_type)
    keywords = training_args.lr_scheduler_kwargs or {}
    setting = f"with lr_scheduler_type={kind.value!r}"
    if keywords and kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise ValueError(
            f"lr_scheduler_kwargs={keywords!r} has no effect {setting}: leave it out, or name another type"
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training_args.learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, 1_000_000, scheduler_specific_kwargs=dict(keywords))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"lr_scheduler_kwargs={keywords!r} cannot be used {setting}: {error}") from error


def check_optimizer_words(training_args: TrainingArguments) -> None:
    """
    Look at `optim_args`, which the host splits at commas once model and rows are loaded.

    Raises:
        ValueError: if a part of it is not `NAME=VALUE`.
    """
    text = training_args.optim_args
    if isinstance(text, str) and text and any(part.count("=") != 1 for part in text.split(",")):
        raise ValueError(
            f"optim_args={text!r} must be NAME=VALUE, several with commas between them; no value may hold a comma "
            "(the betas of Adam are adam_beta1 and adam_beta2)"
        )


@contextmanager
def naming_keywords(training_args: TrainingArguments) -> Iterator[None]:
    """
    Around what passes `MAPPINGS` on: an unknown keyword among them is said to be the setting's.

    Raises:
        ValueError: in place of a `TypeError` about a keyword that one of the mappings has.
    """
    try:
        yield
    except TypeError as error:
        match = re.search("unexpected keyword argument '([^']+)'", str(error))
        for name in MAPPINGS if match is not None else ():
            mapping = getattr(training_args, name, None)
            if isinstance(mapping, Mapping) and match is not None and match[1] in mapping:
                raise ValueError(f"{name} has a key {match[1]!r} that nothing takes: {error}") from error
        raise


# --- rows ------------------------------------------------------------------------------------------------------------


def load_train_and_eval(
    script_args: RecipeArguments, training_args: TrainingArguments, dataset_args: DatasetMixtureConfig
) -> tuple[AnyDataset, AnyDataset | None]:
    """
    Training rows, and evaluation rows where the arguments want them (else `None`).

    Raises:
        ValueError: if a dataset, split or column is missing.
    """
    from trl import get_dataset

    name = script_args.dataset_name or "datasets"
    if dataset_args.datasets:
        for part in dataset_args.datasets:
            check_part(part)
        splits = get_dataset(dataset_args)
    else:
        splits = load_splits(
            name, script_args.dataset_config, script_args.dataset_streaming, script_args.dataset_data_dir
        )
    rows = pick_split(splits, script_args.dataset_train_split, name)
    held_out = None
    if script_args.wants_held_out(training_args):
        held_out = _evaluation_rows(script_args, splits, name)
        held_out = first_rows(script_args.prepare_rows(held_out), script_args.max_eval_rows)
    return first_rows(script_args.prepare_rows(rows), script_args.max_train_rows), held_out


def _evaluation_rows(script_args: RecipeArguments, splits: AnySplits, name: str) -> AnyDataset:
    split = script_args.dataset_test_split
    if script_args.eval_dataset_name is None:
        if split not in splits:
            raise ValueError(
                f"evaluation needs rows: dataset {name!r} has no split {split!r} (it has {sorted(splits)}). Pass "
                "eval_dataset_name or dataset_test_split, or turn evaluation off: eval_strategy 'no', report false."
            )
        return splits[split]
    loaded = load_splits(script_args.eval_dataset_name, script_args.dataset_config, script_args.dataset_streaming)
    return pick_split(loaded, None if len(loaded) == 1 else split, script_args.eval_dataset_name)
