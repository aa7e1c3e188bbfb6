# /// script
# dependencies = [
#     "hf-ext[data]",
# ]
# ///

"""
Train a language model from scratch on packed shards, as DCLM does it.

`hf_ext.pack` writes the shards, with their tokenizer beside them.

# A model that two processor cores train in minutes; first what it will take
```bash
hf-ext train pretraining --config pretraining/nano_1x --dataset_name shards --plan
hf-ext train pretraining --config pretraining/nano_1x --dataset_name shards
```

# DCLM's 1B-1x, sharded over 8 GPUs
```bash
hf-ext train pretraining --accelerate_config fsdp2 --num_processes 8 --config pretraining/1b_1x --dataset_name shards
accelerate launch --num_processes 8 -m hf_ext.recipes.pretraining.train \
    --config pretraining/1b_1x.yaml --dataset_name shards
```

# What 7B-2x would take on 256 GPUs of 400 TFLOP/s at $2 an hour
```bash
hf-ext train pretraining --config pretraining/7b_2x \
    --plan --plan_devices 256 --plan_teraflops 400 --plan_hourly_price 2
```
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.data.curation.packed import TOKENIZER, is_packed, num_sequences, tokenizer_of
from hf_ext.evaluation.core import evaluate_core
from hf_ext.evaluation.core.task_files import load_tasks
from hf_ext.guards.models import loading_model
from hf_ext.recipes.launch import Recipe, RecipeArguments, check_arguments, is_sharded, load_train_and_eval
from hf_ext.trainers.pretraining import TRAINING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_ext.data.loading import AnyDataset
    from hf_ext.trainers.pretraining.config import PretrainingConfig
    from hf_ext.trainers.pretraining.trainer import PretrainingTrainer


@dataclass
class PretrainingArguments(RecipeArguments):
    """
    [`RecipeArguments`], the plan and CORE.

    Parameters:
        core_data (`str`, *optional*):
            Folder of DCLM's tasks; the trained model's CORE is then measured, printed and put on its card.
        core_max_rows (`int`, *optional*):
            Take the first rows of each task only.
        plan (`bool`, *optional*, defaults to `False`):
            Print parameters, tokens, epochs, operations, memory, time and cost, and stop.
        plan_devices (`int`, *optional*):
            Devices of the plan; those of this launch by default.
        plan_teraflops (`float`, *optional*, defaults to `400.0`):
            What a device of the plan keeps up, in 10^12 operations a second.
        plan_hourly_price (`float`, *optional*, defaults to `2.0`):
            Dollars for an hour of a device.
    """

    core_data: str | None = field(
        default=None, metadata={"help": "Folder of DCLM's tasks, on which CORE is measured after training."}
    )
    core_max_rows: int | None = field(default=None, metadata={"help": "Take the first rows of each task only."})
    plan: bool = field(
        default=False,
        metadata={"help": "Print parameters, tokens, epochs, operations, memory, time and cost, and stop."},
    )
    plan_devices: int | None = field(
        default=None, metadata={"help": "Devices of the plan. Default: those of this launch."}
    )
    plan_teraflops: float = field(
        default=400.0,
        metadata={
            "help": "What a device of the plan keeps up, in 10^12 operations a second (about 40 %% of an H100)."
        },
    )
    plan_hourly_price: float = field(default=2.0, metadata={"help": "Dollars for an hour of a device of the plan."})


@dataclass(frozen=True)
class PretrainingRecipe(Recipe[PretrainingArguments]):
    """Packed shards to a stock model, its curve and its card."""

    arguments: type[PretrainingArguments] = PretrainingArguments

    def check(
        self,
        script_args: PretrainingArguments,
        training_args: PretrainingConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        check_model_or_architecture(training_args, model_args)
        check_arguments(
            script_args, training_args, model_args, dataset_args, needs_model=training_args.architecture is None
        )
        refused = {
            "prompt_column and prompt_template": script_args.prompt_column or script_args.prompt_template,
            "use_peft (an adapter of random weights learns little)": model_args.use_peft,
            "core_data with FSDP or DeepSpeed (measure the saved model)": script_args.core_data is not None
            and is_sharded(training_args),
            "core_max_rows without core_data": script_args.core_max_rows is not None and script_args.core_data is None,
            "quantization": model_args.load_in_4bit or model_args.load_in_8bit,
            "dataset_streaming without token_budget or max_steps": script_args.dataset_streaming
            and training_args.max_steps <= 0,
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"pretraining does not take {setting}")
        if script_args.core_data is not None:
            load_tasks(script_args.core_data)  # a malformed task now, and not after training

    def answer(
        self,
        script_args: PretrainingArguments,
        training_args: PretrainingConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> str | None:
        """The plan, where it is asked for."""
        if not script_args.plan:
            return None
        from hf_ext.trainers.pretraining.plan import plan_of

        check_model_or_architecture(training_args, model_args)
        name = script_args.dataset_name
        count = None
        if name is not None and is_packed(name):
            name_tokenizer(script_args, training_args)
            count = num_sequences(name)
        elif name is not None:
            count = getattr(self.load(script_args, training_args, dataset_args)[0], "num_rows", None)
        tokenizer = load_tokenizer(training_args, model_args)
        plan = plan_of(
            made_model(training_args, model_args, tokenizer, on_meta=True),
            training_args,
            num_sequences=count,
            num_devices=script_args.plan_devices or training_args.world_size,
            teraflops=script_args.plan_teraflops,
            hourly_price=script_args.plan_hourly_price,
        )
        return plan.to_text()

    def before_loading(self, training_args: PretrainingConfig, model_args: ModelConfig) -> None:
        """Nothing: the model is made here."""

    def load(
        self, script_args: PretrainingArguments, training_args: PretrainingConfig, dataset_args: DatasetMixtureConfig
    ) -> tuple[AnyDataset, AnyDataset | None]:
        """Training sequences, and held-out ones where the arguments want them; the name of their tokenizer is set."""
        name_tokenizer(script_args, training_args)
        return load_train_and_eval(script_args, training_args, dataset_args)

    def make_trainer(
        self,
        model: str | PreTrainedModel | None,
        training_args: PretrainingConfig,
        model_args: ModelConfig,
        **rows: AnyDataset | None,
    ) -> PretrainingTrainer:
        """The trainer of a new model, or of the one that is to be trained on."""
        tokenizer = load_tokenizer(training_args, model_args)
        if tokenizer is None:
            raise ValueError("no packed folder and no model says which tokenizer made the rows: give tokenizer_name")
        return hf_ext.PretrainingTrainer(
            made_model(training_args, model_args, tokenizer), training_args, processing_class=tokenizer, **rows
        )

    def after_training(
        self,
        trainer: PretrainingTrainer,
        script_args: PretrainingArguments,
        model_args: ModelConfig,
        held_out: AnyDataset | None,
    ) -> None:
        """Write the curve into `report`, and CORE where it is asked for, which the card shows too."""
        folder = Path(trainer.args.output_dir) / "report"
        is_main = trainer.accelerator.is_main_process
        if is_main:
            curve = trainer.curve()
            curve.save(folder)
            print(curve.to_markdown())
        if script_args.core_data is not None:
            trainer.core_report = report = evaluate_core(  # on every process: they share the rows
                trainer.accelerator.unwrap_model(trainer.model),
                trainer.processing_class,
                script_args.core_data,
                max_rows=script_args.core_max_rows,
                output_dir=folder / "core",
                show_progress=not trainer.args.disable_tqdm,
            )
            if is_main:
                report.save(folder)
                print(report.to_markdown())
            trainer.create_model_card(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Report written to {folder}.")
        trainer.accelerator.wait_for_everyone()


def check_model_or_architecture(training_args: PretrainingConfig, model_args: ModelConfig) -> None:
    """
    Refuse what gives no model, or two.

    Raises:
        ValueError: if there is neither a model nor an architecture, or both, or the architecture is no mapping.
    """
    architecture = training_args.architecture
    if (architecture is None) == (model_args.model_name_or_path is None):
        raise ValueError(
            "give either architecture, of a new model, or model_name_or_path, of one to train on; "
            + ("neither was given" if architecture is None else "both were given")
        )
    if architecture is not None and not isinstance(architecture, dict):
        raise ValueError(f"architecture must be a mapping (JSON on the command line), found {architecture!r:.80}")


def name_tokenizer(script_args: PretrainingArguments, training_args: PretrainingConfig) -> None:
    """
    Take the tokenizer beside the shards where none is named.

    Raises:
        ValueError: if a packing is not finished, or was made with another tokenizer.
    """
    for name in filter(None, (script_args.dataset_name, script_args.eval_dataset_name)):
        if is_packed(name):
            num_sequences(name)
            tokenizer_of(name, training_args.tokenizer_name)
            training_args.tokenizer_name = training_args.tokenizer_name or str(Path(name) / TOKENIZER)


def load_tokenizer(training_args: PretrainingConfig, model_args: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is named, beside the shards or in the arguments; else the model's; else none."""
    from transformers import AutoTokenizer

    name = training_args.tokenizer_name or model_args.model_name_or_path
    if name is None:
        return None
    with loading_model(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(name)


def made_model(
    training_args: PretrainingConfig,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    on_meta: bool = False,
) -> PreTrainedModel:
    """The model that training begins with; on the meta device it has shapes and no weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    name = model_args.model_name_or_path
    if name is None:
        assert isinstance(training_args.architecture, dict)  # the arguments were looked at
        return hf_ext.new_model(
            training_args.architecture,
            tokenizer,
            seed=training_args.seed,
            attn_implementation=model_args.attn_implementation,
            on_meta=on_meta,
        )
    kwargs: dict[str, Any] = {"revision": model_args.model_revision}
    with loading_model(name):
        if on_meta:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, **kwargs))
        return AutoModelForCausalLM.from_pretrained(
            name, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation, **kwargs
        )


RECIPE = PretrainingRecipe(TRAINING)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
