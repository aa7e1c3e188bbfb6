"""Tiny pictures, and classifiers of them, built in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_ext.trainers.weighted_classification import WeightedConfig

SIZE, CLASSES = 12, 3
NAMES = ["rows", "columns", "both"]


def tiny_resnet(
    seed: int = 0, classes: int = CLASSES, channels: int = 1, **config: Any
) -> ResNetForImageClassification:
    """A random ResNet of two small stages in float32; the same `seed` gives the same weights."""
    fields: dict[str, Any] = {
        "num_channels": channels, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
        "layer_type": "basic", "num_labels": classes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetForImageClassification(ResNetConfig(**(fields | config)))


def tiny_vit(seed: int = 0) -> ViTForImageClassification:
    """A random vision transformer of one layer, whose rows do not see each other."""
    config = ViTConfig(
        image_size=SIZE, patch_size=4, num_channels=1, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=CLASSES,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def tiny_processor() -> ViTImageProcessorPil:
    """Pictures scaled to -1 to 1."""
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.5], image_std=[0.5])


def picture_rows(n: int, seed: int = 0) -> Dataset:
    """Rows `image`, `label`: stripes along rows, along columns, or both, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    stripes = np.where(np.arange(SIZE) % 4 < 2, 60, 0)
    pictures = []
    for label in labels:
        pixels = rng.integers(0, 120, (SIZE, SIZE))
        pixels = pixels + (stripes[:, None] if label != 1 else 0) + (stripes[None] if label != 0 else 0)
        pictures.append(Picture.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES), "id": Value("int64")})
    return Dataset.from_dict({"image": pictures, "label": labels, "id": np.arange(n)}, features=features)


def pixel_rows(n: int, seed: int = 0) -> Dataset:
    """The same as `pixel_values`, `label`."""
    rows = picture_rows(n, seed)
    pixels = tiny_processor()(rows["image"][:], return_tensors="np")["pixel_values"]
    return Dataset.from_dict({"pixel_values": pixels, "label": rows["label"][:]}).with_format(
        "torch", columns=["pixel_values", "label"]
    )


def weighted_config(folder: Path, **changes: Any) -> WeightedConfig:
    """A config for short runs in float32 on the CPU: 4 rows a step, SGD."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 16, "max_steps": 4, "learning_rate": 0.1,
        "optim": "sgd", "logging_steps": 1, "save_strategy": "no", "dataloader_pin_memory": False, "seed": 7,
    }  # fmt: skip
    return WeightedConfig(**(fields | changes))
