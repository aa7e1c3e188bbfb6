# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Train LoRA experts by EM: each row finds its adapter, each adapter learns its rows, a gate learns the routing.

A run that was stopped, even by `kill -9`, goes on where it was when the same command is run again.

# The recipe: SmolLM2-135M-Instruct on the eight kinds of tasks in Dolly, three adapters
```bash
hf-ext train moe_lora --config moe_lora/smollm2_dolly.yaml
```

# Rows of your own, with `prompt` and `completion`, and held-out ones that are scored after each round
```bash
hf-ext train moe_lora \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_name train.jsonl \
    --eval_dataset_name held_out.jsonl \
    --num_experts 3 \
    --lora_r 8 \
    --output_dir SmolLM2-135M-experts
```

# On several GPUs
```bash
hf-ext train moe_lora --num_processes 8 --config moe_lora/smollm2_dolly.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.moe_lora.train --config moe_lora/smollm2_dolly.yaml
```
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig, get_peft_config

from hf_ext.guards.extras import require_extra
from hf_ext.guards.world import check_world_size
from hf_ext.recipes.launch import Recipe, is_sharded, load_train_and_eval, model_init_kwargs
from hf_ext.recipes.sft import SFTRecipeArguments
from hf_ext.trainers.moe_lora import METHOD

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class LoraMixtureArguments(SFTRecipeArguments):
    """[`SFTRecipeArguments`]; `eval_dataset_name` alone brings held-out rows, which are scored after each round."""

    def wants_held_out(self, training_args: TrainingArguments) -> bool:
        """Whether evaluation rows are needed."""
        return self.eval_dataset_name is not None


@dataclass(frozen=True)
class LoraMixtureRecipe(Recipe[LoraMixtureArguments]):
    """A mixture of LoRA experts; each adapter's training in a round is an ordinary run in its own folder."""

    arguments: type[LoraMixtureArguments] = LoraMixtureArguments

    def check(
        self,
        script_args: LoraMixtureArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        require_extra("peft")
        super().check(script_args, training_args, model_args, dataset_args)
        refused = {
            "dataset_streaming": script_args.dataset_streaming,
            "report (run 'hf-ext eval forgetting' on an adapter instead)": script_args.report,
            "resume_from_checkpoint (the same command goes on by itself)": training_args.resume_from_checkpoint,
            "quantization": model_args.load_in_4bit or model_args.load_in_8bit,
            "FSDP or DeepSpeed (the E-step needs the whole model in each process)": is_sharded(training_args),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"moe_lora does not take {setting}")

    def main(
        self,
        script_args: LoraMixtureArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Run what is not finished of the rounds, and leave adapters and gate in `output_dir`.

        Raises:
            ValueError: if an argument cannot be honoured, or the run was begun with other settings or rows.
            PushError: if the Hub did not take the mixture; it is saved by then.
        """
        from hf_ext.rounds.lora_mixture import LoraMixtureTrainer

        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
        model_args.use_peft = True  # adapters are the method
        rows, held_out = load_train_and_eval(script_args, training_args, dataset_args)
        trainer = LoraMixtureTrainer(
            model_args.model_name_or_path, training_args, rows, held_out, peft_config=get_peft_config(model_args)
        )
        trainer.train()
        state = trainer.state
        if state.is_main_process:
            print(trainer.table())
            print(f"Adapters and gate saved to {training_args.output_dir}.")
            if training_args.push_to_hub:
                print(f"Mixture pushed to the Hub: {trainer.push_to_hub().repo_url.repo_id}.")
        state.wait_for_everyone()
        state.destroy_process_group()


RECIPE = LoraMixtureRecipe(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
