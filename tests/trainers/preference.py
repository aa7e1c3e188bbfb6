"""Short preference trainings on tiny models: what the InfoPO tests share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.tiny import tiny_model, tiny_sentences
from tests.trainers.runs import TOKENIZER, build, config_of

PAIR = dict[str, list[tuple[list[int], list[int]]]]


def pairs(n: int, seed: int = 0) -> Dataset:
    """`n` prompts with two different answers of uneven length."""
    return Dataset.from_dict(
        {
            "prompt": [f"Tell me about row {i}. " for i in range(n)],
            "chosen": tiny_sentences(n, seed=100 + seed, max_sentences=2),
            "rejected": tiny_sentences(n, seed=200 + seed, max_sentences=3),
        }
    )


def singles(n: int, good: float = 0.5) -> Dataset:
    """`n` prompts with one answer each, the share `good` of them labelled true, spread over the rows."""
    labels = [math.floor((i + 1) * good) > math.floor(i * good) for i in range(n)]
    return Dataset.from_dict(
        {
            "prompt": [f"Tell me about row {i}. " for i in range(n)],
            "completion": tiny_sentences(n, seed=300, max_sentences=2),
            "label": labels,
        }
    )


def conversational(rows: Dataset) -> Dataset:
    """The same rows as messages."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    speakers = {"prompt": "user", "chosen": "assistant", "rejected": "assistant", "completion": "assistant"}
    return Dataset.from_list(
        [
            {name: turn(speakers[name], value) if name in speakers else value for name, value in row.items()}
            for row in rows
        ]
    )


def start(
    trainer_class: Any, config_class: Any, folder: Path, rows: Any = 12, *, model: Any = None, **changes: Any
) -> Any:
    """
    A trainer on `rows` (or that many pairs) with a reference of its own; `changes` are to the config.

    The policy is the tiny model of seed 0 or `model`; the reference the one of seed `reference` (the policy's, unless
    given), or none where `reference=None`.
    """
    kwargs = changes.pop("kwargs", {})
    reference = changes.pop("reference", 0)
    settings = {"learning_rate": 0.02, "max_steps": 3, "max_grad_norm": 0.0} | changes
    dataset = pairs(rows) if isinstance(rows, int) else rows
    if reference is not None:
        kwargs = {"ref_model": tiny_model(TOKENIZER, seed=reference), **kwargs}
    return build(trainer_class, config_of(config_class, folder, **settings), dataset, model=model, **kwargs)


def first_batch(trainer: Any) -> dict[str, Any]:
    """The first batch of training, on the trainer's device."""
    return next(iter(trainer.get_train_dataloader()))


def sum_logp(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Log-probability of a completion, token by token, from full logits: a loop without batches or padding."""
    ids = [*prompt, *completion]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    total = 0.0
    for position in range(max(len(prompt), 1), len(ids)):
        row = logits[position - 1]
        total += float(row[ids[position]] - torch.logsumexp(row, 0))
    return total


def tokens_of(prompt: str, answer: str, tokenizer: Any = TOKENIZER) -> tuple[list[int], list[int]]:
    """Prompt and completion ids, the end token appended, as TRL splits them: where the two tokenisations part."""
    head = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"]
    cut = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), len(head))
    return ids[:cut], ids[cut:]
