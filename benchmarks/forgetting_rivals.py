"""
Which method keeps most of what a real model knew, at an equal gain on the rows that count?

SmolLM2-135M-Instruct, all parameters, is tuned on short problems of GSM8K; the answer of every fourth row is scrambled
("hard": its words stand in a drawn order, and nothing is to be learned from it). 17 runs from three seeds of rows and
draws go through `compare_forgetting`; eight of them also on an instruction set, from one seed. Measured are the loss
on held-out problems ("easy"), on scrambled ones, on WikiText-2 that nobody trained on, and KL(original || new) on
fresh samples of the original.

How long: plain SFT was measured after several numbers of steps at two rates, from a seed that no other run has
(`lengths` in the result). STEPS and RATE are such that the loss on WikiText has risen.

Runs: SFT at three rates and with half the steps, WiSE-FT at four alphas, LoRA, rsLoRA, OSF, CorDA, L2-SP, EWC, DFT,
replay of WikiText; FLOW (ess 0.6), context-free (weight 1; sampled and exact KL), FLOW with context-free, LoRA with
context-free. Rivals' own settings were set once, before any result: those of their libraries, and for the penalties
weights that leave about half of SFT's way.

A run's KL is compared at an equal easy loss, on the Pareto front of the rivals named, the original model among them.

Last line, one JSON object (means over seeds; nats per token):
  benchmark, steps, seeds, learning_rate
  sft_general_rise                 rise of WikiText's loss under SFT: above 0, or nothing is forgotten
  sft_easy_fall                    fall of the easy loss under SFT
  kl_<ours>_over_sft               flow, context_free, exact, both: on the curve of SFT's rates and lengths
  kl_<ours>_over_wise_ft           the same on the way of WiSE-FT
  general_<ours>                   rise of WikiText's loss, over SFT's
  gain_<ours>                      fall of the easy loss, over SFT's
  best_ours, best_rival            of the runs with 0.8 of SFT's gain, the one with the lowest KL over SFT's curve
  kl_best_ours_over_best_rival     of `best_ours` on the front of all rivals
  kl_best_ours_over_best_rival_instructions    the same on the instruction set, one seed

    HF_EXT_DATA=... python benchmarks/forgetting_rivals.py            # resumable; two processes of one thread
    HF_EXT_DATA=... python benchmarks/forgetting_rivals.py --quick    # under a minute, a tiny model, not the claim
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported, here and in the workers

import torch
from common import data_folder, finish, follow_parent, parser, piece
from datasets import Dataset, load_dataset
from forgetting_curves import lowest_ratio, mean_of, ratios
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.comparison.compare import compare_forgetting
from hf_ext.comparison.grid import Grid
from hf_ext.comparison.report import ComparedRun, ComparisonReport
from hf_ext.data.context_free import generate_context_free

STEPS = 24
RATE = 4e-4
LENGTHS = {2e-4: (12, 24), 4e-4: (6, 12, 24)}  # steps at each rate, from the seed of nobody else
LENGTHS_SEED = 100
HARD_EVERY = 4  # of so many rows one is scrambled
LORA_RATE = 1e-3
ALPHAS = (0.3, 0.5, 0.7, 0.85)
RIVALS = ("SFT", "WiSE-FT", "LoRA", "rsLoRA", "OSF", "CorDA", "L2-SP", "EWC", "DFT", "replay")
OURS = {
    "flow": "FLOW",
    "context_free": "context-free",
    "exact": "exact KL",
    "both": "FLOW and context-free",
    "lora": "context-free on LoRA",
}
LEAST_GAIN = 0.8  # of SFT's, for a run to be among the best


@dataclass(frozen=True)
class Size:
    """
    How much is run.

    Args:
        seeds (`int`), steps (`int`), batch_size (`int`):
            Seeds; steps of training; rows a step.
        max_length (`int`):
            Tokens of the longest row.
        held_out (`int`), general (`int`):
            Held-out rows of each kind, and texts of WikiText.
        tokens (`int`):
            Sampled for training (a sixth as many measure).
    """

    seeds: int = 3
    steps: int = STEPS
    batch_size: int = 3
    max_length: int = 112
    held_out: int = 32
    general: int = 24
    tokens: int = 8_000


QUICK = Size(seeds=1, steps=2, batch_size=2, max_length=512, held_out=2, general=2, tokens=120)


# --- rows ------------------------------------------------------------------------------------------------------------


def problem(row: dict[str, str]) -> dict[str, str]:
    """A row of GSM8K as prompt and completion."""
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}


def instruction(row: dict[str, Any]) -> dict[str, str]:
    """A row of the instruction set as prompt and completion."""
    question, answer = (message["content"] for message in row["messages"])
    return {"prompt": f"{question}\n\nAnswer:", "completion": f" {answer}"}


def scrambled(text: str, generator: random.Random) -> str:
    """The words of a text in another order."""
    words = text.split()
    generator.shuffle(words)
    return " " + " ".join(words)


def with_hard_rows(rows: list[dict[str, str]], places: set[int], seed: int) -> Dataset:
    """The rows with the column `hard`, those at `places` with scrambled answers."""
    generator = random.Random(seed)
    flags = [i in places for i in range(len(rows))]
    answers = [
        scrambled(row["completion"], generator) if hard else row["completion"]
        for row, hard in zip(rows, flags, strict=True)
    ]
    prompts = [row["prompt"] for row in rows]
    return Dataset.from_dict({"prompt": prompts, "completion": answers, "hard": flags})


def pieces_of(articles: list[str], words: int = 60) -> list[str]:
    """Articles in pieces of so many words."""
    texts = [article.split() for article in articles]
    return [" ".join(text[i : i + words]) for text in texts for i in range(0, len(text) - words, words)]


class Bench:
    """The rows of one task and one seed, and what is measured."""

    def __init__(self, model_path: str, work: Path, task: str, seed: int, size: Size) -> None:
        self.model_path, self.work, self.task, self.seed, self.size = model_path, work, task, seed, size
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        held_out = self.short_rows("held_out")[: size.held_out]
        target = with_hard_rows([*held_out, *held_out], set(range(len(held_out), 2 * len(held_out))), seed=1)
        articles = load_dataset("json", data_files=str(data_folder() / "wikitext2/validation.jsonl.gz"), split="train")
        self.replay = Dataset.from_dict({"text": pieces_of(articles["text"][:30])[: 4 * size.steps * size.batch_size]})
        self.measures = {
            "target": target,
            "groups": "hard",
            "general_text": pieces_of(articles["text"][30:])[:: 7 if size.general > 8 else 1][: size.general],
            "max_length": size.max_length,
            "show_progress": False,
        }

    @cached_property
    def model(self) -> Any:
        """The original model, in float32."""
        return AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)

    def short_rows(self, part: str) -> list[dict[str, str]]:
        """Rows of at most `max_length` tokens, in the file's order, which is shuffled."""
        if self.task == "gsm8k":
            path, row_of = f"gsm8k/{'test' if part == 'held_out' else 'train'}.jsonl.gz", problem
        else:
            path, row_of = "instructions_dolly_hhrlhf/train.jsonl.gz", instruction
        rows = [row_of(row) for row in load_dataset("json", data_files=str(data_folder() / path), split="train")]
        short = [
            row
            for row in rows
            if len(self.tokenizer(row["prompt"] + row["completion"])["input_ids"]) < self.size.max_length
        ]
        if self.task == "gsm8k":
            return short
        return short[: self.size.held_out] if part == "held_out" else short[self.size.held_out :]

    def train_rows(self, steps: int) -> Dataset:
        """Rows of this seed, no row twice within an epoch of so many steps."""
        rows = self.short_rows("train")
        random.Random(self.seed).shuffle(rows)
        rows = rows[: steps * self.size.batch_size]
        return with_hard_rows(rows, set(range(0, len(rows), HARD_EVERY)), seed=self.seed + 1000)

    def compared(self, runs: dict[str, Any], steps: int, rate: float) -> ComparisonReport:
        """Train and measure runs on this task from this seed."""
        settings = {
            "max_steps": steps, "learning_rate": rate, "per_device_train_batch_size": self.size.batch_size,
            "max_length": self.size.max_length, "weight_decay": 0.0, "lr_scheduler_type": "linear",
            "warmup_steps": max(1, steps // 10), "max_grad_norm": 1.0, "bf16": False, "use_cpu": True,
            "disable_tqdm": True, "gradient_checkpointing": False, "logging_strategy": "no",
        }  # fmt: skip
        samples = {"num_tokens": self.size.tokens, "max_new_tokens": 95, "batch_size": 32, "seed": self.seed}
        grid = Grid.from_dict({"runs": runs, "settings": settings, "seeds": [self.seed], "context_free": samples})
        fresh = generate_context_free(
            self.model, self.tokenizer, self.size.tokens // 6, output_dir=self.work / "fresh_samples",
            max_new_tokens=95, batch_size=32, seed=20_000, show_progress=False,
        )  # fmt: skip
        return compare_forgetting(
            self.model, self.tokenizer, grid, self.train_rows(steps), output_dir=self.work / "comparison",
            replay_dataset=self.replay, context_free=fresh, **self.measures,
        )  # fmt: skip


def rows_of(report: ComparisonReport) -> list[dict[str, Any]]:
    """A flat row a run and seed, with the original's losses."""
    start = report.original
    return [
        {
            "run": run.name,
            "seed": seed,
            "easy_loss": result.group_loss["hard=False"].mean,
            "hard_loss": result.group_loss["hard=True"].mean,
            "general_loss": result.general_loss.mean,
            "kl": result.kl_original_to_new.mean,
            "kl_half_interval": result.kl_original_to_new.half_width,
            "easy_loss_before": start.group_loss["hard=False"].mean,
            "hard_loss_before": start.group_loss["hard=True"].mean,
            "general_loss_before": start.general_loss.mean,
            "train_seconds": run.facts[seed].get("train_seconds"),
        }
        for run in report.runs
        for seed, result in run.results.items()
    ]


# --- the runs --------------------------------------------------------------------------------------------------------


def first_runs() -> dict[str, Any]:
    """What both tasks run: plain SFT, the cheap rivals, ours."""
    return {
        f"SFT {RATE:g}": {},
        f"SFT {RATE / 2:g}": {"learning_rate": RATE / 2},
        "WiSE-FT": {"method": "wise_ft", "of": f"SFT {RATE:g}", "alpha": list(ALPHAS)},
        "LoRA": {"method": "lora", "r": 16, "lora_alpha": 32, "learning_rate": LORA_RATE},
        "L2-SP 100": {"method": "l2_sp", "l2_sp_weight": 100},
        OURS["flow"]: {"method": "flow", "tau": "ess:0.6"},
        OURS["context_free"]: {"method": "context_free", "kl_weight": 1.0},
        OURS["both"]: {"method": ["flow", "context_free"], "tau": "ess:0.6", "kl_weight": 1.0},
    }


def all_runs(steps: int) -> dict[str, Any]:
    """The whole table of GSM8K."""
    lora = {"r": 16, "lora_alpha": 32, "learning_rate": LORA_RATE}
    return {
        **first_runs(),
        f"SFT {RATE / 4:g}": {"learning_rate": RATE / 4},
        "SFT, half the steps": {"max_steps": max(1, steps // 2)},
        "rsLoRA": {"method": "rslora", "r": 16, "lora_alpha": 8, "learning_rate": LORA_RATE},
        "OSF": {"method": "osf"},
        "CorDA": {"method": "corda", **lora},
        "L2-SP 300": {"method": "l2_sp", "l2_sp_weight": 300},
        "EWC": {"method": "ewc", "ewc_weight": 1e5, "fisher_max_rows": 32},
        "DFT": {"method": "dft"},
        "replay": {"method": "replay", "replay_share": 0.25},
        OURS["exact"]: {"method": "context_free", "kl_weight": 1.0, "kl": "exact"},
        OURS["lora"]: {"method": ["lora", "context_free"], "kl_weight": 1.0, **lora},
    }


def work_piece(job: tuple[str, int], model_path: str, work: Path, size: Size) -> dict[str, Any]:
    """One task and seed, or the lengths, in a process of its own; `compare_forgetting` goes on where it was."""
    follow_parent()
    torch.set_num_threads(1)
    task, seed = job
    bench = Bench(model_path, work / f"{task}-{seed}", "gsm8k" if task == "lengths" else task, seed, size)

    def compute() -> dict[str, Any]:
        if task != "lengths":
            runs = all_runs(size.steps) if task == "gsm8k" else first_runs()
            report = bench.compared(runs, size.steps, RATE)
            return {"rows": rows_of(report), "report": report.to_dict()}
        rows = []
        for rate, lengths in LENGTHS.items():
            for steps in lengths if size.steps == STEPS else (2,):
                report = bench.compared({"SFT": {}}, steps, rate)
                rows += [{"steps": steps, "learning_rate": rate, **row} for row in rows_of(report)]
        return {"rows": rows}

    return piece(work, f"{task}-{seed}", {"size": vars(size)}, compute)


# --- what it says ----------------------------------------------------------------------------------------------------


def best_ratio(rows: list[dict]) -> tuple[str | None, float | None]:
    """The best of ours and its KL over the front of all rivals."""
    ours = [name for name in dict.fromkeys(row["run"] for row in rows) if name in OURS.values()]
    return lowest_ratio(rows, ours, RIVALS, LEAST_GAIN * mean_of(rows, f"SFT {RATE:g}", "easy_fall"))


def headline_of(rows: list[dict], instructions: list[dict], steps: int) -> dict[str, Any]:
    """The headline from the flat rows of both tasks."""
    sft = f"SFT {RATE:g}"
    numbers: dict[str, float | None] = {
        "sft_general_rise": mean_of(rows, sft, "general_rise"),
        "sft_easy_fall": mean_of(rows, sft, "easy_fall"),
    }
    for key, name in OURS.items():
        numbers |= {
            f"kl_{key}_over_sft": fmean(ratios(rows, name, ("SFT",))),
            f"kl_{key}_over_wise_ft": fmean(ratios(rows, name, ("WiSE-FT", sft))),
            f"general_{key}": mean_of(rows, name, "general_rise") / mean_of(rows, sft, "general_rise"),
            f"gain_{key}": mean_of(rows, name, "easy_fall") / mean_of(rows, sft, "easy_fall"),
        }
    best_ours, ratio = best_ratio(rows)
    rivals = [name for name in dict.fromkeys(row["run"] for row in rows) if name.startswith(RIVALS)]
    least_gain = LEAST_GAIN * mean_of(rows, sft, "easy_fall")
    best_rival, _ = lowest_ratio(rows, rivals, ("SFT",), least_gain)
    numbers["kl_best_ours_over_best_rival"] = ratio
    numbers["kl_best_ours_over_best_rival_instructions"] = best_ratio(instructions)[1]
    return {
        "benchmark": "forgetting_rivals",
        "steps": steps,
        "seeds": len({row["seed"] for row in rows}),
        "learning_rate": RATE,
        **{name: None if value is None else round(value, 4) for name, value in numbers.items()},
        "best_ours": best_ours,
        "best_rival": best_rival,
    }


def joined(reports: list[ComparisonReport]) -> ComparisonReport:
    """The seeds' reports as one."""
    first = reports[0]
    runs = [
        ComparedRun(
            run.name,
            run.method,
            run.settings,
            {seed: result for report in reports for seed, result in report.run(run.name).results.items()},
            {seed: facts for report in reports for seed, facts in report.run(run.name).facts.items()},
        )
        for run in first.runs
    ]
    seeds = sorted({seed for report in reports for seed in report.settings["seeds"]})
    return replace(first, runs=runs, settings=first.settings | {"seeds": seeds})


def lengths_table(rows: list[dict]) -> str:
    """What SFT gained and forgot after each number of steps."""
    lines = ["| rate | steps | easy loss | WikiText | KL |", "|---:|---:|---:|---:|---:|"]
    first = rows[0]
    lines.append(f"| | 0 | {first['easy_loss_before']:.3f} | {first['general_loss_before']:.3f} | 0 |")
    lines += [
        f"| {row['learning_rate']:g} | {row['steps']} | {row['easy_loss']:.3f} | {row['general_loss']:.3f} "
        f"| {row['kl']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def quick_model(work: Path) -> str:
    """A tiny model of the tests, with its tokenizer."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = work / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run every missing piece, then write rows, tables, plot and headline."""
    options = parser(__doc__ or "", "forgetting_rivals").parse_args()
    size = QUICK if options.quick else Size()
    work = options.work / ("quick" if options.quick else "whole")
    work.mkdir(parents=True, exist_ok=True)
    if options.quick:
        model_path = quick_model(work)
    else:
        from hf_ext.demo.model import embedded_model

        model_path = str(embedded_model())
    jobs = [*(("gsm8k", seed) for seed in range(size.seeds)), ("instructions", 0), ("lengths", LENGTHS_SEED)]
    run = partial(work_piece, model_path=model_path, work=work, size=size)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    reports = [ComparisonReport.from_dict(results["gsm8k", seed]["report"]) for seed in range(size.seeds)]
    report = joined(reports)
    other = ComparisonReport.from_dict(results["instructions", 0]["report"])
    rows = [row for seed in range(size.seeds) for row in results["gsm8k", seed]["rows"]]
    instructions, lengths = results["instructions", 0]["rows"], results["lengths", LENGTHS_SEED]["rows"]
    text = f"## GSM8K\n\n{report.to_markdown()}\n## Instructions\n\n{other.to_markdown()}\n"
    text += f"## Plain SFT by its length\n\n{lengths_table(lengths)}\n"
    print(text)
    headline = headline_of(rows, instructions, size.steps)
    values = {"settings": vars(size), "rows": rows, "instructions": instructions, "lengths": lengths}
    output = finish(options, values, headline)
    if output:
        output.with_suffix(".md").write_text(text, encoding="utf-8")
        report.plot().savefig(output.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
