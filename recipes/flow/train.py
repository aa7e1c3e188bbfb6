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

import sys

from hf_ext.recipes.sft import SFTRecipe, SFTRecipeArguments
from hf_ext.trainers.flow import METHOD

RECIPE = SFTRecipe(METHOD, SFTRecipeArguments)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
