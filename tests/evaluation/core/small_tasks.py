"""Small task files of every type, written into a folder as `evaluate_core` reads them; and a plain way to score."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from hf_ext.evaluation.core.tasks import TASKS
from tests.tiny import tiny_sentences

Rows = list[dict[str, Any]]


def write_tasks(folder: Path, rows_by_label: dict[str, Rows], **changes: Any) -> Path:
    """A folder with `tasks.json` and a file for each label; `changes` are of every entry of `tasks.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {}
    for label, rows in rows_by_label.items():
        (folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        manifest[label] = {
            "file": f"{label}.jsonl",
            "type": TASKS[label].type,
            "dclm_labels": [{"label": label}],
        } | changes
    (folder / "tasks.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def small_rows(label: str, count: int, seed: int = 0) -> Rows:
    """Rows of a task's type with options of uneven length; now and then two options are one text."""
    rng = random.Random(seed)
    texts = tiny_sentences(6 * count, seed, max_sentences=2)
    words = [text.split()[1] for text in texts]
    rows: Rows = []
    for i in range(count):
        head, *options = texts[6 * i : 6 * i + 5]
        row: dict[str, Any] = {"id": f"{label}-{i:03}"}
        if TASKS[label].type == "multiple_choice":
            if label == "commonsense_qa":
                options = ["A", "B", "C", "D"]
            elif i % 5 == 4:
                options[2] = options[0]
            number = 4 if label == "commonsense_qa" else rng.randint(2, 4)
            row |= {"query": head, "choices": options[:number], "gold": rng.randrange(number)}
        elif TASKS[label].type == "schema":
            row |= {"context_options": [f"{head} {name}" for name in ("Ada", "Fatima")], "continuation": options[0]}
            row |= {"gold": rng.randrange(2)}
        elif TASKS[label].type == "language_modeling":
            row |= {"context": head, "continuation": words[i]}
        else:
            row |= {"context": head, "answer": str(i), "chain_of_thought": f"{i} + 0"}
        rows.append(row)
    return rows


@torch.no_grad()
def plain_losses(model: torch.nn.Module, sequences: list[list[int]], starts: list[int]) -> list[float]:
    """Summed cross-entropy of each option, one whole sequence at a time, every logit, no cache."""
    sums = []
    for ids, start in zip(sequences, starts, strict=True):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        sums.append(-sum(log_softmax(logits[t - 1].astype(np.float64))[ids[t]] for t in range(start, len(ids))))
    return sums


@torch.no_grad()
def plainly_greedy(model: torch.nn.Module, ids: list[int], start: int) -> bool:
    """Whether each token from `start` on is the likeliest one after those before it, asked one at a time."""
    return all(
        int(np.argmax(model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].numpy())) == ids[t]
        for t in range(start, len(ids))
    )
