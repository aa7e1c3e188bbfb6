# /// script
# dependencies = [
#     "hf-ext[retrieval]",
#     "torchvision",
# ]
# ///

"""
Train a classifier on noisy labels, and again on those that the first model agrees with, where it helps.

The rows hold noisy labels; `hf-ext data privatize` makes them from private ones, once, and writes what they cost
beside them. A run that was stopped, even by `kill -9`, goes on where it was when the same command is run again.

# Make the labels private, then train BERT on them
```bash
hf-ext data privatize --make-key label.key
hf-ext data privatize --dataset fancyzhx/ag_news --split train --epsilon 1 --key-file label.key --number-rows \
    --output ag_news-private
hf-ext train consensus --config consensus/bert_agnews.yaml --dataset_name ag_news-private
```

# Pictures; the retraining is fixed, without the comparison on noisy labels
```bash
hf-ext train consensus --config consensus/resnet18_cifar10.yaml --dataset_name cifar10-private \
    --select_on_noisy_eval false --mode consensus --budget steps
```

# On several GPUs
```bash
hf-ext train consensus --num_processes 8 --config consensus/vit_cifar100.yaml --dataset_name cifar100-private
accelerate launch --num_processes 8 -m hf_ext.recipes.consensus.train --config consensus/vit_cifar100.yaml
```
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.guards.world import check_world_size
from hf_ext.recipes.consensus.inputs import KINDS, Inputs
from hf_ext.recipes.launch import Recipe, RecipeArguments, is_sharded, load_train_and_eval
from hf_ext.trainers.consensus import METHOD

if TYPE_CHECKING:
    from hf_ext.trainers.consensus.config import ConsensusConfig


@dataclass
class ConsensusArguments(RecipeArguments):
    """
    [`RecipeArguments`] and what a row is made of.

    Parameters:
        kind (`str`, *optional*, defaults to `"text"`):
            `"text"`, `"sentence"` (a sentence-transformers encoder with a linear head), `"tokens"` or `"image"`.
        input_column (`str`, *optional*):
            Column of the text, of the list of words, or of the picture: `text`, `tokens`, `image` by default.
        max_length (`int`, *optional*, defaults to `128`):
            Longest text in tokens.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            For `"sentence"`: train the head alone.
    """

    kind: str = field(
        default="text",
        metadata={
            "help": "What is classified: 'text', 'sentence' (a sentence-transformers encoder with a linear head), "
            "'tokens' or 'image'.",
            "choices": list(KINDS),
        },
    )
    input_column: str | None = field(
        default=None,
        metadata={"help": "Column of the text, the words or the picture. Default: text, tokens or image."},
    )
    max_length: int = field(default=128, metadata={"help": "Longest text in tokens."})
    freeze_encoder: bool = field(default=False, metadata={"help": "kind 'sentence': train the head alone."})

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
        if self.freeze_encoder and self.kind != "sentence":
            raise ValueError("freeze_encoder is read for kind 'sentence' alone")


@dataclass(frozen=True)
class ConsensusLaunch(Recipe[ConsensusArguments]):
    """Rounds of a classifier, each in its own folder of `output_dir`."""

    arguments: type[ConsensusArguments] = ConsensusArguments

    def check(
        self,
        script_args: ConsensusArguments,
        training_args: ConsensusConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        script_args.check()
        refused = {
            "a 'datasets' mixture": bool(dataset_args.datasets),
            "dataset_streaming (rows are chosen by number)": script_args.dataset_streaming,
            "prompt_column and prompt_template": script_args.prompt_column or script_args.prompt_template,
            "resume_from_checkpoint (the same command goes on by itself)": training_args.resume_from_checkpoint,
            "quantization": model_args.load_in_4bit or model_args.load_in_8bit,
            "use_peft (a round's model is saved whole)": model_args.use_peft,
            "FSDP or DeepSpeed (each process predicts with the whole model)": is_sharded(training_args),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"consensus does not take {setting}")

    def main(
        self,
        script_args: ConsensusArguments,
        training_args: ConsensusConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Train the rounds that are not finished, and leave the chosen model in `output_dir`.

        Raises:
            ValueError: if an argument cannot be honoured, or the run was begun with other settings.
            PushError: if the Hub did not take the model; it is saved by then.
        """
        from accelerate import PartialState
        from transformers import Trainer

        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        rows, held_out = load_train_and_eval(script_args, training_args, dataset_args)
        inputs = Inputs(script_args, training_args, model_args, rows)
        recipe = getattr(hf_ext, self.method.trainer)(
            Trainer,
            inputs.model,
            training_args,
            inputs.prepare(rows),
            None if held_out is None else inputs.prepare(held_out),
            **inputs.trainer_arguments(),
        )
        result = recipe.run()
        state = PartialState()
        if state.is_main_process:
            print(result.report)
            print(f"Model saved to {training_args.output_dir}: {result.chosen}.")
        state.wait_for_everyone()
        state.destroy_process_group()


RECIPE = ConsensusLaunch(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
