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

import sys

from hf_ext.recipes.sft import SFTRecipe, SFTRecipeArguments
from hf_ext.trainers.weighted_sft import METHOD

RECIPE = SFTRecipe(METHOD, SFTRecipeArguments)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
