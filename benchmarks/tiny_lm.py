"""A language model small enough to train from nothing in a minute, to see what a training set is worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 2048
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
BATCH, LENGTH = 4, 128  # rows, tokens a row: with 16 as many tokens make fewer steps, and the model learns less
END = "<|end|>"


def tokenizer_of(texts: Sequence[str]) -> Any:
    """Byte-level BPE of 2,048 tokens made of these texts."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return tokenizer


def token_rows(tokenizer: Any, texts: Sequence[str], seed: int | None = None) -> torch.Tensor:
    """
    The documents one after another with an end token: `(rows, LENGTH)`, in an order drawn by the seed if there is one.

    Rows are drawn, not only documents: a batch of neighbours would be one long document, and its gradient that one's.
    """
    end = tokenizer.token_to_id(END)
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.encode(text).ids, end]
    count = len(ids) // LENGTH
    rows = torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)
    return rows if seed is None else rows[torch.from_numpy(np.random.default_rng(seed).permutation(count))]


def trained(rows: torch.Tensor, steps: int, seed: int) -> LlamaForCausalLM:
    """A model trained on the first `steps * BATCH` rows, begun again where there are fewer."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20, 1.1 - step / steps))
    model.train()
    for step in range(steps):
        batch = rows[torch.arange(step * BATCH, (step + 1) * BATCH) % len(rows)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def nats_a_token(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Mean negative log-likelihood of rows that it has not seen."""
    model.eval()
    sums = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in rows.split(16)]
    return sum(sums) / len(rows)
