"""
Does lm-evaluation-harness, run on the tasks that we export, measure what `evaluate_core` measures?

SmolLM2-135M-Instruct in float32, the same rows: 60 each of copa, winogrande (schema) and lambada_openai (language
modelling), and 30 of arc_easy at 10 shots. Ours shares contexts; lm_eval reads every option whole.

Last line, one JSON object:
  benchmark, rows, options
  max_loglik_difference    largest difference of an option's log-likelihood, nats (goal <= 1e-3)
  rows_disagreeing         rows that are right for one and wrong for the other by any of its figures: acc (summed
                           loss), acc_norm (loss a character; multiple choice alone), greedy match (goal 0)

Runs in the environment of `make test-peers`; killed, it goes on at the next task:

    make test-peers PYTEST_ARGS=--collect-only
    .venv-peers/bin/python benchmarks/core_agreement.py            # about twenty minutes on two cores
    .venv-peers/bin/python benchmarks/core_agreement.py --quick    # under a minute, a tiny model
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import data_folder, finish, parser, piece

ROWS = {"copa": 60, "winogrande": 60, "lambada_openai": 60, "arc_easy": 30}
QUICK_ROWS = dict.fromkeys(ROWS, 3)
MAX_LENGTH = 8192  # tokens that SmolLM2 has positions for: lm_eval cuts no prompt before that
PEER = "lm_eval"

Rows = list[dict[str, Any]]


def our_rows(model: Any, tokenizer: Any, data: Path, label: str, max_rows: int) -> Rows:
    """Losses of each row of a task as `evaluate_core` finds them."""
    from hf_ext.evaluation.core import evaluate_core

    report = evaluate_core(model, tokenizer, data, tasks=[label], max_rows=max_rows, max_length=MAX_LENGTH)
    return report.rows or []


def harness_rows(model: Any, tokenizer: Any, data: Path, label: str, max_rows: int) -> Rows:
    """What lm_eval makes of the exported task: its row number, gold, log-likelihoods and figures."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from hf_ext.evaluation.core.export import export_lm_eval

    with TemporaryDirectory() as folder:
        (name,) = export_lm_eval(data, folder, tasks=[label], max_rows=max_rows)
        with chdir(folder):  # where the exported task looks for its rows
            results = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
                tasks=[name],
                task_manager=TaskManager(include_path=folder, include_defaults=False),
                bootstrap_iters=0,
            )
    return [
        {
            "row": sample["doc"]["row"],
            "gold": sample["doc"].get("gold"),
            "logliks": [float(response[0][0]) for response in sample["resps"]],
            "is_greedy": [bool(response[0][1]) for response in sample["resps"]],
            "acc": int(sample["acc"]),
            "acc_norm": int(sample["acc_norm"]) if "acc_norm" in sample else None,
        }
        for sample in results["samples"][name]
    ]


def compared(label: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows of both side by side; `disagrees` names the figures by which one is right and the other wrong."""
    by_row = {row["row"]: row for row in theirs}
    if by_row.keys() != {row["row"] for row in ours}:
        raise ValueError(f"{label}: the two did not read the same rows.")
    pairs = [(row, by_row[row["row"]]) for row in ours]
    return [
        {
            "task": label,
            "row": row["row"],
            "losses": row["losses"],
            "logliks": other["logliks"],
            "difference": float(np.abs(np.array(row["losses"]) + np.array(other["logliks"])).max()),
            "disagrees": _disagreements(row, other),
        }
        for row, other in pairs
    ]


def _disagreements(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    losses = np.array(ours["losses"])
    if theirs["gold"] is None:
        right = {"greedy": (ours["correct"], theirs["is_greedy"][0])}
    else:
        right = {"acc": (losses.argmin() == theirs["gold"], theirs["acc"])}
        if theirs["acc_norm"] is not None:
            by_character = losses / np.array(ours["characters"])
            right["acc_norm"] = (by_character.argmin() == theirs["gold"], theirs["acc_norm"])
    return [figure for figure, (one, other) in right.items() if bool(one) != bool(other)]


def headline_of(rows: Rows) -> dict[str, Any]:
    """The figures of the last line."""
    return {
        "benchmark": "core_agreement",
        "rows": len(rows),
        "options": sum(len(row["losses"]) for row in rows),
        "max_loglik_difference": float(f"{max(row['difference'] for row in rows):.3g}"),
        "rows_disagreeing": sum(bool(row["disagrees"]) for row in rows),
    }


def model_and_tokenizer(quick: bool) -> tuple[Any, Any]:
    """SmolLM2, or a tiny random model."""
    if quick:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer()
        # as every tokenizer made of real text has: by this token the protocol sees that an answer wants a space
        tokenizer.add_tokens([" a"])
        return tiny_model(tokenizer, max_position_embeddings=MAX_LENGTH), tokenizer
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_ext.demo.model import embedded_model

    path = embedded_model()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def main() -> None:
    """Both sides of every task, a piece each."""
    options = parser(__doc__ or "", "core_agreement").parse_args()
    counts = QUICK_ROWS if options.quick else ROWS
    data = data_folder() / "core_eval"
    rows: Rows = []
    with TemporaryDirectory() as scratch:
        work = Path(scratch) if options.quick else options.work
        model, tokenizer = model_and_tokenizer(options.quick)
        for label, max_rows in counts.items():
            sides = {}
            for name, side in (("ours", our_rows), (PEER, harness_rows)):
                settings = {"rows": max_rows, "peer": version(PEER)}

                def compute(side: Any = side, label: str = label, max_rows: int = max_rows) -> dict[str, Any]:
                    return {"rows": side(model, tokenizer, data, label, max_rows)}

                sides[name] = piece(work, f"{label}-{name}", settings, compute)["rows"]
            rows += compared(label, sides["ours"], sides[PEER])
            print(f"{label}: {headline_of(rows)}", flush=True)
    finish(options, {"rows": rows, "peers": {PEER: version(PEER)}}, headline_of(rows))


if __name__ == "__main__":
    main()
