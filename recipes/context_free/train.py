# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Fine-tune beside rows sampled from the original model, which anchor it to what it knows.

# The recipe: SmolLM2-135M on GSM8K; it samples the context-free rows first
```bash
hf-ext train context_free --config context_free/gsm8k.yaml
```

# The two steps apart: one store serves many runs of one model
```bash
hf-ext data context-free --model HuggingFaceTB/SmolLM2-135M --num-tokens 1000000 --autocast bf16 --output store
hf-ext train context_free \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --dataset_name train.jsonl \
    --context_free_path store \
    --kl_weight 0.25 \
    --output_dir SmolLM2-135M-ContextFree
```

# The KL itself in place of sampled tokens, and a budget of nats per token in place of a weight
```bash
hf-ext train context_free \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --dataset_name train.jsonl \
    --context_free_path store \
    --kl exact \
    --kl_budget 0.05 \
    --output_dir SmolLM2-135M-ContextFree
```

# On several GPUs
```bash
hf-ext train context_free --num_processes 8 --config context_free/gsm8k.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.context_free.train --config context_free/gsm8k.yaml
```
"""

from __future__ import annotations

import sys

from hf_ext.recipes.sft import ContextFreeRecipeArguments, SFTRecipe
from hf_ext.trainers.context_free import METHOD

RECIPE = SFTRecipe(METHOD, ContextFreeRecipeArguments)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
