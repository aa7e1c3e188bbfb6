# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Supervised fine-tuning on rows that carry a `weight`.

# Rows of your own, with a column `weight`
```bash
hf-ext train weighted_sft --config weighted_sft/example.yaml --dataset_name weighted_rows.jsonl
```

# FLOW weights computed beforehand: the way for models too large for one device
```bash
hf-ext data flow-weights --model HuggingFaceTB/SmolLM2-135M --dataset train.jsonl --output weighted.parquet
hf-ext train weighted_sft \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --dataset_name weighted.parquet \
    --output_dir SmolLM2-135M-weighted
```

# On several GPUs, sharded
```bash
hf-ext train weighted_sft --accelerate_config fsdp2 --num_processes 8 \
    --config weighted_sft/example.yaml --dataset_name weighted_rows.jsonl
```
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hf_ext.recipes.parser import RecipeParser
from hf_ext.recipes.sft import SFTRecipe

RECIPE = SFTRecipe("weighted_sft", trainer="WeightedSFTTrainer", config="WeightedSFTConfig")


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train with the arguments that `make_parser` parses."""
    RECIPE.main(script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None) -> RecipeParser:
    """The parser of this recipe, alone or as one of `subparsers`."""
    return RECIPE.make_parser(subparsers, prog)


if __name__ == "__main__":
    sys.exit(RECIPE.run())
