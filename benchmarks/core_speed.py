"""
What does a shared context save when CORE is measured?

nanochat's way, rewritten here from its description (a padded batch for each row with every option whole, logits and
losses of all positions), beside `evaluate_core` with the protocol of that name: the first five rows, in the protocol's
order, of each of the 22 tasks at hand that are no generation; SmolLM2-135M-Instruct, float32. Both read the same model
in one process, with tokenising; the order is swapped from run to run. CPU seconds, not time on the clock: other work
on the machine counts in neither.

Last line, one JSON object:
  benchmark, rows, runs
  over_peer            CPU seconds, nanochat's way over ours, multiple choice and schema, median of runs (goal >= 3)
  over_peer_all        the same with language modelling                                              (goal >= 2.2)
  over_peer_<type>     the same for each type
  over_peer_low        the least of over_peer among the runs
  rows_disagreeing     rows whose pick, or whose greedy match, differs                               (goal 0)
  our_tokens_share     tokens that ours reads, of those that nanochat's way reads, padding included

    python benchmarks/core_speed.py            # within an hour on 2 cores; a killed run goes on
    python benchmarks/core_speed.py --quick    # seconds, a tiny model, not the claim
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from common import data_folder, finish, parser, piece
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_ext.demo.model import embedded_model
from hf_ext.evaluation.core import TASKS, evaluate_core
from hf_ext.evaluation.core.task_files import load_tasks

ROWS = 5
RUNS = 3
QUICK_TASKS = ("copa", "winograd", "lambada_openai", "arc_easy")
MAX_LENGTH = 2048


class PeerWay:
    """CORE as nanochat measures it, from its description: whole strings, common beginnings or ends, a batch a row."""

    def __init__(self, model: Any, tokenizer: Any, rows: list[dict[str, Any]], label: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.task = TASKS[label]
        self.rows = list(rows)
        random.Random(1337).shuffle(self.rows)
        self.tokens = 0

    def prompts(self, position: int) -> list[str]:
        """The whole text of every option; of language modelling without and with its answer."""
        others = [place for place in range(len(self.rows)) if place != position]
        drawn = random.Random(1234 + position).sample(others, min(self.task.shots, len(others)))
        examples = "".join(self.whole(self.rows[place], None) + "\n\n" for place in drawn)
        row = self.rows[position]
        if self.task.type == "language_modeling":
            before = examples + row["context"].strip() + self.task.delimiter
            return [before.strip(), before + row["continuation"]]
        options = row["choices"] if self.task.type == "multiple_choice" else row["context_options"]
        return [examples + self.whole(row, option) for option in range(len(options))]

    def whole(self, row: dict[str, Any], option: int | None) -> str:
        """Context and answer of an option, or of the right one."""
        place = row.get("gold") if option is None else option
        if self.task.type == "multiple_choice":
            return row["query"] + self.task.delimiter + row["choices"][place]
        if self.task.type == "schema":
            return row["context_options"][place] + self.task.delimiter + row["continuation"]
        return row["context"].strip() + self.task.delimiter + row["continuation"]

    @torch.no_grad()
    def row(self, position: int) -> int | bool:
        """The option chosen, or whether the answer is the likeliest text."""
        begin = self.tokenizer.bos_token_id
        ids = [[begin, *self.tokenizer(text)["input_ids"]] for text in self.prompts(position)]
        if self.task.type == "language_modeling":
            spans = [(len(ids[0]), len(ids[1]))]
            ids = ids[1:]
        elif self.task.type == "schema":
            length = _common([sequence[::-1] for sequence in ids])
            spans = [(len(sequence) - length, len(sequence)) for sequence in ids]
        else:
            spans = [(_common(ids), len(sequence)) for sequence in ids]
        surplus = [max(0, len(sequence) - MAX_LENGTH) for sequence in ids]
        spans = [(start - cut, end - cut) for (start, end), cut in zip(spans, surplus, strict=True)]
        ids = [sequence[cut:] for sequence, cut in zip(ids, surplus, strict=True)]
        width = max(map(len, ids))
        batch = torch.full((len(ids), width), begin)
        for place, sequence in enumerate(ids):
            batch[place, : len(sequence)] = torch.tensor(sequence)
        self.tokens += batch.numel()
        logits = self.model(input_ids=batch, use_cache=False).logits
        targets = batch.roll(-1, dims=1)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(batch.shape)
        if self.task.type == "language_modeling":
            ((start, end),) = spans
            return bool((logits[0, start - 1 : end - 1].argmax(-1) == batch[0, start:end]).all())
        means = [float(losses[place, start - 1 : end - 1].mean()) for place, (start, end) in enumerate(spans)]
        return means.index(min(means))


def _common(sequences: list[list[int]]) -> int:
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({sequence[i] for sequence in sequences}) > 1), shortest)


class Measurement:
    """Both ways on one task."""

    def __init__(self, model: Any, tokenizer: Any, data: Path, num_rows: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.num_rows = num_rows
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.tokens += kwargs["input_ids"].numel()

    def __call__(self, label: str, run: int) -> dict[str, Any]:
        """CPU seconds, tokens and results of both ways."""
        ways: dict[str, Callable[[str], list[Any]]] = {"peer": self.peer, "ours": self.ours}
        result: dict[str, Any] = {}
        for way in sorted(ways, reverse=run % 2 == 0):
            self.tokens = 0
            started = time.process_time()
            picks = ways[way](label)
            result[way] = {"cpu_s": time.process_time() - started, "tokens": self.tokens, "picks": picks}
        return result

    def peer(self, label: str) -> list[Any]:
        """nanochat's way."""
        (task_rows,) = load_tasks(self.data, label)
        rows = [_plain(row, task_rows.task.type) for row in task_rows.rows]
        way = PeerWay(self.model, self.tokenizer, rows, label)
        return [way.row(position) for position in range(min(self.num_rows, len(rows)))]

    def ours(self, label: str) -> list[Any]:
        """`evaluate_core`."""
        report = evaluate_core(
            self.model,
            self.tokenizer,
            self.data,
            tasks=label,
            protocol="nanochat",
            max_rows=self.num_rows,
            max_length=MAX_LENGTH,
            show_progress=False,
        )
        is_language = TASKS[label].type == "language_modeling"
        return [row["correct"] if is_language else row["pick"] for row in report.rows or []]


def _plain(row: Any, kind: str) -> dict[str, Any]:
    """A row as its file has it."""
    if kind == "multiple_choice":
        return {"query": row.contexts[0], "choices": row.answers, "gold": row.gold}
    if kind == "schema":
        return {"context_options": row.contexts, "continuation": row.answers[0], "gold": row.gold}
    return {"context": row.contexts[0], "continuation": row.answers[0]}


def model_and_tokenizer(is_quick: bool) -> tuple[Any, Any]:
    """SmolLM2, or in a quick run a tiny model with its tokenizer."""
    folder = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not is_quick:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, **shape)
    return LlamaForCausalLM(config).eval(), tokenizer


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures from the rows, each a task in a run."""
    runs = sorted({row["run"] for row in rows})
    types = ("multiple_choice", "schema", "language_modeling")

    def ratios(*of_types: str) -> list[float]:
        chosen = [[row for row in rows if row["run"] == run and row["type"] in of_types] for run in runs]
        return [sum(row["peer_cpu_s"] for row in part) / sum(row["ours_cpu_s"] for row in part) for part in chosen]

    first = [row for row in rows if row["run"] == runs[0]]
    return {
        "benchmark": "core_speed",
        "rows": sum(len(row["peer_picks"]) for row in first),
        "runs": len(runs),
        "over_peer": round(median(ratios(*types[:2])), 3),
        "over_peer_all": round(median(ratios(*types)), 3),
        **{f"over_peer_{kind}": round(median(ratios(kind)), 3) for kind in types},
        "over_peer_low": round(min(ratios(*types[:2])), 3),
        "rows_disagreeing": sum(
            ours != peer for row in rows for ours, peer in zip(row["ours_picks"], row["peer_picks"], strict=True)
        ),
        "our_tokens_share": round(sum(r["ours_tokens"] for r in first) / sum(r["peer_tokens"] for r in first), 4),
    }


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "", "core_speed").parse_args()
    torch.set_num_threads(1)
    data = data_folder() / "core_eval"
    num_rows, runs = (2, 1) if options.quick else (ROWS, RUNS)
    everything = [rows.task for rows in load_tasks(data, "all")]
    labels = QUICK_TASKS if options.quick else [task.label for task in everything if task.type != "generation"]
    measure = Measurement(*model_and_tokenizer(options.quick), data, num_rows)
    rows = []
    for run, label in tqdm([(run, label) for run in range(runs) for label in labels], desc="task"):
        settings = {"rows": num_rows, "run": run, "quick": options.quick}
        result = piece(options.work, label, settings, lambda label=label, run=run: measure(label, run))
        facts = {f"{way}_{name}": value for way in ("peer", "ours") for name, value in result[way].items()}
        rows.append({"run": run, "task": label, "type": TASKS[label].type, **facts})
    headline = headline_of(rows)
    if not options.quick:
        print(json.dumps({row["task"]: round(row["peer_cpu_s"] / row["ours_cpu_s"], 2) for row in rows}))
    finish(options, {"rows": rows}, headline)


if __name__ == "__main__":
    main()
