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

import argparse
import sys
from typing import Any

from hf_ext.recipes.parser import RecipeParser
from hf_ext.recipes.retrieval import RetrievalRecipe

RECIPE = RetrievalRecipe("rare", trainer="RareTrainer", config="RareConfig")


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train with the arguments that `make_parser` parses."""
    RECIPE.main(script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None) -> RecipeParser:
    """The parser of this recipe, alone or as one of `subparsers`."""
    return RECIPE.make_parser(subparsers, prog)


if __name__ == "__main__":
    sys.exit(RECIPE.run())
