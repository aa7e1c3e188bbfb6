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

import sys

from hf_ext.recipes.preference import PairArguments, PreferenceRecipe
from hf_ext.trainers.infopo import PAIRED

RECIPE = PreferenceRecipe(PAIRED, PairArguments)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
