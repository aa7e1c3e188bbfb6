"""
What does a weighted training step cost next to the stock trainer's?

`WeightedSFTTrainer` against TRL's `SFTTrainer`: both alive in one process, on one batch of 8 rows of 64 tokens with
non-uniform weights, guards and logging on; collation, loss, backward, AdamW step and log line are timed; the order is
swapped from pair to pair. Memory is the peak of two further processes, one a trainer, each started from a small
process. SmolLM2-135M-Instruct, bf16 autocast where the processor multiplies it in hardware, else float32; the result
says which.

Last line, one JSON object:
  benchmark, pairs
  time_ratio                     median of the paired ratios, weighted over stock (goal <= 1.02)
  time_ratio_low, _high          its 95 % interval (order statistics)
  memory_ratio                   peak resident memory, weighted over stock (goal <= 1.02)

    python benchmarks/step_cost.py [--pairs 40]      # under ten minutes on 2 cores
    python benchmarks/step_cost.py --quick           # seconds, a tiny model, not the claim
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import finish, has_bf16, parser
from datasets import Dataset
from peak import peak_memory
from scipy.stats import binom
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer

ROLES = {"sft": (SFTTrainer, SFTConfig), "weighted": (WeightedSFTTrainer, WeightedSFTConfig)}


class Stepper:
    """One trainer, driven step by step through its own methods."""

    def __init__(self, role: str, model_path: str | None, folder: str, tokenizer: Any) -> None:
        trainer_class, config_class = ROLES[role]
        if model_path:
            model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        else:
            shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 200, (8, 64), generator=generator).tolist()
        weights = torch.rand(8, generator=generator).tolist()
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "weight": weights})
        args = config_class(
            folder,
            per_device_train_batch_size=8,
            bf16=model_path is not None and has_bf16(),
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
            learning_rate=1e-6,
        )
        self.trainer: Any = trainer_class(model, args, train_dataset=rows, processing_class=tokenizer)
        self.trainer.create_optimizer()
        accelerator = self.trainer.accelerator
        self.model, self.optimizer = accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.trainer.current_gradient_accumulation_steps = 1
        keep = [
            c
            for c in self.trainer.train_dataset.column_names
            if c in ("input_ids", "labels", "weight", "__hf_ext_row__")
        ]
        self.rows = list(self.trainer.train_dataset.select_columns(keep))

    def step(self) -> float:
        """Seconds of one whole training step."""
        trainer = self.trainer
        started = time.perf_counter()
        batch = {k: v.to(trainer.args.device) for k, v in trainer.data_collator(self.rows).items()}
        (batch,), items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        loss = trainer.training_step(self.model, batch, items)
        self.optimizer.step()
        self.optimizer.zero_grad()
        trainer.log({"loss": loss.item()})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def interval_of_median(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median by order statistics: no assumption on the noise."""
    ordered, n = sorted(values), len(values)
    k = int(binom.ppf((1 - level) / 2, n, 0.5))
    return ordered[max(0, k - 1)], ordered[min(n - 1, n - k)]


def peak_of(role: str, model_path: str | None) -> int:
    """Peak resident memory in bytes (device memory on a GPU) of a process that takes five steps."""
    return peak_memory([sys.executable, __file__, "--role", role, *(["--model", model_path] if model_path else [])])


def in_own_process(role: str, model_path: str | None) -> None:
    """Take five steps; on a GPU print the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(role, model_path, folder, tokenizer_of(model_path))
        for _ in range(5):
            stepper.step()
    if torch.cuda.is_available():
        print(json.dumps({"device": torch.cuda.max_memory_allocated()}))


def tokenizer_of(model_path: str | None) -> Any:
    """The model's tokenizer, or a tiny one."""
    if model_path:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model_path)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tiny import tiny_tokenizer

    return tiny_tokenizer()


def headline_of(rows: list[dict[str, float]], memory: dict[str, int]) -> dict[str, Any]:
    """The headline from the paired seconds and the two peaks."""
    ratios = [row["weighted_s"] / row["sft_s"] for row in rows]
    low, high = interval_of_median(ratios)
    return {
        "benchmark": "step_cost",
        "pairs": len(rows),
        "time_ratio": round(median(ratios), 4),
        "time_ratio_low": round(low, 4),
        "time_ratio_high": round(high, 4),
        "memory_ratio": round(memory["weighted"] / memory["sft"], 4),
    }


def main() -> None:
    """Time the pairs, measure the peaks, print the headline."""
    options = parser(__doc__ or "", "step_cost")
    options.add_argument("--pairs", type=int, default=40)
    options.add_argument("--role", choices=list(ROLES), help="Measure the memory of one trainer (internal).")
    options.add_argument("--model", help="Folder of the model (internal).")
    args = options.parse_args()
    if args.role:
        in_own_process(args.role, args.model)
        return
    model_path = None
    if not args.quick:
        from hf_ext.demo.model import embedded_model

        model_path = str(embedded_model())
    pairs = 5 if args.quick else args.pairs
    tokenizer = tokenizer_of(model_path)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        steppers = {role: Stepper(role, model_path, f"{folder}/{role}", tokenizer) for role in ROLES}
        for stepper in steppers.values():
            stepper.step()
            stepper.step()
        gc.collect()
        gc.disable()
        for pair in tqdm(range(pairs), desc="Pairs of steps", unit="pair"):
            order = list(ROLES) if pair % 2 else list(ROLES)[::-1]
            seconds = {f"{role}_s": steppers[role].step() for role in order}
            rows.append({"first": order[0], **seconds})
        gc.enable()
        del steppers
    memory = {role: peak_of(role, model_path) for role in ROLES}
    seconds = {role: round(median(row[f"{role}_s"] for row in rows), 4) for role in ROLES}
    print(f"seconds a step (median): {seconds}; peak memory (MB): { ({r: m >> 20 for r, m in memory.items()}) }")
    dtype = "bf16 autocast" if model_path and has_bf16() else "float32"
    measured = {"rows": rows, "memory_bytes": memory, "seconds": seconds, "dtype": dtype}
    finish(args, measured, headline_of(rows, memory))


if __name__ == "__main__":
    main()
