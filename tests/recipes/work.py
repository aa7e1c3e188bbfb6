"""A working folder as the documentation describes it: a tiny model, training and held-out rows, general text."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset, tiny_tokenizer

# What makes a recipe small enough for a test; the CLI wins over the YAML.
SMALL = shlex.split(
    "--model_name_or_path original --per_device_train_batch_size 4 --max_steps 2 --bf16 false --use_cpu true "
    "--disable_tqdm true --save_strategy no --eval_strategy no --logging_steps 1 --learning_rate 1e-3 --warmup_steps 0"
)


def make_work_folder(folder: Path) -> Path:
    """Write `original`, `train.jsonl`, `held_out.jsonl`, `general.jsonl` and `gsm8k.jsonl` (question, answer)."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "original")
    tokenizer.save_pretrained(folder / "original")
    rows = tiny_prompt_completion_dataset(24)
    rows.to_json(folder / "train.jsonl")
    rows.rename_columns({"prompt": "question", "completion": "answer"}).to_json(folder / "gsm8k.jsonl")
    tiny_prompt_completion_dataset(12, seed=5).to_json(folder / "held_out.jsonl")
    tiny_text_dataset(12, seed=3).to_json(folder / "general.jsonl")
    return folder
