# /// script
# dependencies = [
#     "hf-ext",
#     "torchvision",
# ]
# ///

"""
Train a classifier of pictures or texts on rows with a weight; with `--flow median`, on weights that FLOW fills.

FLOW on pictures goes as its paper does: first a head on frozen features (`--probe_epochs`), then a weight for each row
from its loss under that model, then everything, starting from it.

# ResNet-18 on CIFAR-10 by FLOW
```bash
hf-ext train weighted_classification --config weighted_classification/resnet18_cifar10.yaml
```

# Rows that carry a column 'weight' already
```bash
hf-ext train weighted_classification \
    --model_name_or_path microsoft/resnet-18 \
    --dataset_name rows.parquet \
    --output_dir resnet-18-weighted
```

# On several GPUs
```bash
accelerate launch --num_processes 8 -m hf_ext.recipes.weighted_classification.train \
    --config weighted_classification/resnet18_cifar10.yaml
```
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.guards.numbers import POSITIVE
from hf_ext.guards.world import check_world_size
from hf_ext.recipes.consensus.inputs import Inputs
from hf_ext.recipes.launch import Recipe, RecipeArguments, is_sharded, load_train_and_eval, resume_from
from hf_ext.trainers.weighted_classification import METHOD

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_ext.trainers.weighted_classification.config import WeightedConfig

KINDS = ("image", "text")


@dataclass
class WeightedClassificationArguments(RecipeArguments):
    """
    [`RecipeArguments`], what a row is made of, and FLOW.

    Parameters:
        kind (`str`, *optional*, defaults to `"image"`):
            `"image"` or `"text"`.
        input_column (`str`, *optional*):
            Column of the picture or the text: `image` or `text` by default.
        max_length (`int`, *optional*, defaults to `128`):
            Longest text in tokens.
        flow (`str`, *optional*):
            Fill `weight` by FLOW first: `"median"`, `"ess:SHARE"` or a number of nats.
        probe_epochs (`float`, *optional*, defaults to `3.0`):
            Passes in which the head alone is trained before the rows are scored.
    """

    kind: str = field(
        default="image", metadata={"help": "What is classified: 'image' or 'text'.", "choices": list(KINDS)}
    )
    input_column: str | None = field(
        default=None, metadata={"help": "Column of the picture or the text. Default: image or text."}
    )
    max_length: int = field(default=128, metadata={"help": "Longest text in tokens."})
    flow: str | None = field(
        default=None,
        metadata={
            "help": "Fill 'weight' by FLOW before training: 'median' (the paper's temperature), 'ess:SHARE' or a "
            "number of nats. Default: the rows' own column, or 1."
        },
    )
    probe_epochs: float = field(
        default=3.0,
        metadata={"help": "With flow: passes in which the head alone is trained before the rows are scored."},
    )

    def check(self) -> None:
        """
        Refuse settings that cannot be used.

        Raises:
            ValueError: if a setting cannot be used; the message names it.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        problem = POSITIVE.problem_of(self.probe_epochs)
        if problem is not None:
            raise ValueError(f"probe_epochs {problem}")


@dataclass(frozen=True)
class WeightedClassificationRecipe(Recipe[WeightedClassificationArguments]):
    """A probe and weights where FLOW is asked for, then the training."""

    arguments: type[WeightedClassificationArguments] = WeightedClassificationArguments

    def check(
        self,
        script_args: WeightedClassificationArguments,
        training_args: WeightedConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        script_args.check()
        refused = {
            "a 'datasets' mixture": bool(dataset_args.datasets),
            "dataset_streaming": script_args.dataset_streaming,
            "prompt_column and prompt_template": script_args.prompt_column or script_args.prompt_template,
            "quantization": model_args.load_in_4bit or model_args.load_in_8bit,
            "use_peft": model_args.use_peft,
            "flow with FSDP or DeepSpeed (rows are scored by the whole model)": bool(script_args.flow)
            and is_sharded(training_args),
            "flow with head_only (FLOW trains the head first by itself)": bool(script_args.flow)
            and training_args.head_only,
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"weighted_classification does not take {setting}")

    def main(
        self,
        script_args: WeightedClassificationArguments,
        training_args: WeightedConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Load, weight, train, save; push if asked.

        Raises:
            ValueError: if an argument cannot be honoured.
            PushError: if the Hub did not take the model; it is saved by then.
        """
        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        loaded, held_out = load_train_and_eval(script_args, training_args, dataset_args)
        inputs = Inputs(script_args, training_args, model_args, loaded)
        rows = inputs.prepare(loaded)
        model = inputs.model()
        arguments = inputs.trainer_arguments()
        if script_args.flow:
            rows = rows_by_flow(model, rows, script_args, training_args, arguments)
        trainer = hf_ext.WeightedTrainer(
            model,
            training_args,
            train_dataset=rows,
            eval_dataset=None if held_out is None else inputs.prepare(held_out),
            **arguments,
        )
        trainer.train(resume_from_checkpoint=resume_from(training_args.resume_from_checkpoint))
        trainer.save_model(training_args.output_dir, _internal_call=True)
        trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
        try:
            if training_args.push_to_hub:
                trainer.push_to_hub(dataset_name=script_args.dataset_name)
                trainer.accelerator.print(f"Model pushed to the Hub: {trainer.hub_model_id}.")
        finally:
            trainer.end()


def rows_by_flow(
    model: Any,
    rows: Dataset,
    script_args: WeightedClassificationArguments,
    training_args: WeightedConfig,
    arguments: dict[str, Any],
) -> Dataset:
    """Rows with weights of FLOW; the head of `model` is trained on frozen features first, for it scores them."""
    probe_args = copy.copy(training_args)
    probe_args.output_dir = str(Path(training_args.output_dir) / "probe")
    probe_args.head_only = True
    probe_args.num_train_epochs = script_args.probe_epochs
    probe_args.max_steps = -1
    probe_args.save_strategy = "no"
    probe_args.eval_strategy = "no"
    probe_args.load_best_model_at_end = False
    probe_args.push_to_hub = False
    probe = hf_ext.WeightedTrainer(model, probe_args, train_dataset=rows, **arguments)
    probe.train()
    scored = hf_ext.add_original_class_losses(
        rows,
        model,
        data_collator=arguments["data_collator"],
        image_column=script_args.input_column or "image",
        label_column=training_args.label_column,
        batch_size=training_args.per_device_eval_batch_size,
        show_progress=not training_args.disable_tqdm and probe.is_world_process_zero(),
    )
    training_args.normalize = "rows"
    return hf_ext.add_flow_weights(scored, temperature(script_args.flow or "median"))


def temperature(text: str) -> str | float:
    """A rule, or a number of nats."""
    try:
        return float(text)
    except ValueError:
        return text


RECIPE = WeightedClassificationRecipe(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
