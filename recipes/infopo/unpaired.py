# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Tune on single responses labelled good or bad, by mutual information: InfoPO without pairs, on TRL's KTOTrainer.

# The recipe: SmolLM2-135M-Instruct on TRL's mixture of thumbs up and down
```bash
hf-ext train infopo_unpaired --config infopo/unpaired.yaml
```

# Your own rows (prompt, completion, label)
```bash
hf-ext train infopo_unpaired \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_name feedback.jsonl \
    --learning_rate 1e-6 \
    --output_dir SmolLM2-135M-InfoPO-unpaired
```

# On several GPUs
```bash
accelerate launch --num_processes 8 -m hf_ext.recipes.infopo.unpaired --config infopo/unpaired.yaml
```
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hf_ext.recipes.parser import RecipeParser
from hf_ext.recipes.preference import PreferenceRecipe, UnpairedArguments

RECIPE = PreferenceRecipe(
    "infopo_unpaired",
    trainer="InfoPOUnpairedTrainer",
    config="InfoPOUnpairedConfig",
    arguments=UnpairedArguments,
)


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train with the arguments that `make_parser` parses."""
    RECIPE.main(script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None) -> RecipeParser:
    """The parser of this recipe, alone or as one of `subparsers`."""
    return RECIPE.make_parser(subparsers, prog)


if __name__ == "__main__":
    sys.exit(RECIPE.run())
