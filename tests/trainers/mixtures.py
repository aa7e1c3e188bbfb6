"""Rows with features that a mixture of experts can learn, and texts for a tiny encoder: what the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from hf_ext.trainers.moe_em import MoEEMConfig, MoEEMTrainer
from tests.moe.problems import SHAPES, rows_of
from tests.tiny import tiny_sentences

NAMES = ["bank", "card", "loan", "cash"]
FIRST_THINGS = ("apples", "boats", "clocks", "drums")


def feature_rows(n: int, kind: str = "softmax", *, weighted: bool = True, seed: int = 0) -> Dataset:
    """Rows `embeddings`, `label` and `weight`, drawn from a mixture of `tests.moe.problems.SHAPES`."""
    X, y = rows_of(SHAPES[kind], n=n, seed=seed)
    columns: dict[str, Any] = {"embeddings": X.float().tolist(), "label": y.tolist()}
    if weighted:
        columns["weight"] = [0.5 + (i * 7 % 13) / 4 for i in range(n)]
    return Dataset.from_dict(columns)


def text_rows(n: int, seed: int = 1) -> Dataset:
    """Rows `text` and `label`: whether the sentence is about one of the first four things."""
    texts = tiny_sentences(n, seed, max_sentences=1)
    labels = [int(any(thing in text for thing in FIRST_THINGS)) for text in texts]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["late", "early"])})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def mixture_config(folder: Path, **changes: Any) -> MoEEMConfig:
    """A config for a short fit of three experts on the CPU, every iteration logged."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "num_experts": 3,
        "ridge": 1e-3, "restarts": 2, "finalists": 1, "em_iterations": 3, "max_steps": 8, "logging_steps": 1,
        "save_strategy": "no", "per_device_train_batch_size": 4, "dataloader_pin_memory": False, "seed": 7,
    }  # fmt: skip
    return MoEEMConfig(**(fields | changes))


def mixture_trainer(folder: Path, rows: Dataset, encoder: Any = None, *, kwargs: Any = None, **changes: Any) -> Any:
    """A trainer on `rows`; `changes` are to the config."""
    return MoEEMTrainer(encoder, mixture_config(folder, **changes), train_dataset=rows, **(kwargs or {}))
