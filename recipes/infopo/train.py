# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Tune on preference pairs by mutual information: the NWJ reading of InfoPO, on TRL's DPOTrainer.

# The recipe: SmolLM2-135M-Instruct on pairs of right and wrong GSM8K solutions, in a file of your own
```bash
hf-ext train infopo --config infopo/gsm8k_pairs.yaml --dataset_name pairs.jsonl
```

# Your own pairs (prompt, chosen, rejected), LoRA, references computed once
```bash
hf-ext train infopo \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_name pairs.jsonl \
    --use_peft \
    --learning_rate 5e-6 \
    --precompute_ref_log_probs \
    --output_dir SmolLM2-135M-InfoPO
```

# On several GPUs
```bash
hf-ext train infopo --accelerate_config fsdp2 --num_processes 8 --config infopo/ultrafeedback_llama3_8b.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.infopo.train --config infopo/hh_harmless.yaml
```
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hf_ext.recipes.parser import RecipeParser
from hf_ext.recipes.preference import PreferenceRecipe

RECIPE = PreferenceRecipe("infopo", trainer="InfoPOTrainer", config="InfoPOConfig")


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train with the arguments that `make_parser` parses."""
    RECIPE.main(script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None) -> RecipeParser:
    """The parser of this recipe, alone or as one of `subparsers`."""
    return RECIPE.make_parser(subparsers, prog)


if __name__ == "__main__":
    sys.exit(RECIPE.run())
