"""Packed sequences and a tiny stock architecture: what the tests of pretraining share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_ext.trainers.pretraining.config import PretrainingConfig
from tests.tiny import tiny_sentences
from tests.trainers.runs import TOKENIZER

LENGTH = 32
TINY: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64,
    "initializer_range": 0.1,
}  # fmt: skip


def sequences(n: int, seed: int = 11) -> Dataset:
    """`n` sequences of 33 tokens."""
    tokens: list[int] = []
    for text in tiny_sentences(4 * n, seed):
        tokens += [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
    width = LENGTH + 1
    assert len(tokens) >= n * width
    return Dataset.from_dict({"input_ids": [tokens[i * width : (i + 1) * width] for i in range(n)]})


def config(folder: Path, **changes: Any) -> PretrainingConfig:
    """A configuration for a short run in float32 on the CPU: 4 sequences a step, SGD, a cosine down to 1e-3."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 4, "max_steps": 4, "optim": "sgd", "learning_rate": 0.1, "logging_steps": 1,
        "save_strategy": "no", "dataloader_pin_memory": False, "seed": 7, "sequence_length": LENGTH,
        "cooldown_learning_rate": min(1e-3, changes.get("learning_rate", 1.0)),
    }  # fmt: skip
    return PretrainingConfig(**(fields | changes))
