"""
Does the chosen response sink: a tiny language model, preference pairs, DPO against InfoPO with the same everything.

Real pairs (slow): GSM8K solutions, right against wrong, one pair a question; a byte-level BPE of 3,120 tokens, and a
Llama of about half a million parameters that has read solutions to other questions; prompts cut to 24 tokens, answers
to 48 and an end token; 48 pairs, 60 steps of 8 with AdamW, ten epochs. *near*: the pairs whose two answers share most
tokens; *far*: fewest. Invented pairs (default suite): sentences of `tests.tiny` whose wrong answer has other numbers.
"""

from __future__ import annotations

import difflib
import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer
from tests.tiny import tiny_model, tiny_sentences
from tests.trainers.preference import sum_logp, tokens_of
from tests.trainers.runs import TOKENIZER, config_of

PAIRS, STEPS, BATCH = 48, 60, 8


class Task(NamedTuple):
    """A tokenizer, a model that has read similar text, and the pairs."""

    tokenizer: Any
    start: Callable[[], LlamaForCausalLM]
    rows: Dataset


class Outcome(NamedTuple):
    """Mean change of chosen and rejected answers (nats), share of chosen ones that fell, share of pairs in order."""

    chosen: float
    rejected: float
    dropped: float
    accuracy: float


def pretrain(model: LlamaForCausalLM, ids: list[list[int]], steps: int, seed: int) -> LlamaForCausalLM:
    """Plain language modelling, 12 rows a step, AdamW at 3e-3."""
    rng, optimiser = random.Random(seed), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = [torch.tensor(row) for row in rng.sample(ids, 12)]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = model(input_ids=batch.clamp(min=0), attention_mask=(batch >= 0).long(), labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model


def copies_of(model: LlamaForCausalLM, new: Callable[[], LlamaForCausalLM]) -> Callable[[], LlamaForCausalLM]:
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def copy() -> LlamaForCausalLM:
        fresh = new()
        fresh.load_state_dict(weights)
        return fresh

    return copy


def outcome(task: Task, trainer_class: Any, config_class: Any, folder: Path, seed: int, **changes: Any) -> Outcome:
    """Train, and score every pair with the stock model before and after."""
    settings: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": BATCH, "optim": "adamw_torch", "learning_rate": 1e-3,
        "max_grad_norm": 1.0, "beta": 0.1, "seed": seed, "precompute_ref_log_probs": True, "max_length": None,
        "logging_steps": STEPS,
    }  # fmt: skip
    args = config_of(config_class, folder, **(settings | changes))
    trainer = trainer_class(task.start(), args=args, train_dataset=task.rows, processing_class=task.tokenizer)
    trainer.train()
    after, before = task.start(), task.start()
    after.load_state_dict(trainer.model.state_dict())
    change = {
        side: np.array(
            [
                np.subtract(
                    *(
                        sum_logp(model, *tokens_of(row["prompt"], row[side], task.tokenizer))
                        for model in (after, before)
                    )
                )
                for row in task.rows
            ]
        )
        for side in ("chosen", "rejected")
    }
    return Outcome(
        change["chosen"].mean(), change["rejected"].mean(), (change["chosen"] < 0).mean(),
        (change["chosen"] > change["rejected"]).mean(),
    )  # fmt: skip


def assert_direction(infopo: Outcome, dpo: Outcome) -> None:
    said = f"InfoPO {infopo}, DPO {dpo}"
    assert infopo.chosen > 0 > dpo.chosen, said
    assert infopo.dropped <= 0.1, said
    assert dpo.dropped >= 0.5, said
    assert min(infopo.accuracy, dpo.accuracy) >= 0.9, said


# --- invented pairs --------------------------------------------------------------------------------------------------


def invented(seed: int) -> Task:
    rng = random.Random(seed)
    texts = tiny_sentences(PAIRS, seed=900 + seed, max_sentences=3)
    rows = [
        {
            "prompt": f"Row {i}: ",
            "chosen": text,
            "rejected": re.sub(r"\d+", lambda found: str((int(found[0]) + rng.randint(1, 90)) % 98 + 2), text),
        }
        for i, text in enumerate(texts)
    ]
    lines = [
        f"Row {i}: {text}<|im_end|>" for i, text in enumerate(tiny_sentences(400, seed=50 + seed, max_sentences=3))
    ]

    def new() -> LlamaForCausalLM:
        return tiny_model(TOKENIZER, seed=seed, width=64)

    model = pretrain(new(), [TOKENIZER(line)["input_ids"] for line in lines], 100, seed)
    return Task(TOKENIZER, copies_of(model, new), Dataset.from_list(rows))


def test_the_chosen_answer_rises_where_dpos_sinks(tmp_path: Path) -> None:
    task = invented(0)
    assert_direction(
        outcome(task, InfoPOTrainer, InfoPOConfig, tmp_path / "infopo", 0),
        outcome(task, DPOTrainer, DPOConfig, tmp_path / "dpo", 0),
    )


# --- real pairs ------------------------------------------------------------------------------------------------------


def gsm8k_pairs(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Question id to its pairs, as strings without calculator marks."""
    found: dict[str, list[dict[str, str]]] = {}
    with gzip.open(folder / "gsm8k_solutions" / "preference_pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts = {
                name: re.sub(r"<<[^>]*>>", "", row[name][0]["content"]) for name in ("prompt", "chosen", "rejected")
            }
            found.setdefault("-".join(row["id"].split("-")[:3]), []).append(texts)
    return found


def bpe_of(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3120, special_tokens=["<pad>", "<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<pad>")


def cut(tokenizer: Any, text: str, length: int) -> str:
    return tokenizer.decode(tokenizer(text)["input_ids"][:length])


def overlap(row: dict[str, str], tokenizer: Any) -> float:
    sides: list[Sequence[int]] = [tokenizer(row[side])["input_ids"] for side in ("chosen", "rejected")]
    return difflib.SequenceMatcher(None, *sides, autojunk=False).ratio()


def real_tasks(folder: Path, seed: int) -> dict[str, Task]:
    questions = list(gsm8k_pairs(folder).values())
    rng = random.Random(seed)
    rng.shuffle(questions)
    held, read = questions[:217], questions[217:]
    texts = [rng.choice(list(row.values())[1:]) for pairs in read for row in pairs]
    tokenizer = bpe_of([row[name] for pairs in questions for row in pairs for name in row])
    lines = [
        f"{cut(tokenizer, row['prompt'], 24)}\n{text}<end>"
        for pairs in read
        for row, text in zip(pairs, texts, strict=False)
    ]

    def new() -> LlamaForCausalLM:
        return tiny_model(tokenizer, seed=seed, width=96, intermediate_size=256, initializer_range=0.02)

    model = pretrain(new(), [tokenizer(line)["input_ids"][:97] for line in lines], 150, seed)
    rows = [
        {
            "prompt": cut(tokenizer, row["prompt"], 24) + "\n",
            **{side: cut(tokenizer, row[side], 48) for side in ("chosen", "rejected")},
        }
        for row in (rng.choice(pairs) for pairs in held)
    ]
    rows = sorted((row for row in rows if row["chosen"] != row["rejected"]), key=lambda row: overlap(row, tokenizer))
    parts = {"far": rows[:PAIRS], "near": rows[-PAIRS:]}
    return {name: Task(tokenizer, copies_of(model, new), Dataset.from_list(part)) for name, part in parts.items()}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_on_gsm8k_solutions_the_chosen_answer_rises_where_dpos_sinks(
    seed: int, real_data: Path, tmp_path: Path
) -> None:
    for name, task in real_tasks(real_data, seed).items():
        infopo = outcome(task, InfoPOTrainer, InfoPOConfig, tmp_path / f"infopo-{name}", seed)
        dpo = outcome(task, DPOTrainer, DPOConfig, tmp_path / f"dpo-{name}", seed)
        print(name, seed, infopo, dpo)
        assert_direction(infopo, dpo)
