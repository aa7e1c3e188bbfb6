# /// script
# dependencies = [
#     "hf-ext[retrieval]",
#     "peft",
# ]
# ///

"""
Train a retriever to use in-context examples: RARe, on sentence-transformers' trainer.

# MiniLM on a folder in BEIR's form (corpus.jsonl, queries.jsonl, qrels/train.tsv)
```bash
hf-ext train rare --config rare/minilm_beir.yaml --dataset_name scifact
```

# Your own rows: a query and its document, hard negatives after them
```bash
hf-ext train rare \
    --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
    --dataset_name pairs.jsonl \
    --text_columns query positive \
    --instruction "Given a question, retrieve the passage that answers it" \
    --n_examples 3 \
    --output_dir MiniLM-RARe
```

# The paper's retriever track, on several GPUs
```bash
hf-ext train rare --accelerate_config multi_gpu --num_processes 8 --config rare/e5_mistral.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.rare.train --config rare/e5_mistral.yaml
```
"""

from __future__ import annotations

import sys

from hf_ext.recipes.retrieval import RetrievalRecipe
from hf_ext.trainers.rare import METHOD

RECIPE = RetrievalRecipe(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
