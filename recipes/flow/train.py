# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Fine-tune with FLOW: rows weighted by how easy the original model finds them.

# The recipe: SmolLM2-135M on GSM8K
```bash
hf-ext train flow --config flow/gsm8k.yaml
```

# The same on several GPUs
```bash
hf-ext train flow --num_processes 8 --config flow/gsm8k.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.flow.train --config flow/gsm8k.yaml
```

# Your own files, LoRA, and a report of what was learned and forgotten
```bash
hf-ext train flow \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --dataset_name train.jsonl \
    --eval_dataset_name held_out.jsonl \
    --tau ess:0.8 \
    --use_peft \
    --learning_rate 2e-4 \
    --report \
    --output_dir SmolLM2-135M-FLOW
```
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hf_ext.recipes.parser import RecipeParser
from hf_ext.recipes.sft import SFTRecipe

RECIPE = SFTRecipe("flow", trainer="FlowSFTTrainer", config="FlowSFTConfig")


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train with the arguments that `make_parser` parses."""
    RECIPE.main(script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None) -> RecipeParser:
    """The parser of this recipe, alone or as one of `subparsers`."""
    return RECIPE.make_parser(subparsers, prog)


if __name__ == "__main__":
    sys.exit(RECIPE.run())
