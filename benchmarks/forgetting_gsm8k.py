"""
How much does a small model forget while it learns GSM8K, and how much less with FLOW and context-free rows?

SmolLM2-135M-Instruct, all parameters, real GSM8K rows of at most 96 tokens, batch 4, bf16 autocast. Arms: plain SFT
(TRL's `SFTTrainer`), FLOW (median), context-free (lambda 1), both, and WiSE-FT 0.5 of the SFT arm (the mean of its and
the original weights). One learning rate for all arms, chosen on SFT alone, on rows of its own, for the lowest held-out
loss. Context-free rows for training and for the KL come from stores with different seeds.

Two other settings of the context-free arm (three times the rows a step; lambda 3) run on one seed, under "variants".

Last line, one JSON object (means over seeds of ratios of changes; nats per token):
  benchmark, steps, seeds, learning_rate
  kl_context_free_over_sft                KL(original||new), context-free arm over SFT arm       (goal <= 0.5)
  target_gain_context_free_over_sft       fall of held-out target loss, the same                 (goal >= 0.9)
  kl_flow_over_sft, target_gain_flow_over_sft, kl_both_over_sft, target_gain_both_over_sft,
  kl_wise_ft_over_sft, target_gain_wise_ft_over_sft
  sft_target_loss_fall                    fall of held-out loss under SFT over its start (>= 0.1 makes the task count)

    HF_EXT_DATA=... python benchmarks/forgetting_gsm8k.py            # resumable; 104 minutes on one busy core
    HF_EXT_DATA=... python benchmarks/forgetting_gsm8k.py --quick    # a minute, a tiny model, not the claim
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import data_folder, finish, parser, piece
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.data.weighting import add_flow_weights, add_original_losses
from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.flow import FlowSFTConfig, FlowSFTTrainer

MAX_LENGTH = 96
BATCH = 4
ARMS = ("sft", "flow", "context_free", "both", "wise_ft")
LEARNING_RATES = (2e-5, 5e-5, 1e-4)
# Other settings of the context-free arm, one seed: what would bring its KL further down, and at what price?
VARIANTS: dict[str, dict[str, Any]] = {
    "context_free_rows_x3": {"context_free_batch_size": 3 * BATCH},
    "context_free_lambda_3": {"kl_weight": 3.0},
}


class Bench:
    """One run of the benchmark: model, rows, stores."""

    def __init__(self, model_path: str, work: Path, steps: int, rows: int, tokens: int, autocast: bool) -> None:
        self.model_path, self.work, self.steps = model_path, work, steps
        self.autocast = torch.bfloat16 if autocast else None
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        data = data_folder()
        train = self._rows(data / "gsm8k" / "train.jsonl.gz", 4 * rows + 3 * BATCH * steps)
        self.validation, self.train = train.select(range(rows)), train.select(range(rows, len(train)))
        self.test = self._rows(data / "gsm8k" / "test.jsonl.gz", 2 * rows)
        wiki = load_dataset("json", data_files=str(data / "wikitext2" / "validation.jsonl.gz"), split="train")
        self.general = [row["text"] for row in wiki.select(range(min(rows, len(wiki))))]
        self.tokens = tokens
        self.settings = {
            "model": Path(model_path).name,
            "steps": steps,
            "rows": rows,
            "tokens": tokens,
            "bf16": autocast,
        }

    def _rows(self, path: Path, count: int) -> Dataset:
        """Short rows, in the file's order (which is shuffled): prompt and completion of at most 96 tokens."""
        raw = load_dataset("json", data_files=str(path), split="train")
        raw = raw.map(_prompt_completion, remove_columns=raw.column_names)
        short = raw.filter(
            lambda row: len(self.tokenizer(row["prompt"] + row["completion"])["input_ids"]) < MAX_LENGTH
        )
        return short.select(range(min(count, len(short))))

    def model(self) -> Any:
        """A fresh copy of the original model."""
        return AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)

    def store(self, name: str, tokens: int, seed: int) -> ContextFreeStore:
        """Context-free rows of the original model, sampled once."""
        return generate_context_free(
            self.model(),
            self.tokenizer,
            tokens,
            output_dir=self.work / name,
            max_new_tokens=MAX_LENGTH - 1,
            batch_size=min(64, max(4, tokens // MAX_LENGTH)),
            seed=seed,
            autocast_dtype=self.autocast,
        )

    def config(self, cls: type, seed: int, learning_rate: float, **extra: Any) -> Any:
        """The settings all arms share."""
        return cls(
            str(self.work / "out"),
            max_length=MAX_LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=self.steps,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, self.steps // 20),
            bf16=self.autocast is not None,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=5,
            seed=seed,
            report_to="none",
            **extra,
        )

    def trained(self, arm: str, seed: int, learning_rate: float) -> Any:
        """The model after training one arm."""
        model, rows = self.model(), self.train.shuffle(seed=seed).select(range(BATCH * self.steps))
        kwargs: dict[str, Any] = {"processing_class": self.tokenizer}
        if arm == "sft":
            trainer: Any = SFTTrainer(model, self.config(SFTConfig, seed, learning_rate), train_dataset=rows, **kwargs)
        elif arm == "flow":
            # A cache per seed only: scores of this model on these rows, found again when the arm is run again.
            args = self.config(FlowSFTConfig, seed, learning_rate, original_cache_dir=str(self.work / "scores"))
            trainer = FlowSFTTrainer(model, args, train_dataset=rows, **kwargs)
        else:
            extra = {"kl_weight": 1.0} | VARIANTS.get(arm, {})
            extra |= {"normalize": "tokens"} if arm == "both" else {}  # as FLOW divides
            args = self.config(ContextFreeSFTConfig, seed, learning_rate, **extra)
            if arm == "both":
                rows = add_flow_weights(add_original_losses(rows, model, self.tokenizer, args))
            # Enough rows that none is seen twice. The first rows of the larger store are those of the smaller one.
            tokens = self.tokens * extra.get("context_free_batch_size", BATCH) // BATCH
            kwargs["context_free_dataset"] = self.store(
                "train_store" if tokens == self.tokens else "large_store", tokens, 0
            )
            trainer = ContextFreeSFTTrainer(model, args, train_dataset=rows, **kwargs)
        trainer.train()
        flow = dict(getattr(trainer, "flow_statistics", {}))
        log = [{k: v for k, v in entry.items() if isinstance(v, float)} for entry in trainer.state.log_history]
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        del trainer
        gc.collect()
        return model, {"flow": flow, "log": log}

    def measured(self, models: dict[str, Any], target: Dataset, with_kl: bool = True) -> dict[str, Any]:
        """Losses and KL of each model against the original, with intervals over rows."""
        report = forgetting_report(
            self.model(),
            models,
            self.tokenizer,
            target=target,
            context_free=self.store("fresh_store", self.tokens // 4, seed=1_000_003) if with_kl else None,
            general_text=self.general if with_kl else None,
            max_length=MAX_LENGTH,
            autocast_dtype=self.autocast,
        )
        return report.to_dict()

    def seed(self, arm: str, seed: int, learning_rate: float) -> dict[str, Any]:
        """Train and measure one arm; the SFT arm gives WiSE-FT 0.5 as well."""
        model, notes = self.trained(arm, seed, learning_rate)
        models = {arm: model}
        if arm == "sft":
            wise, start = self.model(), model.state_dict()
            wise.load_state_dict({k: (v + start[k]) / 2 for k, v in wise.state_dict().items()})
            models["wise_ft"] = wise
        return {"report": self.measured(models, self.test), **notes}


def _prompt_completion(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": " " + row["answer"]}


def rows_of(pieces: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One flat row per arm and seed, as the headline is computed from."""
    rows = []
    for (_, seed), result in sorted(pieces.items(), key=lambda item: (item[0][1], item[0][0])):
        report = result["report"]
        for arm in report["runs"]:
            rows.append(
                {
                    "arm": arm["name"],
                    "seed": seed,
                    "target_loss_before": report["original"]["target_loss"]["mean"],
                    "target_loss": arm["target_loss"]["mean"],
                    "general_loss_before": report["original"]["general_loss"]["mean"],
                    "general_loss": arm["general_loss"]["mean"],
                    "kl_original_to_new": arm["kl_original_to_new"]["mean"],
                    "kl_half_interval": arm["kl_original_to_new"]["half_width"],
                }
            )
    return rows


def headline_of(rows: list[dict[str, Any]], steps: int, learning_rate: float) -> dict[str, Any]:
    """The headline from the rows of every arm and seed: means over seeds of ratios to the SFT arm of the same seed."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})

    def fall(row: dict[str, Any]) -> float:
        return row["target_loss_before"] - row["target_loss"]

    sft = [by["sft", seed] for seed in seeds]
    headline: dict[str, Any] = {
        "benchmark": "forgetting_gsm8k",
        "steps": steps,
        "seeds": len(seeds),
        "learning_rate": learning_rate,
        "sft_target_loss_fall": round(fmean(fall(row) / row["target_loss_before"] for row in sft), 4),
    }
    for arm in ARMS[1:]:
        pairs = [(by[arm, seed], base) for seed, base in zip(seeds, sft, strict=True)]
        kl = fmean(row["kl_original_to_new"] / base["kl_original_to_new"] for row, base in pairs)
        gain = fmean(fall(row) / fall(base) for row, base in pairs)
        headline |= {f"kl_{arm}_over_sft": round(kl, 4), f"target_gain_{arm}_over_sft": round(gain, 4)}
    return headline


def table_of(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, one line an arm."""
    first = rows[0]
    lines = [f"{'arm':14}{'target':>10}{'WikiText-2':>12}{'KL(original||new)':>20}   nats per token, means over seeds"]
    lines.append(f"{'original':14}{first['target_loss_before']:10.4f}{first['general_loss_before']:12.4f}{0:20.4f}")
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        values = [fmean(row[key] for row in own) for key in ("target_loss", "general_loss", "kl_original_to_new")]
        lines.append(f"{arm:14}{values[0]:10.4f}{values[1]:12.4f}{values[2]:20.4f}")
    return "\n".join(lines)


def main() -> None:
    """Run every missing piece, then print the table and the headline."""
    options = parser(__doc__ or "", "forgetting_gsm8k")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    if args.quick:
        bench, seeds = _quick(args.work), 1
    else:
        from hf_ext.demo.model import embedded_model

        bench = Bench(str(embedded_model()), args.work, args.steps, rows=32, tokens=11_000, autocast=True)
        seeds = args.seeds
    sweep = {
        lr: piece(bench.work, f"lr-{lr:g}", bench.settings | {"lr": lr}, lambda lr=lr: _swept(bench, lr))["validation"]
        for lr in LEARNING_RATES
    }
    learning_rate = min(sweep, key=sweep.__getitem__)
    print(f"held-out loss by learning rate: {sweep}; taken: {learning_rate}", file=sys.stderr)
    pieces = {}
    for seed in range(seeds):
        for arm in ARMS[:-1]:
            settings = bench.settings | {"lr": learning_rate, "arm": arm, "seed": seed}
            run = lambda arm=arm, seed=seed: bench.seed(arm, seed, learning_rate)  # noqa: E731
            pieces[arm, seed] = piece(bench.work, f"{arm}-{seed}", settings, run)
    others = {}
    for arm in VARIANTS:
        settings = bench.settings | {"lr": learning_rate, "arm": arm, "seed": 0, **VARIANTS[arm]}
        others[arm, 0] = piece(bench.work, f"{arm}-0", settings, lambda arm=arm: bench.seed(arm, 0, learning_rate))
    rows = rows_of(pieces)
    result = {
        "settings": bench.settings,
        "learning_rates": {str(lr): loss for lr, loss in sweep.items()},
        "rows": rows,
        "variants": rows_of(others),
        "seconds": {f"{arm}-{seed}": p["seconds"] for (arm, seed), p in pieces.items()},
        "flow": {str(seed): pieces["flow", seed]["flow"] for seed in range(seeds)},
    }
    print(table_of(rows))
    for row in result["variants"]:
        base = next(r for r in rows if r["arm"] == "sft" and r["seed"] == 0)
        gain = (row["target_loss_before"] - row["target_loss"]) / (base["target_loss_before"] - base["target_loss"])
        ratio = row["kl_original_to_new"] / base["kl_original_to_new"]
        print(f"{row['arm']} (seed 0): KL {ratio:.3f} of SFT's, target gain {gain:.3f}")
    finish(args, result, headline_of(rows, bench.steps, learning_rate))


def _swept(bench: Bench, learning_rate: float) -> dict[str, Any]:
    model, _ = bench.trained("sft", 100, learning_rate)
    report = bench.measured({"sft": model}, bench.validation, with_kl=False)
    return {"validation": report["runs"][0]["target_loss"]["mean"]}


def _quick(work: Path) -> Bench:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = work / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    global MAX_LENGTH
    MAX_LENGTH = 224  # the tiny tokenizer cuts text into single bytes
    return Bench(str(folder), work, steps=2, rows=4, tokens=500, autocast=False)


if __name__ == "__main__":
    main()
