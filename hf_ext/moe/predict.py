"""Predictions of a mixture of experts as columns of a dataset, with the expert that stands behind each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_ext.data.vectors.columns import batch_vectors, refuse_row
from hf_ext.data.vectors.embedding import encoder_input
from hf_ext.guards.models import loading_model
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from hf_ext.moe.parameters import MixtureParameters
from hf_ext.moe.partition import PartitionReport, partition_report

if TYPE_CHECKING:
    from datasets import Dataset

_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json")


@dataclass(frozen=True)
class MoEPredict:
    r"""
    Add a mixture's prediction and who made it, for `Dataset.map` and `IterableDataset.map` with `batched=True`.

    | column in | type | column out | type |
    |---|---|---|---|
    | `input_column` | str, or `d` numbers | `prediction` | int64 class; of linear experts float32, or several |
    | `label_column` | int, name, float(s) | `expert` | int64, that of the largest responsibility |
    | | | `responsibility` | `k` float32 that sum to 1 |

    Args:
        model (`str` or `Path`):
            Folder or Hub name of a saved [`~hf_ext.moe.modeling_moe.MoEForSequenceClassification`]; each process loads
            it once, on the CPU.
        input_column (`str`, *optional*, defaults to `"embeddings"`):
            Features, or the texts that the model's encoder reads.
        label_column (`str`, *optional*):
            With it `responsibility` is $r_i = p(i \mid x, y)$; without it the gate's $g_i = p(i \mid x)$.

    Raises:
        ModelFilesError: if the model cannot be loaded.
        RowError: if a row has no text, no finite vector of the model's width, or no label; its index counts from the
            start of the batch.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3, E-step.
    """

    model: str | Path
    input_column: str = "embeddings"
    label_column: str | None = None
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it
    weights_hash: str = field(init=False, repr=False)  # so that a folder that was trained again is read again

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "weights_hash", _hash_of_folder(Path(self.model)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Predict a batch."""
        features, labels = self.read(batch)
        mixture = _loaded(str(self.model), self.weights_hash)[2]
        # in float64: the order in which a matrix product adds up depends on the batch
        outputs = mixture.predict(features)
        if labels is None:
            responsibility = mixture.outputs(features)[0].softmax(-1)
        else:
            responsibility = mixture.posterior(features, labels)[0]
        linear = mixture.expert_type == "linear"
        prediction = outputs.float() if linear else outputs.argmax(-1)
        return {
            "prediction": (prediction[:, 0] if linear and prediction.shape[1] == 1 else prediction).numpy(),
            "expert": responsibility.argmax(-1).numpy(),
            "responsibility": responsibility.float().numpy(),
        }

    def read(self, batch: dict[str, Any], first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Features `(batch, d)` of rows, and with `label_column` their labels; `first` is the number of the first."""
        model, tokenizer, _ = _loaded(str(self.model), self.weights_hash)
        features = self._features(model, tokenizer, batch, first)
        return features, None if self.label_column is None else self._labels(model, batch, first)

    def partition(self, rows: Dataset, *, batch_size: int = 64, typical_rows: int = 3) -> PartitionReport:
        """
        How the mixture divides the rows of a dataset among its experts.

        Args:
            rows (`Dataset`):
                With `input_column`, and `label_column` where that is set.
            batch_size (`int`, *optional*, defaults to 64):
                Rows that are read at a time.
            typical_rows (`int`, *optional*, defaults to 3):
                Rows to name of each expert.

        Returns:
            [`~hf_ext.moe.partition.PartitionReport`]

        Raises:
            ValueError: if there is no row or a column is missing.
            RowError: as the class says; its index counts from the start of the dataset.
        """
        columns = [self.input_column, *([] if self.label_column is None else [self.label_column])]
        missing = [name for name in columns if name not in rows.column_names]
        if missing:
            raise ValueError(f"the dataset has no column {missing[0]!r}; it has {rows.column_names}.")
        plain_rows = rows.with_format(None)
        model = _loaded(str(self.model), self.weights_hash)[0]
        kind = rows.features[self.label_column] if self.label_column is not None else None
        # Another dataset may number the same classes in another order.
        names = list(getattr(kind, "names", []))
        names = names if set(names) <= set(model.config.id2label.values()) else []
        features: list[Tensor] = []
        labels: list[Tensor] = []
        for start in range(0, len(rows), batch_size):
            batch = plain_rows[start : start + batch_size]
            if names:
                numbers = batch[self.label_column]
                batch[self.label_column] = [names[n] if n in range(len(names)) else n for n in numbers]
            some_features, some_labels = self.read(batch, start)
            features.append(some_features)
            if some_labels is not None:
                labels.append(some_labels)
        if not features:
            raise ValueError("there is no row to divide among the experts.")
        is_text = isinstance(plain_rows[0][self.input_column], str)
        return partition_report(
            _loaded(str(self.model), self.weights_hash)[2],
            torch.cat(features),
            torch.cat(labels) if labels else None,
            text_of=(lambda index: plain_rows[index][self.input_column]) if is_text else None,
            typical_rows=typical_rows,
        )

    def _features(
        self, model: MoEForSequenceClassification, tokenizer: Any, batch: dict[str, Any], first: int
    ) -> Tensor:
        values = list(batch[self.input_column])
        if not values:
            return torch.zeros(0, model.config.input_dim)
        if model.encoder is not None and tokenizer is not None and not _are_vectors(values):
            texts = encoder_input(batch, "text", self.input_column, first)
            limit = min(tokenizer.model_max_length, getattr(model.encoder.config, "max_position_embeddings", 512))
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            names = {*tokenizer.model_input_names, "attention_mask"}
            with torch.no_grad():
                return model.features(**{name: value for name, value in inputs.items() if name in names})

        def row_at(number: int) -> dict[str, Any]:
            return {name: column[number - first] for name, column in batch.items()}

        vectors = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        features = batch_vectors(vectors, self.input_column, first, model.config.input_dim, row_at)
        places = np.flatnonzero(~np.isfinite(features).all(1))
        if len(places):
            column = int(np.flatnonzero(~np.isfinite(features[places[0]]))[0])
            value = features[places[0], column]
            number = first + int(places[0])
            refuse_row(row_at(number), number, self.input_column, f"dimension {column} is {value}")
        return torch.from_numpy(np.array(features))

    def _labels(self, model: MoEForSequenceClassification, batch: dict[str, Any], first: int) -> Tensor:
        column = str(self.label_column)
        linear = model.config.expert_type == "linear"
        labels = [value.tolist() if hasattr(value, "tolist") else value for value in batch[column]]
        if not linear:
            numbers_of = {name: number for number, name in model.config.id2label.items()}
            labels = [numbers_of.get(label, label) if isinstance(label, str) else label for label in labels]
        for position, label in enumerate(labels):
            numbers = label if isinstance(label, list) else [label]
            problem = None
            if isinstance(label, str):
                problem = f"the label is {label!r}, none of the model's classes"
            elif any(number is None or not np.isfinite(number) for number in numbers):
                problem = f"there is no label ({label!r})"
            elif not linear and label not in range(model.config.num_labels):
                problem = f"the label is {label!r}, not a class from 0 to {model.config.num_labels - 1}"
            elif linear and len(numbers) != model.config.num_labels:
                problem = f"the label has {len(numbers)} numbers, the model {model.config.num_labels}"
            if problem is not None:
                row = {name: values[position] for name, values in batch.items()}
                refuse_row(row, first + position, column, problem)
        return torch.tensor(labels, dtype=torch.float64 if linear else torch.int64)


def _are_vectors(values: list[Any]) -> bool:
    return bool(values) and not isinstance(values[0], str) and hasattr(values[0], "__len__")


def _hash_of_folder(folder: Path) -> str:
    """Of the files that decide; empty for a name on the Hub."""
    digest = hashlib.sha256()
    files = [path for path in (*(folder / name for name in _FILES), *sorted(folder.glob("model-*.safetensors")))
             if path.is_file()]  # fmt: skip
    for path in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else ""


@lru_cache(maxsize=1)
def _loaded(name: str, weights_hash: str) -> tuple[MoEForSequenceClassification, Any, MixtureParameters]:
    """The model, the tokenizer of one with an encoder, and the mixture: once a process, not once a batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with loading_model(name):
        # A mixture is saved as safetensors alone: a pickle beside its configuration is none of ours.
        model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        if not isinstance(model, MoEForSequenceClassification):
            raise ValueError(f"it is a {type(model).__name__}, not a mixture of experts")
        tokenizer = None if model.encoder is None else AutoTokenizer.from_pretrained(name)
    return model.eval(), tokenizer, model.mixture_parameters()
