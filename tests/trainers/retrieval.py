"""Tiny encoders and pairs of query and document, built in code: what the tests of retrievers share."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from transformers import BertConfig, BertForMaskedLM, BertModel

from hf_ext.trainers.rare import RareConfig, RareSparseConfig, RareTrainer
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

NOUNS = ("kite", "lamp", "moss", "nail", "opal", "pear", "quay", "reed", "salt", "tent", "urn", "vine")
ADJECTIVES = ("amber", "brisk", "calm", "dull", "eager", "faint", "grim", "hollow")


@cache
def _folder(kind: str, seed: int, chat: bool, dropout: float = 0.0) -> Path:
    """A tiny BERT and its tokenizer on disk, once a process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-encoder-"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.model_max_length = 256
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=256, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config) if kind == "sparse" else BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder_folder(seed: int = 0, chat: bool = False) -> str:
    """The folder of [`encoder`]'s transformer."""
    return str(_folder("dense", seed, chat))


def encoder(seed: int = 0, chat: bool = False, dropout: float = 0.0) -> SentenceTransformer:
    """A random BERT of 2 layers with mean pooling and 256 tokens; with a chat template or dropout if wanted."""
    transformer = Transformer(str(_folder("dense", seed, chat, dropout)))
    modules = [transformer, Pooling(32, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


def sparse_encoder(seed: int = 0) -> SparseEncoder:
    """A random SPLADE of the same size."""
    return SparseEncoder(modules=[MLMTransformer(str(_folder("sparse", seed, False))), SpladePooling()], device="cpu")


def pairs(n: int = 24, seed: int = 0, ids: bool = True, mark: str = "") -> Dataset:
    """`n` queries with a document each; neighbours share words, no text occurs twice. `mark` stands in every text."""
    rng = random.Random(seed)
    things = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    rng.shuffle(things)
    rows = []
    for i in range(n):
        thing, colour = things[i % len(things)], rng.choice(ADJECTIVES)
        row = {
            "query": f"where is the {mark}{thing} number {i}",
            "positive": f"the {mark}{thing} {i} lies {colour} at {i}",
        }
        rows.append({"id": f"q{i}", **row} if ids else row)
    return Dataset.from_list(rows)


def config(folder: Path, cls: Any = RareConfig, **changes: Any) -> Any:
    """A short run in float32 on the CPU: 4 rows a step, SGD, exemplars of few tokens."""
    fields: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 4, "optim": "sgd",
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "dataloader_pin_memory": False, "seed": 7, "n_examples": 2, "max_example_query_tokens": 12,
        "max_example_document_tokens": 12,
    }  # fmt: skip
    return cls(**(fields | changes))


def trainer(folder: Path, rows: Any = 24, *, model: Any = None, kwargs: Any = None, **changes: Any) -> Any:
    """A `RareTrainer` of the tiny encoder on `rows`, or that many of its own; `changes` are to the config."""
    dataset = pairs(rows) if isinstance(rows, int) else rows
    model = encoder() if model is None else model
    return RareTrainer(model, config(folder, **changes), train_dataset=dataset, **(kwargs or {}))


def sparse_config(folder: Path, **changes: Any) -> RareSparseConfig:
    """The same for a sparse encoder."""
    return config(folder, RareSparseConfig, **changes)


def texts_of(batch: dict[str, Any], column: str, model: Any) -> list[str]:
    """The texts of one column of a collated batch, padding left out."""
    ids, mask = batch[f"{column}_input_ids"], batch[f"{column}_attention_mask"]
    rows = zip(ids, mask, strict=True)
    return [model.tokenizer.decode(row[keep.bool()], skip_special_tokens=False) for row, keep in rows]


def pooled_by_hand(model: SentenceTransformer, prompt: str, exemplars: str, query: str) -> np.ndarray:
    """The vector of a query that has read exemplars which are not pooled: mean of the other tokens, to length one."""
    tokens = model.tokenizer(prompt + exemplars + query, return_offsets_mapping=True, return_tensors="pt")
    ends = tokens["offset_mapping"][0, :, 1].tolist()
    keep = [not len(prompt) < end <= len(prompt + exemplars) for end in ends]
    with torch.no_grad():
        states = model[0].model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    mean = states.last_hidden_state[0, torch.tensor(keep)].mean(dim=0)
    return (mean / mean.norm()).numpy()
