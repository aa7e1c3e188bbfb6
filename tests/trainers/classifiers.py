"""Tiny classifiers and rows they can learn, built in code: what the tests of noisy labels share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from hf_ext.data.relabeling import RRChannel
from hf_ext.trainers.consensus import ConsensusConfig

CLASSES, WORDS, LENGTH = 3, 24, 12
CHANNEL = RRChannel(1.5, CLASSES)
NAMES = ["billing", "weather", "music"]


def tiny_bert(tokens: bool = False, seed: int = 0, classes: int = CLASSES, **config: Any) -> Any:
    """A random BERT of one layer in float32; the same `seed` gives the same weights."""
    fields: dict[str, Any] = {
        "vocab_size": WORDS + 1, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": LENGTH + 4, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "num_labels": classes, "initializer_range": 0.2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = BertForTokenClassification if tokens else BertForSequenceClassification
        return kind(BertConfig(**(fields | config)))


def labelled_rows(n: int, noise: float = 0.0, seed: int = 0, classes: int = CLASSES) -> Dataset:
    """
    Rows `input_ids`, `attention_mask`, `label` (noisy), `clean` and `id`: two in three words tell the class.

    A share `noise` of the labels is replaced by another class.
    """
    rng = random.Random(seed)
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "label": [], "clean": [], "id": []}
    for i in range(n):
        clean = rng.randrange(classes)
        own = [1 + clean + classes * j for j in range(WORDS // classes)]
        words = [rng.choice(own) if rng.random() < 0.66 else rng.randint(1, WORDS) for _ in range(LENGTH)]
        other = (clean + rng.randint(1, classes - 1)) % classes
        rows["input_ids"].append(words)
        rows["attention_mask"].append([1] * LENGTH)
        rows["label"].append(other if rng.random() < noise else clean)
        rows["clean"].append(clean)
        rows["id"].append(f"row-{i}")
    names = NAMES[:classes] if classes <= len(NAMES) else [f"class {i}" for i in range(classes)]
    features = Features(
        {
            "input_ids": List(Value("int64")), "attention_mask": List(Value("int64")),
            "label": ClassLabel(names=names), "clean": Value("int64"), "id": Value("string"),
        }
    )  # fmt: skip
    return Dataset.from_dict(rows, features=features)


def token_rows(n: int, noise: float = 0.0, seed: int = 0) -> Dataset:
    """Rows whose every word is labelled by its number modulo the classes; the first has no label."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, WORDS + 1, (n, LENGTH))
    clean = words % CLASSES
    wrong = rng.random(clean.shape) < noise
    labels = np.where(wrong, (clean + rng.integers(1, CLASSES, clean.shape)) % CLASSES, clean)
    labels[:, 0] = -100
    ones = np.ones_like(words)
    return Dataset.from_dict(
        {"input_ids": words.tolist(), "attention_mask": ones.tolist(), "labels": labels.tolist(),
         "clean": clean.tolist()}
    )  # fmt: skip


def consensus_config(folder: Path, **changes: Any) -> ConsensusConfig:
    """A config for short rounds in float32 on the CPU: 8 rows a step."""
    return classifier_config(ConsensusConfig, folder, **changes)


def classifier_config(kind: Any, folder: Path, **changes: Any) -> Any:
    """The same of another trainer's class."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 32, "num_train_epochs": 3,
        "learning_rate": 5e-3, "logging_steps": 5, "save_strategy": "no", "dataloader_pin_memory": False, "seed": 7,
    }  # fmt: skip
    return kind(**(fields | changes))


def accuracy_of(model: Any, rows: Dataset) -> float:
    """Share of clean labels that a model predicts, by a plain forward."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(rows["input_ids"][:])).logits
    return float((logits.argmax(-1) == torch.tensor(rows["clean"][:])).float().mean())
