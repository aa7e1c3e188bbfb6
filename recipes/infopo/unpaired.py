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

import sys

from hf_ext.recipes.preference import PreferenceRecipe, UnpairedArguments
from hf_ext.trainers.infopo import UNPAIRED

RECIPE = PreferenceRecipe(UNPAIRED, UnpairedArguments)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
