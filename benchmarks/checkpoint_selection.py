"""
How many evaluations does a certificate of the best checkpoint take, and how often is it wrong?

SmolLM2-135M-Instruct is trained on articles of `wikitext2`, 8 rows of 64 tokens a step, bf16 autocast where the
processor multiplies it in hardware; eight checkpoints of it are asked 60 rows of each task of CORE without examples
(copa, openbook_qa, lambada_openai, winograd, winogrande). An item's value is the negative log-likelihood of the right
answer in nats. The table of 8 times 300 losses is committed, and everything else is replayed on it: 1,000 orders of
the items for `select_best` at 95 %, and 200 for the others, each with the evaluations that `select_best` spent on the
same order. The best checkpoint is the one with the least mean over all items.

The others: all checkpoints on the same items (`uniform`), successive halving on the same items (three rounds, a third
of the budget each), UCB-E of `banditeval` 0.1.1 (values scaled to 0 to 1, batches of 32), and a study of Optuna with
`WilcoxonPruner` (p 0.1, asked every 8 items), a checkpoint a trial in a drawn order, which may come to the best one
too late. None of them gives a certificate.

Last line, one JSON object:
  benchmark
  items_over_uniform       evaluations over those of all checkpoints on as many items as the winner saw, which gives
                           the same certificate: mean over orders (goal <= 0.5)
  false_certificates       share of orders with a certificate for a checkpoint that is not the best (goal <= 0.05)
  certified, certified_by_the_pool    share of orders with a certificate, and with one of all items for those left
  items_over_all           evaluations over all 2,400
  picks_best               share of orders whose winner is the best one, certified or not
  picks_best_uniform, picks_best_halving, picks_best_banditeval, picks_best_optuna    the same at equal budgets
  lead_nats, lead_standard_errors    of the best checkpoint over the next one, over all items
  checkpoints, items

    python benchmarks/checkpoint_selection.py            # resumable; about 35 minutes on two cores, 25 of them a model
    python benchmarks/checkpoint_selection.py --quick    # under a minute, a tiny model, not the claim

Optuna is of the extra `optuna`; `banditeval` and what it needs are in tests/peers/requirements.txt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from checkpoint_rivals import RIVALS
from common import data_folder, finish, has_bf16, parser, piece
from core_speed import model_and_tokenizer
from datasets import load_dataset
from tqdm.auto import tqdm

from hf_ext.bandits.checkpoints import select_best
from hf_ext.bandits.selection import Selection
from hf_ext.evaluation.core import evaluate_core
from hf_ext.evaluation.core.task_files import load_tasks

TASKS = ("copa", "openbook_qa", "lambada_openai", "winograd", "winogrande")  # those without examples
PACKAGES = {"banditeval": "banditeval", "optuna": "optuna"}  # of rivals
CONFIDENCE = 0.95
LEARNING_RATE = 1e-4
BATCH, LENGTH = 8, 64


@dataclass(frozen=True)
class Size:
    """
    How much is run.

    Args:
        steps (`tuple[int, ...]`):
            After which a checkpoint is measured.
        rows (`int`):
            Of each task.
        replays, rival_replays (`int`):
            Orders of the items.
    """

    steps: tuple[int, ...] = (5, 10, 20, 30, 45, 60, 80, 100)
    rows: int = 60
    replays: int = 1_000
    rival_replays: int = 200


QUICK = Size((1, 2, 4), rows=16, replays=12, rival_replays=3)


# --- the table of losses ---------------------------------------------------------------------------------------------


def batches(tokenizer: Any, num_steps: int) -> Iterator[torch.Tensor]:
    """Token ids `(8, 64)` of articles, the same at every call."""
    files = str(data_folder() / "wikitext2" / "validation.jsonl.gz")
    text = "\n".join(load_dataset("json", data_files=files, split="train")["text"])
    size = BATCH * LENGTH
    ids = torch.tensor(tokenizer(text[: 8 * num_steps * size])["input_ids"])
    for step in range(num_steps):
        yield ids[step * size : (step + 1) * size].view(BATCH, LENGTH)


def losses_of(model: Any, tokenizer: Any, rows: int) -> list[float]:
    """Nats of the right answer to each row, task after task."""
    data = data_folder() / "core_eval"
    report = evaluate_core(model, tokenizer, data, tasks=TASKS, max_rows=rows, show_progress=False)
    task_rows = load_tasks(data, list(TASKS))
    golds = {(of_task.task.label, row.index): row.gold or 0 for of_task in task_rows for row in of_task.rows}
    return [round(row["losses"][golds[row["task"], row["row"]]], 4) for row in report.rows or []]


def table_of(arguments: Any, size: Size) -> dict[str, list[float]]:
    """Losses of every checkpoint on every item; of a killed run the model is trained again, and not measured again."""
    model, tokenizer = model_and_tokenizer(arguments.quick)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    torch.manual_seed(0)
    table = {}
    for step, ids in enumerate(tqdm(batches(tokenizer, size.steps[-1]), total=size.steps[-1], desc="steps"), 1):
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16()):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in size.steps:
            model.eval()
            facts = {"rows": size.rows, "quick": arguments.quick, "learning_rate": LEARNING_RATE}
            measured_losses = piece(
                arguments.work,
                f"step-{step}",
                facts,
                lambda: {"losses": losses_of(model, tokenizer, size.rows)},
            )
            table[f"step {step}"] = measured_losses["losses"]
    return table


# --- replays ---------------------------------------------------------------------------------------------------------


def race(table: dict[str, list[float]], seed: int) -> Selection:
    """One selection on the table."""
    values = dict(zip(table, np.array(list(table.values())), strict=True))
    return select_best(
        values,
        lambda losses, items: losses[items],
        items=range(len(next(iter(table.values())))),
        confidence=CONFIDENCE,
        greater_is_better=False,
        seed=seed,
        show_progress=False,
    )


def races(table: dict[str, list[float]], replays: int) -> dict[str, Any]:
    """What came of `select_best` in every order, a column a fact."""
    names = list(table)
    selections = [race(table, seed) for seed in tqdm(range(replays), desc="orders")]
    return {
        "method": "select_best",
        "picks": [names.index(selection.name) for selection in selections],
        "spent": [selection.items_spent for selection in selections],
        "items": [selection.candidate(selection.name).num_items for selection in selections],
        "certified": [selection.certified for selection in selections],
    }


def picks_of(rival: Callable[..., int], losses: Any, budgets: Iterable[int]) -> dict[str, Any]:
    """What a rival picks in every order, at the budget of ours on it."""
    return {"picks": [rival(losses, budget, seed) for seed, budget in enumerate(budgets)]}


def headline_of(rows: list[dict[str, Any]], table: dict[str, list[float]]) -> dict[str, Any]:
    """Figures from the columns of every method and the table of losses."""
    our_row = next(row for row in rows if row["method"] == "select_best")
    losses = np.array(list(table.values()))
    means = losses.mean(axis=1)
    best, second = np.argsort(means)[:2]
    differences = losses[second] - losses[best]
    picks, evaluations, items = (np.array(our_row[key]) for key in ("picks", "spent", "items"))
    certified = np.array(our_row["certified"])
    num_items = losses.shape[1]
    is_best = means[picks] <= means[best]  # a checkpoint that is exactly as good is the best, too
    return {
        "benchmark": "checkpoint_selection",
        "items_over_uniform": round(float((evaluations / (len(losses) * items)).mean()), 4),
        "false_certificates": round(float((certified & ~is_best).mean()), 4),
        "certified": round(float(certified.mean()), 4),
        "certified_by_the_pool": round(float((certified & (items == num_items)).mean()), 4),
        "items_over_all": round(float(evaluations.mean()) / losses.size, 4),
        "picks_best": round(float(is_best.mean()), 4),
        **{
            f"picks_best_{row['method']}": round(float((means[row["picks"]] <= means[best]).mean()), 4)
            for row in rows
            if row is not our_row
        },
        "lead_nats": round(float(differences.mean()), 5),
        "lead_standard_errors": round(float(differences.mean() / (differences.std(ddof=1) / num_items**0.5)), 3),
        "checkpoints": len(losses),
        "items": num_items,
    }


def main() -> None:
    """Train and measure what is missing, replay, then write rows, plot and headline."""
    arguments = parser(__doc__ or "", "checkpoint_selection").parse_args()
    size = QUICK if arguments.quick else Size()
    missing_packages = [package for package in PACKAGES if find_spec(package) is None]
    if missing_packages and not arguments.quick:
        sys.exit(f"{' and '.join(missing_packages)} must run beside ours: see tests/peers/requirements.txt.")
    table = table_of(arguments, size)
    rows = [races(table, size.replays)]
    losses = np.array(list(table.values()))
    for name, rival in RIVALS.items():
        if name in missing_packages:
            continue
        budgets = rows[0]["spent"][: size.rival_replays]
        settings = {"losses": list(table.values()), "budgets": budgets}
        compute = partial(picks_of, rival, losses, tqdm(budgets, desc=name))
        rows.append({"method": name, "picks": piece(arguments.work, name, settings, compute)["picks"]})
    peers = {name: version(package) for name, package in PACKAGES.items() if name not in missing_packages}
    facts = {"rows": rows, "losses": table, "tasks": TASKS, "rows_of_each_task": size.rows, "peers": peers}
    output = finish(arguments, facts, headline_of(rows, table))
    if output:
        race(table, 0).plot().savefig(output.with_suffix(".png"), dpi=160)


if __name__ == "__main__":
    main()
