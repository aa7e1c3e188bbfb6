# /// script
# dependencies = [
#     "hf-ext[retrieval,plots]",
# ]
# ///

"""
Fit a mixture of experts on the features of a frozen encoder, by EM and L-BFGS over all rows.

The encoder is `model_name_or_path`; rows that have a column `embeddings` need none. The features are computed once and
kept. A run that was stopped goes on with `--resume_from_checkpoint true`.

# Intents on MiniLM, with the ridge chosen on held-out rows
```bash
hf-ext train moe_em --config moe_em/minilm_banking77.yaml
```

# Numbers: linear experts, on several processes that share the rows
```bash
hf-ext train moe_em --num_processes 4 --config moe_em/minilm_civil_comments.yaml
accelerate launch --num_processes 4 -m hf_ext.recipes.moe_em.train --config moe_em/minilm_civil_comments.yaml
```

# Rows with features of their own
```bash
hf-ext train moe_em --dataset_name features.parquet --num_experts 4 --label_column y --output_dir mixture
```
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.recipes.launch import Recipe, RecipeArguments, check_arguments, is_sharded
from hf_ext.trainers.moe_em import METHOD

if TYPE_CHECKING:
    from hf_ext.data.loading import AnyDataset
    from hf_ext.trainers.moe_em.config import MoEEMConfig
    from hf_ext.trainers.moe_em.trainer import MoEEMTrainer


@dataclass(frozen=True)
class MixtureRecipe(Recipe[RecipeArguments]):
    """Labelled rows to a mixture, its partition and its card."""

    arguments: type[RecipeArguments] = RecipeArguments

    def check(
        self,
        script_args: RecipeArguments,
        training_args: MoEEMConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        needs_model = model_args.model_name_or_path is not None
        check_arguments(script_args, training_args, model_args, dataset_args, needs_model=needs_model)
        refused = {
            "prompt_column and prompt_template": script_args.prompt_column or script_args.prompt_template,
            "dataset_streaming (an iteration reads all rows)": script_args.dataset_streaming,
            "use_peft (the encoder stays as it is)": model_args.use_peft,
            "quantization": model_args.load_in_4bit or model_args.load_in_8bit,
            "model_revision (name a folder)": model_args.model_revision not in (None, "main"),
            "dtype (features are float32)": model_args.dtype not in (None, "auto", "float32"),
            "attn_implementation": model_args.attn_implementation is not None,
            "FSDP or DeepSpeed (each process holds the whole mixture)": is_sharded(training_args),
            "ridge 'auto' without eval_strategy (it is chosen on held-out rows)": training_args.ridge == "auto"
            and training_args.eval_strategy == "no",
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"moe_em does not take {setting}")

    def before_loading(self, training_args: MoEEMConfig, model_args: ModelConfig) -> None:
        """Nothing: the encoder is loaded by the trainer."""

    def make_trainer(
        self, model: str | None, training_args: MoEEMConfig, model_args: ModelConfig, **rows: AnyDataset | None
    ) -> MoEEMTrainer:
        """The trainer on the encoder `model`, or on the column `embeddings`."""
        return hf_ext.MoEEMTrainer(model, training_args, **rows)

    def after_training(
        self, trainer: Any, script_args: RecipeArguments, model_args: ModelConfig, held_out: AnyDataset | None
    ) -> None:
        """Write who handles what beside the model."""
        report = trainer.plot_partition(trainer.args.output_dir)
        trainer.accelerator.print(report.to_markdown())


RECIPE = MixtureRecipe(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
