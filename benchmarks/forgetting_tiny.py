"""
Where a model does forget: how much less with FLOW and context-free rows, at an equal loss on the rows that count?

A language model of 0.63 million parameters (`tiny_lm`) is trained on WikiText-2 and then tuned on 400 rows of GSM8K of
which 0, 25 or 50 % have their tokens shuffled ("hard": nothing is to be learned from their order). Every run goes
through `compare_forgetting`. Measured are the loss on held-out rows that are not shuffled ("easy"), on shuffled ones,
on other WikiText, and KL(original || new) on fresh samples of the original. 38 steps of 16 rows; three seeds of rows
and draws.

Beside plain SFT at three rates, WiSE-FT at five alphas, LoRA at two rates, L2-SP and EWC at two weights, replay of
WikiText; FLOW (median, ess 0.8, ess 0.6, each under both scalings), context-free at 0.25 and 1, both together at two
rates, exact KL on all samples and on a tenth of them, three budgets; as controls FLOW's weights permuted, and the easy
rows alone. The paper's ablations of context-free rows ("sampled"): temperature 0.5, after the target's prompts, real
WikiText in their place, a tenth of them, a quarter or twice as many as target rows a step. "long" is one kind of row,
150 steps at rates of 5e-4, 1e-3 and 2e-3. Where FLOW cannot help: "long_half" (many epochs at a high rate, half the
rows shuffled) and "noise" (a quarter of the rows are random tokens), one seed each.

A run's KL is compared at an equal easy loss: with what the rival's runs, the original model among them, have there,
interpolated on their Pareto front; where no rival gets as low, with the KL of its lowest.

Last line, one JSON object (means over seeds):
  benchmark, seeds
  sft_wiki_rise                    rise of WikiText's loss under SFT, half of the rows shuffled; asserted: >= 0.3
  flow_kl_over_sft                 ess 0.6, half of the rows shuffled, on the curve of SFT's rates (goal <= 0.75)
  flow_kl_over_wise_ft             the same on the way of WiSE-FT
  flow_kl_over_sft_alike           ess 0.6 where no row is shuffled: a negative control (goal 1 +- 0.05)
  context_free_kl_over_sft         weight 1, "long", on the curve of SFT's rates (goal <= 0.3)
  context_free_kl_over_wise_ft     the same on the way of WiSE-FT
  context_free_gain_over_sft       the fall of the easy loss beside SFT's at the highest rate
  kl_best_ours_over_best_rival     half shuffled: of our runs with 0.8 of SFT's gain, the lowest, on the front of all
                                   rivals (goal <= 0.7)
  best_ours                        its name
  exact_tenth_over_sampled_all     of their ratios to SFT: exact KL on a tenth of the samples, sampled KL on all
                                   (goal <= 1)
  budget_worst_error               |KL / budget - 1|, the largest mean over seeds of the three (goal <= 0.2)

    HF_EXT_DATA=... python benchmarks/forgetting_tiny.py            # resumable; two processes of one thread
    HF_EXT_DATA=... python benchmarks/forgetting_tiny.py --quick    # under a minute, two steps, not the claim
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported, here and in the workers

import numpy as np
import tiny_lm
import torch
from common import data_folder, finish, follow_parent, parser, piece
from datasets import Dataset, load_dataset
from forgetting_curves import lowest_ratio, mean_of, ratios
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_ext.comparison.compare import compare_forgetting
from hf_ext.comparison.grid import Grid
from hf_ext.data.context_free import generate_context_free, generate_contextual
from hf_ext.data.replay import store_replay
from hf_ext.data.weighting import add_flow_weights, add_original_losses
from hf_ext.guards.disk import replacing

LENGTH = 64  # tokens of a row, the start counted
PROMPT = 16  # of which so many are a prompt, where samples follow one
RATES = (2.5e-4, 5e-4, 1e-3)
LONG_RATES = (5e-4, 1e-3, 2e-3)
ALPHAS = (0.2, 0.4, 0.6, 0.8, 0.9)
RULES = ("median", "ess:0.8", "ess:0.6")
BUDGETS = (0.05, 0.1, 0.2)
SHARES = {"alike": 0.0, "quarter": 0.25, "half": 0.5}
RIVALS = ("SFT", "WiSE-FT", "LoRA", "L2-SP", "EWC", "replay")
OURS = ("FLOW", "context-free", "both", "exact", "budget")  # "sampled" are ablations
LEAST_GAIN = 0.8  # of SFT's, for a run to be among the best
LEAST_RISE = 0.3  # nats per token of WikiText under SFT: below it nothing is forgotten, and nothing is shown


@dataclass(frozen=True)
class Size:
    """
    How much is run.

    Args:
        seeds (`int`), steps (`int`), long_steps (`int`), rows (`int`), held_out (`int`):
            Seeds; steps of training; those of "long"; training rows; rows of each kind that measure.
        pretraining_steps (`int`), tokens (`int`):
            Of the model; sampled for training (a tenth as many measure).
    """

    seeds: int = 3
    steps: int = 38
    long_steps: int = 150
    rows: int = 400
    held_out: int = 96
    pretraining_steps: int = 900
    tokens: int = 38_000


QUICK = Size(1, 2, 2, 32, 8, 60, 400)  # enough pretraining for rows to differ in loss


# --- the model and the rows ------------------------------------------------------------------------------------------


def texts_of(path: str) -> list[str]:
    """The documents of a file; of GSM8K question and answer."""
    rows = load_dataset("json", data_files=str(data_folder() / path), split="train")
    return [row["text"] if "text" in row else f"{row['question']} {row['answer']}" for row in rows]


def make_base(folder: Path, size: Size) -> None:
    """The model that everything starts from, trained on WikiText once, with its tokenizer."""
    if (folder / "config.json").is_file():
        return
    articles = texts_of("wikitext2/validation.jsonl.gz")[:50]
    inner = tiny_lm.tokenizer_of(articles)
    rows = tiny_lm.token_rows(inner, articles, seed=0)
    rows[:, 0] = inner.token_to_id(tiny_lm.END)  # a row of any place begins as samples do
    model = tiny_lm.trained(rows, size.pretraining_steps, seed=0)
    model.config.bos_token_id = model.config.eos_token_id = model.config.pad_token_id = 0
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = 0
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        inner.save(str(temporary / "inner.json"))
        names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), tiny_lm.END)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(temporary / "inner.json"), **names)
        tokenizer.save_pretrained(temporary)
        (temporary / "inner.json").unlink()


def token_rows(tokenizer: Any, texts: list[str], count: int) -> np.ndarray:
    """The beginnings of long enough texts, after a start: `(count, LENGTH)`."""
    ids = (tokenizer(text)["input_ids"][: LENGTH - 1] for text in texts)
    rows = [[tokenizer.bos_token_id, *row] for row in ids if len(row) == LENGTH - 1]
    return np.array(rows[:count])


def shuffled(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The tokens of each row in another order, its start aside."""
    mixed = rows.copy()
    mixed[:, 1:] = generator.permuted(rows[:, 1:], axis=1)
    return mixed


def dataset_of(rows: np.ndarray, **columns: Any) -> Dataset:
    """Prepared rows whose every token but the start is supervised."""
    labels = rows.copy()
    labels[:, 0] = -100
    return Dataset.from_dict({"input_ids": rows.tolist(), "labels": labels.tolist(), **columns})


class Bench:
    """The rows of one seed, and what is measured."""

    def __init__(self, base: Path, work: Path, seed: int, size: Size) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.work, self.seed, self.size = work, seed, size
        self.generator = np.random.default_rng(seed)
        problems = token_rows(self.tokenizer, texts_of("gsm8k/train.jsonl.gz")[: 8 * size.rows], 3 * size.rows)
        self.easy = problems[self.generator.permutation(len(problems))[: size.rows]]
        held_out = token_rows(self.tokenizer, texts_of("gsm8k/test.jsonl.gz"), size.held_out)
        hard = shuffled(held_out, np.random.default_rng(0))
        kinds = [False] * len(held_out) + [True] * len(hard)
        articles = texts_of("wikitext2/validation.jsonl.gz")
        self.old_texts = self._pieces(articles[:50])
        self.replay = dataset_of(token_rows(self.tokenizer, self.old_texts, size.rows))
        self.measures = {
            "target": dataset_of(np.concatenate([held_out, hard]), hard=kinds),
            "groups": "hard",
            "general_text": self._pieces(articles[50:])[: size.held_out],
            "context_free": self._fresh_samples(),
            "max_length": 2 * LENGTH,
            "batch_size": 32,
            "show_progress": False,
        }

    def _pieces(self, articles: list[str]) -> list[str]:
        """Articles in pieces of some 100 tokens, in words."""
        words = [text.split() for text in articles]
        return [" ".join(text[i : i + 60]) for text in words for i in range(0, len(text) - 60, 60)]

    def _fresh_samples(self) -> Any:
        return generate_context_free(
            self.model, self.tokenizer, self.size.tokens // 10, output_dir=self.work / "fresh_samples",
            max_new_tokens=LENGTH - 1, batch_size=32, seed=20_000, show_progress=False,
        )  # fmt: skip

    def train_rows(self, share: float, noise: bool = False) -> Dataset:
        """Rows of which a share is shuffled, or random tokens, with the column `hard`."""
        count = round(share * len(self.easy))
        generator = np.random.default_rng(self.seed + 1000)
        hard = shuffled(self.easy[:count], generator)
        if noise:
            hard[:, 1:] = generator.integers(1, tiny_lm.VOCABULARY, hard[:, 1:].shape)
        rows = np.concatenate([hard, self.easy[count:]])
        return dataset_of(rows, hard=[i < count for i in range(len(rows))])

    def compared(self, rows: Dataset, runs: dict[str, Any], *, steps: int, tokens: int | None = None) -> list[dict]:
        """A flat row a run: losses and KL, and the original's."""
        settings = {
            "max_steps": steps, "learning_rate": RATES[1], "per_device_train_batch_size": 16, "weight_decay": 0.0,
            "lr_scheduler_type": "linear", "warmup_steps": max(1, steps // 10), "max_grad_norm": 1.0, "bf16": False,
            "use_cpu": True, "disable_tqdm": True, "gradient_checkpointing": False, "logging_strategy": "no",
        }  # fmt: skip
        samples = {"num_tokens": tokens or self.size.tokens, "max_new_tokens": LENGTH - 1, "batch_size": 64}
        grid = Grid.from_dict(
            {"runs": runs, "settings": settings, "seeds": [self.seed], "context_free": samples | {"seed": self.seed}}
        )
        report = compare_forgetting(
            self.model, self.tokenizer, grid, rows, output_dir=self.work / "comparison", replay_dataset=self.replay,
            **self.measures,
        )  # fmt: skip
        start = report.original
        return [
            {
                "run": run.name,
                "seed": self.seed,
                "easy_loss": result.group_loss["hard=False"].mean,
                "hard_loss": result.group_loss["hard=True"].mean,
                "wiki_loss": result.general_loss.mean,
                "kl": result.kl_original_to_new.mean,
                "easy_loss_before": start.group_loss["hard=False"].mean,
                "wiki_loss_before": start.general_loss.mean,
            }
            for run in report.runs
            for result in run.results.values()
        ]


# --- the runs --------------------------------------------------------------------------------------------------------


def sft_runs(rates: tuple[float, ...]) -> dict[str, Any]:
    """Plain SFT at several rates, and the way from the original to the one at the highest."""
    runs: dict[str, Any] = {f"SFT {rate:g}": {"learning_rate": rate} for rate in rates}
    runs["WiSE-FT"] = {"method": "wise_ft", "of": f"SFT {rates[-1]:g}", "alpha": list(ALPHAS)}
    return runs


def flow_runs(scales: tuple[str, ...] = ("mean",)) -> dict[str, Any]:
    """FLOW at three temperatures."""
    return {
        f"FLOW {rule}{'' if scale == 'mean' else ' unscaled'}": {"method": "flow", "tau": rule, "weight_scale": scale}
        for scale in scales
        for rule in RULES
    }


def half_runs() -> dict[str, Any]:
    """Every method where half of the rows are shuffled."""
    return {
        **sft_runs(RATES),
        **flow_runs(("mean", "none")),
        "FLOW permuted": {"method": "weighted_sft", "normalize": "tokens"},
        **{f"LoRA {rate:g}": {"method": "lora", "r": 8, "learning_rate": rate} for rate in (1e-3, 2e-3)},
        **{f"L2-SP {weight}": {"method": "l2_sp", "l2_sp_weight": weight} for weight in (30, 100)},
        **{f"EWC {weight}": {"method": "ewc", "ewc_weight": weight} for weight in (1e4, 1e5)},
        "replay": {"method": "replay", "replay_share": 0.25},
        "context-free 0.25": {"method": "context_free", "kl_weight": 0.25},
        "context-free 1": {"method": "context_free", "kl_weight": 1.0},
        **{
            f"both {rate:g}": {"method": ["flow", "context_free"], "tau": "ess:0.6", "learning_rate": rate, **anchor}
            for rate, anchor in ((RATES[1], {"kl_weight": 0.25}), (RATES[-1], {"kl_weight": 1.0}))
        },
        "exact 1": {"method": "context_free", "kl_weight": 1.0, "kl": "exact"},
        **{f"budget {budget:g}": {"method": "context_free", "kl_budget": budget, "kl": "exact"} for budget in BUDGETS},
    }


def with_permuted_weights(bench: Bench, rows: Dataset) -> Dataset:
    """FLOW's weights of ess 0.6, each on another row than its own: as unequal, and blind."""
    scored = add_original_losses(rows, bench.model, bench.tokenizer, show_progress=False)
    weights = np.array(add_flow_weights(scored, tau="ess:0.6")["weight"])
    return rows.add_column("weight", np.random.default_rng(5).permutation(weights).tolist())


def half(bench: Bench) -> list[dict]:
    """The regime of the claim: all methods, with the controls."""
    size = bench.size
    rows = bench.train_rows(SHARES["half"])
    flat = bench.compared(with_permuted_weights(bench, rows), half_runs(), steps=size.steps)
    easy = rows.filter(lambda row: not row["hard"])
    flat += bench.compared(easy, {"easy rows alone": {}}, steps=size.steps)
    tenth = {name: {"method": "context_free", "kl_weight": 1.0, "kl": name} for name in ("exact", "sampled")}
    tenth = {f"{name} 1 tenth": run for name, run in tenth.items()}
    return flat + bench.compared(rows, tenth, steps=size.steps, tokens=max(1, size.tokens // 10))


def ablations(bench: Bench) -> list[dict]:
    """The paper's: rows of another temperature, after the target's prompts, real ones, and other ratios a step."""
    size = bench.size
    rows = bench.train_rows(SHARES["half"])
    common = {"max_new_tokens": LENGTH - PROMPT, "batch_size": 64, "seed": bench.seed, "show_progress": False}
    prompts = [ids[:PROMPT] for ids in rows["input_ids"]]
    model, tokenizer, work = bench.model, bench.tokenizer, bench.work
    stores = {
        "temperature 0.5": generate_context_free(
            model,
            tokenizer,
            size.tokens,
            output_dir=work / "cold",
            temperature=0.5,
            **common | {"max_new_tokens": LENGTH - 1},
        ),
        "after the target's prompts": generate_contextual(
            model, tokenizer, prompts, size.tokens, output_dir=work / "contextual", **common
        ),
        "real rows": store_replay(
            model, tokenizer, bench.old_texts, output_dir=work / "real", max_length=LENGTH - 1, show_progress=False
        ),
    }
    anchor = {"method": "context_free", "kl_weight": 1.0}
    runs = {f"sampled 1, {name}": {**anchor, "context_free_path": str(store.path)} for name, store in stores.items()}
    runs |= {
        f"sampled 1, {share:g} a row": {**anchor, "context_free_batch_size": round(16 * share)} for share in (0.25, 2)
    }
    return bench.compared(rows, runs, steps=size.steps)


def others(bench: Bench) -> dict[str, list[dict]]:
    """Fewer shuffled rows, one kind of row for long, and where FLOW cannot help."""
    size = bench.size
    runs = {**sft_runs(RATES), **flow_runs()}
    regimes = {
        name: bench.compared(bench.train_rows(SHARES[name]), runs, steps=size.steps) for name in ("alike", "quarter")
    }
    anchored = {
        f"context-free {weight:g}": {"method": "context_free", "kl_weight": weight, "learning_rate": LONG_RATES[-1]}
        for weight in (0.25, 1.0)
    }
    regimes["long"] = bench.compared(
        bench.train_rows(0.0), {**sft_runs(LONG_RATES), **anchored}, steps=size.long_steps
    )
    if bench.seed == 0:
        rate = {"learning_rate": LONG_RATES[-1]}
        sharp = {"SFT": rate, "FLOW ess:0.6": {"method": "flow", "tau": "ess:0.6", **rate}}
        regimes["long_half"] = bench.compared(bench.train_rows(0.5), sharp, steps=size.long_steps)
        noise = {"SFT": {}, "FLOW ess:0.8": {"method": "flow", "tau": "ess:0.8"}}
        regimes["noise"] = bench.compared(bench.train_rows(0.25, noise=True), noise, steps=size.steps)
    return regimes


def work_piece(task: tuple[str, int], work: Path, size: Size) -> dict[str, Any]:
    """One part of the benchmark in a process of its own."""
    follow_parent()
    torch.set_num_threads(1)
    part, seed = task

    def compute() -> dict[str, Any]:
        bench = Bench(work / "base", work / f"{part}-{seed}", seed, size)
        if part == "others":
            return {"regimes": others(bench)}
        return {"regimes": {"half": half(bench) if part == "half" else ablations(bench)}}

    return piece(work, f"{part}-{seed}", {"size": vars(size)}, compute)


# --- what it says ----------------------------------------------------------------------------------------------------


def headline_of(regimes: dict[str, list[dict]]) -> dict[str, Any]:
    """The headline from the flat rows of every regime."""
    rows, long = regimes["half"], regimes["long"]
    names = list(dict.fromkeys(row["run"] for row in rows))
    sft = f"SFT {RATES[1]:g}"
    ours = [name for name in names if name.startswith(OURS) and name != "FLOW permuted"]
    best_name, best_ratio = lowest_ratio(rows, ours, RIVALS, LEAST_GAIN * mean_of(rows, sft, "easy_fall"))
    gain = mean_of(long, "context-free 1", "easy_fall") / mean_of(long, f"SFT {LONG_RATES[-1]:g}", "easy_fall")
    tenth, whole = (fmean(ratios(rows, name, ("SFT",))) for name in ("exact 1 tenth", "context-free 1"))
    numbers = {
        "sft_wiki_rise": mean_of(rows, sft, "wiki_rise"),
        "flow_kl_over_sft": fmean(ratios(rows, "FLOW ess:0.6", ("SFT",))),
        "flow_kl_over_wise_ft": fmean(ratios(rows, "FLOW ess:0.6", ("WiSE-FT", f"SFT {RATES[-1]:g}"))),
        "flow_kl_over_sft_alike": fmean(ratios(regimes["alike"], "FLOW ess:0.6", ("SFT",))),
        "context_free_kl_over_sft": fmean(ratios(long, "context-free 1", ("SFT",))),
        "context_free_kl_over_wise_ft": fmean(ratios(long, "context-free 1", ("WiSE-FT", f"SFT {LONG_RATES[-1]:g}"))),
        "context_free_gain_over_sft": gain,
        "kl_best_ours_over_best_rival": best_ratio,
        "exact_tenth_over_sampled_all": tenth / whole,
        "budget_worst_error": max(abs(mean_of(rows, f"budget {b:g}", "kl") / b - 1) for b in BUDGETS),
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in numbers.items()}
    return {
        "benchmark": "forgetting_tiny",
        "seeds": len({row["seed"] for row in rows}),
        **rounded,
        "best_ours": best_name,
    }


def table_of(regimes: dict[str, list[dict]]) -> str:
    """Means over seeds, a line a run and regime."""
    titles = ("easy", "shuffled", "WikiText", "KL", "KL/SFT*")
    lines = [f"{'regime':10}{'run':22}{''.join(f'{title:>9}' for title in titles)}   * at equal easy loss"]
    for regime, rows in regimes.items():
        first = rows[0]
        lines.append(
            f"{regime:10}{'original':22}{first['easy_loss_before']:9.3f}{'':9}{first['wiki_loss_before']:9.3f}"
        )
        for run in dict.fromkeys(row["run"] for row in rows):
            values = [mean_of(rows, run, name) for name in ("easy_loss", "hard_loss", "wiki_loss", "kl")]
            ratio = fmean(ratios(rows, run, ("SFT",)))
            lines.append(f"{regime:10}{run:22}{''.join(f'{value:9.3f}' for value in values)}{ratio:9.2f}")
    return "\n".join(lines)


def main() -> None:
    """Run every missing part, then print the table and the headline."""
    options = parser(__doc__ or "", "forgetting_tiny").parse_args()
    size = QUICK if options.quick else Size()
    work = options.work / ("quick" if options.quick else "whole")
    work.mkdir(parents=True, exist_ok=True)
    make_base(work / "base", size)
    tasks = [(part, seed) for seed in range(size.seeds) for part in ("half", "ablations", "others")]
    run = partial(work_piece, work=work, size=size)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(run, tasks))
    regimes: dict[str, list[dict]] = {}
    for result in results:
        for name, rows in result["regimes"].items():
            regimes.setdefault(name, []).extend(rows)
    headline = headline_of(regimes)
    print(table_of(regimes))
    if not options.quick:
        assert headline["sft_wiki_rise"] >= LEAST_RISE, json.dumps(headline)
    rows = [{"regime": name, **row} for name, rows in regimes.items() for row in rows]
    finish(options, {"settings": vars(size), "rows": rows}, headline)


if __name__ == "__main__":
    main()
