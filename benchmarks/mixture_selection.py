"""
Do shares that follow the alignment of gradients give a better model of the target than other shares do?

A language model of 0.7 million parameters (`tiny_lm`), trained from nothing for 300 steps of 4 micro-batches of 4
rows of 96 tokens. Five sources: WikiText-2, GSM8K, instructions, `repeats` (a row repeats one token: useless) and
`noise` (tokens drawn at random: harmful). The target is half WikiText-2, half GSM8K, of documents that are in no
source; what is reported is the loss on yet other documents of both. Five seeds of weights and draws. Every arm draws
rows with the same sampler:

- `mixture`: ours, by alignment with 16 target rows every 4 steps;
- `uniform`, `proportional` (to the rows of each source), and six fixed shares, of which `target` is the target's;
- `odm`: online data mixing, a bandit on losses; `softmax`: shares by the exponential of losses.

Then SmolLM2-135M, one seed, 30 steps of 4 micro-batches of 1 row, in three arms.

Last line, one JSON object (nats per token of the held-out documents, positive where ours is better):
  benchmark, seeds
  uniform_minus_mixture_nats, odm_minus_mixture_nats                   the seed with the lowest (goal > 0)
  proportional_minus_mixture_nats, softmax_minus_mixture_nats          the seed with the lowest; no goal
  best_fixed_minus_mixture_nats    mean over seeds, of the six the one with the lowest mean; no goal
  best_fixed                       its name
  harmful_share_end                share of `noise` in the last 100 micro-batches, the highest seed (goal <= 0.05)
  useless_share_end                the same of `repeats`; no goal
  step_cost_ratio                  processor time of `mixture` over `uniform`, median over seeds
  smollm2_uniform_minus_mixture_nats, smollm2_odm_minus_mixture_nats   one seed; no goal

    HF_EXT_DATA=... python benchmarks/mixture_selection.py            # resumable; two processes of one thread
    HF_EXT_DATA=... python benchmarks/mixture_selection.py --quick    # under a minute, one seed, not the claim
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported, here and in the workers

import numpy as np
import tiny_lm
import torch
from common import data_folder, finish, follow_parent, parser, piece
from datasets import Dataset, load_dataset
from mixture_rivals import rival
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_ext.bandits.mixture import SideObservationMixture
from hf_ext.trainers.mixture import with_mixture

LENGTH = 96
SOURCES = ("wikitext", "gsm8k", "instructions", "repeats", "noise")
FIXED = {
    "target": (1, 1, 0, 0, 0),
    "text": (1, 1, 1, 0, 0),
    "wikitext": (1, 0, 0, 0, 0),
    "gsm8k": (0, 1, 0, 0, 0),
    "instructions": (0, 0, 1, 0, 0),
    "cautious": (4, 4, 4, 1, 1),
}
ARMS = ("mixture", "uniform", "proportional", "odm", "softmax", *FIXED)
LAST = 100  # micro-batches whose shares are those of the end


@dataclass(frozen=True)
class Size:
    """
    How much is run.

    Args:
        model (`str`):
            "tiny" or "smollm2".
        steps, seeds, rows_per_batch (`int`):
            Of a run.
        held_out (`int`):
            Rows of WikiText-2 and of GSM8K each, in the target and in what is reported.
        arms (`tuple[str, ...]`):
            Names.
        learning_rate (`float`):
            The highest of a linear schedule.
    """

    model: str = "tiny"
    steps: int = 300
    seeds: int = 5
    rows_per_batch: int = 4
    held_out: int = 48
    arms: tuple[str, ...] = ARMS
    learning_rate: float = 3e-3
    target_rows: int = 16


SMOLLM2 = Size("smollm2", 30, 1, 1, 16, ("mixture", "uniform", "odm"), 1e-4, 4)
QUICK = Size(steps=8, seeds=1, held_out=8, arms=("mixture", "uniform", "odm", "softmax", "proportional", "target"))


@dataclass(frozen=True)
class Job:
    """A run: its size, its arm and its seed."""

    size: Size
    arm: str
    seed: int


def texts_of() -> dict[str, list[str]]:
    """Documents of the three real sources, in the files' order."""
    folder = data_folder()

    def load(name: str) -> Any:
        return load_dataset("json", data_files=str(folder / name), split="train")

    return {
        "wikitext": load("wikitext2/validation.jsonl.gz")["text"][:],
        "gsm8k": [f"{row['question']}\n{row['answer']}" for row in load("gsm8k/train.jsonl.gz").select(range(2500))],
        "instructions": [
            "\n".join(message["content"] for message in row["messages"])
            for row in load("instructions_dolly_hhrlhf/train.jsonl.gz")
        ],
    }


class Documents:
    """Rows of tokens of every source, of the target and of what is reported: the last documents are held out."""

    def __init__(self, size: Size) -> None:
        texts = texts_of()
        if size.model == "tiny":
            tokenizer = tiny_lm.tokenizer_of([*texts["wikitext"][:45], *texts["gsm8k"][:2000]])
            self.encode = lambda text: tokenizer.encode(text).ids
            self.vocabulary, self.end = tiny_lm.VOCABULARY, tokenizer.token_to_id(tiny_lm.END)
        else:
            from hf_ext.demo.model import embedded_model

            pretrained = AutoTokenizer.from_pretrained(str(embedded_model()))
            self.encode = lambda text: pretrained(text)["input_ids"]
            self.vocabulary, self.end = len(pretrained), pretrained.eos_token_id
        parts = {"wikitext": (45, 52), "gsm8k": (2000, 2250)}  # sources, target, report
        train = {name: texts[name][: parts.get(name, (None,))[0]] for name in texts}
        generator = np.random.default_rng(0)
        rows = {name: self._rows(part) for name, part in train.items()}
        repeats = np.repeat(generator.integers(self.vocabulary, size=(800, 1)), LENGTH, axis=1)
        rows |= {"repeats": repeats, "noise": generator.integers(self.vocabulary, size=(800, LENGTH))}
        self.sources = {name: as_dataset(rows[name]) for name in SOURCES}
        self.target = as_dataset(
            np.concatenate([self._rows(texts[name][a:b])[: size.held_out] for name, (a, b) in parts.items()])
        )
        self.report = {name: self._rows(texts[name][b:])[: size.held_out] for name, (_, b) in parts.items()}

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        ids = [token for text in texts for token in (*self.encode(text), self.end)]
        return np.array(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)


@cache
def documents_of(size: Size) -> Documents:
    """The rows of a size, which all its runs share."""
    return Documents(size)


def as_dataset(rows: np.ndarray) -> Dataset:
    """Rows of tokens, all of which are labels."""
    return Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()})


def model_of(size: Size, seed: int) -> Any:
    """A fresh tiny model, or SmolLM2."""
    if size.model == "tiny":
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=tiny_lm.VOCABULARY, max_position_embeddings=LENGTH, **tiny_lm.SHAPE)
        return LlamaForCausalLM(config)
    from hf_ext.demo.model import embedded_model

    return AutoModelForCausalLM.from_pretrained(str(embedded_model()), dtype=torch.float32)


def run(job: Job) -> dict[str, Any]:
    """Train one arm, and score it on the documents that nobody has seen."""
    torch.set_num_threads(1)
    size = job.size
    documents = documents_of(size)
    if job.arm == "mixture":
        mixture = SideObservationMixture(
            documents.sources, documents.target, target_rows=size.target_rows, seed=job.seed
        )
    else:
        mixture = rival(job.arm, documents.sources, job.seed, FIXED)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=size.steps,
            per_device_train_batch_size=size.rows_per_batch,
            gradient_accumulation_steps=4,
            learning_rate=size.learning_rate,
            warmup_steps=min(20, size.steps // 4),
            logging_steps=size.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=job.seed,
        )
        trainer = with_mixture(Trainer)(model_of(size, job.seed), args, mixture=mixture)
        started = time.process_time()
        trainer.train()
        cost = time.process_time() - started
    losses = {
        name: tiny_lm.nats_a_token(trainer.model, torch.from_numpy(rows)) for name, rows in documents.report.items()
    }
    sources = np.array(mixture.batch_sources[: mixture.num_trained])
    share = lambda part: (np.bincount(part, minlength=len(SOURCES)) / len(part)).round(4).tolist()  # noqa: E731
    return {
        "nats": fmean(losses.values()),
        "nats_of": losses,
        "shares": dict(zip(SOURCES, share(sources), strict=True)),
        "shares_end": dict(zip(SOURCES, share(sources[-LAST:]), strict=True)),
        "cpu_seconds": round(cost, 2),
    }


def finished(job: Job, work: Path) -> dict[str, Any]:
    """The row of a job, computed unless it was before."""
    facts = {**vars(job.size), "arm": job.arm, "seed": job.seed}
    row = piece(work, f"{job.size.model}-{job.arm}-{job.seed}", facts, lambda: run(job))
    return {"model": job.size.model, "arm": job.arm, "seed": job.seed, **row}


def lowest_gain(rows: Sequence[dict[str, Any]], model: str, arm: str) -> float:
    """Nats by which `mixture` is ahead of an arm, in the seed where that is least."""
    nats = {(row["arm"], row["seed"]): row["nats"] for row in rows if row["model"] == model}
    return round(min(nats[arm, seed] - nats["mixture", seed] for name, seed in nats if name == "mixture"), 4)


def headline_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headline from the rows; arms that did not run are left out."""
    tiny = [row for row in rows if row["model"] == "tiny"]
    ours = [row for row in tiny if row["arm"] == "mixture"]
    uniform = {row["seed"]: row["cpu_seconds"] for row in tiny if row["arm"] == "uniform"}
    means = {arm: fmean(row["nats"] for row in tiny if row["arm"] == arm) for arm in {row["arm"] for row in tiny}}
    best = min((arm for arm in FIXED if arm in means), key=means.__getitem__)
    small = {row["arm"] for row in rows if row["model"] == "smollm2"}
    return {
        "benchmark": "mixture_selection",
        "seeds": len(ours),
        **{
            f"{arm}_minus_mixture_nats": lowest_gain(rows, "tiny", arm)
            for arm in ("uniform", "odm", "proportional", "softmax")
        },
        "best_fixed_minus_mixture_nats": round(means[best] - means["mixture"], 4),
        "best_fixed": best,
        "harmful_share_end": max(row["shares_end"]["noise"] for row in ours),
        "useless_share_end": max(row["shares_end"]["repeats"] for row in ours),
        "step_cost_ratio": round(median(row["cpu_seconds"] / uniform[row["seed"]] for row in ours), 3),
        **{
            f"smollm2_{arm}_minus_mixture_nats": lowest_gain(rows, "smollm2", arm)
            for arm in ("uniform", "odm")
            if arm in small
        },
    }


def main() -> None:
    """Run every missing piece, print its line, then the headline."""
    options = parser(__doc__ or "", "mixture_selection")
    options.add_argument("--plan", action="store_true", help="Print the pieces and leave.")
    args = options.parse_args()
    sizes = [QUICK] if args.quick else [SMOLLM2, Size()]  # the longest pieces first
    jobs = [Job(size, arm, seed) for size in sizes for seed in range(size.seeds) for arm in size.arms]
    if args.plan:
        print("\n".join(f"{job.size.model} {job.arm} {job.seed}" for job in jobs))
        return
    work = args.work / "quick" if args.quick else args.work
    work.mkdir(parents=True, exist_ok=True)
    task = partial(finished, work=work)
    bar = partial(tqdm, total=len(jobs), desc="pieces", unit="piece")
    if args.quick:
        rows = list(bar(map(task, jobs)))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn, initializer=follow_parent) as pool:
            rows = list(bar(pool.map(task, jobs)))
    for row in rows:
        shares = " ".join(f"{name} {share:.2f}" for name, share in row["shares_end"].items())
        print(f"{row['model']} {row['arm']:13} {row['seed']} {row['nats']:.4f} nats, at the end {shares}")
    finish(args, {"rows": rows, "length": LENGTH, "fixed": FIXED}, headline_of(rows))


if __name__ == "__main__":
    main()
