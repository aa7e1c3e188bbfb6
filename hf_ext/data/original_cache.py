"""Losses under the original model on disk: a resumed run can no longer compute them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.inside import require_file

REVISION = "1"  # changes whenever the scores would

Scores = list[tuple[list[float], list[int]]]


def rows_hash(dataset: Dataset) -> str:
    """SHA-256 of what is scored: ids, labels (so masks, truncation, tokenizer) and document borders, in row order."""
    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "labels", "seq_lengths") if name in dataset.column_names]
    for batch in dataset.select_columns(columns).with_format("numpy").iter(batch_size=1000):
        for name in columns:
            for values in batch[name]:
                values = np.asarray(values, dtype=np.int64)
                digest.update(len(values).to_bytes(8, "little"))
                digest.update(values.tobytes())
    return digest.hexdigest()


def cache_file(folder: str | Path, parts: dict[str, Any]) -> Path:
    """The file for these facts (model hash, dtype, rows hash...): another model or other rows get another file."""
    text = json.dumps({**parts, "revision": REVISION}, sort_keys=True)
    return Path(folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def save_scores(path: Path, scores: Scores, parts: dict[str, Any]) -> None:
    """
    Write scores to a temporary name, then rename: a killed run leaves no half-written file behind.

    Raises:
        DiskFullError: if there is no room for them.
    """
    tensors = {
        "nll_sum": np.array([v for sums, _ in scores for v in sums], dtype=np.float64),
        "num_tokens": np.array([v for _, counts in scores for v in counts], dtype=np.int64),
        "documents": np.array([len(sums) for sums, _ in scores], dtype=np.int64),
    }
    advice = "Free some space, or set original_cache_dir to another disk, and run again."
    num_bytes = sum(values.nbytes for values in tensors.values())
    with (
        writing("the losses under the original model", path, num_bytes=num_bytes, advice=advice),
        replacing(path) as temporary,
    ):
        save_file(tensors, temporary, metadata={"facts": json.dumps(parts, sort_keys=True)})


def load_scores(path: Path) -> Scores:
    """
    Read scores back.

    Raises:
        ValueError: if the file is damaged; the message says to delete it, since scores can be computed again before
            training.
    """
    try:
        tensors = load_file(require_file(path))
        ends = np.cumsum(tensors["documents"])
        sums = tensors["nll_sum"]
        counts = tensors["num_tokens"]
        fits = sums.shape == counts.shape == (tensors["documents"].sum(),) and (tensors["documents"] >= 0).all()
        if not (fits and np.isfinite(sums).all()):
            raise ValueError("its parts do not go together")
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"The losses under the original model in {path} are damaged ({error}). Delete the file and start from the "
            "original model; the scores are then computed again."
        ) from error
    return [
        (sums[end - n : end].tolist(), counts[end - n : end].tolist())
        for n, end in zip(tensors["documents"], ends, strict=True)
    ]
