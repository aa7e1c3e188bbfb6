"""
What does an InfoPO training step cost next to a stock DPO step?

`InfoPOTrainer` (`nwj`) against TRL's `DPOTrainer`: both alive in one process, on one batch of 4 pairs of at most 96
tokens, diagnostics, guard and logging on; collation, loss, backward, AdamW step and log line are timed; the order is
swapped from pair to pair. Four cells: all parameters and LoRA, the reference in the step and precomputed. Memory is
the peak of two further processes a cell, one a trainer. A Llama of 4 million parameters in float32: what InfoPO adds
does not grow with the model, so on a larger one the time ratio is nearer 1.

Last line, one JSON object:
  benchmark, pairs                    pairs of steps in each cell
  time_ratio                          InfoPO over DPO, median of the paired ratios, the worst cell   (goal <= 1.02)
  memory_ratio                        peak resident memory, the worst cell                           (goal <= 1.02)
  time_ratio_<cell>, _low, _high      each cell's median and its 95 % interval (order statistics)

    python benchmarks/infopo_step.py [--pairs 60]      # under eight minutes on 2 cores
    python benchmarks/infopo_step.py --quick           # a minute, a tiny model, not the claim
"""

from __future__ import annotations

import copy
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
from common import finish, parser
from datasets import Dataset
from peak import peak_memory
from peft import LoraConfig
from step_cost import interval_of_median
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.tiny import tiny_sentences, tiny_tokenizer

ROLES = {"dpo": (DPOTrainer, DPOConfig), "infopo": (InfoPOTrainer, InfoPOConfig)}
CELLS = {
    "full": {"lora": False, "precompute": False},
    "full_precomputed": {"lora": False, "precompute": True},
    "lora": {"lora": True, "precompute": False},
    "lora_precomputed": {"lora": True, "precompute": True},
}
BATCH = 4
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_of(quick: bool) -> Any:
    """A randomly initialised Llama, the same on every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=512 if quick else 2048, **(TINY if quick else SMALL)))


class Stepper:
    """One trainer, driven step by step through its own methods."""

    def __init__(self, role: str, cell: str, folder: str, quick: bool) -> None:
        trainer_class, config_class = ROLES[role]
        model, settings = model_of(quick), CELLS[cell]
        texts = tiny_sentences(3 * BATCH, seed=1, max_sentences=6)
        rows = Dataset.from_dict(
            {name: [" " + text for text in texts[k::3]] for k, name in enumerate(("prompt", "chosen", "rejected"))}
        )
        args = config_class(
            folder,
            per_device_train_batch_size=BATCH,
            max_length=96,
            precompute_ref_log_probs=settings["precompute"],
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            learning_rate=1e-6,
        )
        options: dict[str, Any] = {}
        if settings["lora"]:
            options["peft_config"] = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        elif not settings["precompute"]:
            options["ref_model"] = copy.deepcopy(model)
        self.trainer: Any = trainer_class(
            model, args=args, train_dataset=rows, processing_class=tiny_tokenizer(), **options
        )
        self.trainer.create_optimizer()
        self.loader = self.trainer.get_train_dataloader()
        accelerator = self.trainer.accelerator
        self.model, self.optimizer = accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.trainer.current_gradient_accumulation_steps = 1

    def step(self) -> float:
        """Seconds of one whole training step."""
        trainer = self.trainer
        started = time.perf_counter()
        (batch,), items = trainer.get_batch_samples(iter(self.loader), 1, trainer.args.device)
        loss = trainer.training_step(self.model, batch, items)
        self.optimizer.step()
        self.optimizer.zero_grad()
        trainer.log({"loss": loss.item()})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def peak_of(role: str, cell: str, quick: bool) -> int:
    """Peak resident memory in bytes (device memory on a GPU) of a process that takes five steps."""
    command = [sys.executable, __file__, "--role", role, "--cell", cell]
    return peak_memory([*command, *(["--quick"] if quick else [])])


def in_own_process(role: str, cell: str, quick: bool) -> None:
    """Take five steps; on a GPU print the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(role, cell, folder, quick)
        for _ in range(5):
            stepper.step()
    if torch.cuda.is_available():
        print(json.dumps({"device": torch.cuda.max_memory_allocated()}))


def timed_pairs(cell: str, pairs: int, quick: bool) -> list[dict[str, Any]]:
    """Seconds of alternated steps of the two trainers."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        steppers = {role: Stepper(role, cell, f"{folder}/{role}", quick) for role in ROLES}
        for stepper in steppers.values():
            stepper.step()
            stepper.step()
        gc.collect()
        gc.disable()
        for pair in tqdm(range(pairs), desc=f"Pairs of steps, {cell}", unit="pair"):
            order = list(ROLES) if pair % 2 else list(ROLES)[::-1]
            seconds = {f"{role}_s": steppers[role].step() for role in order}
            rows.append({"cell": cell, "first": order[0], **seconds})
        gc.enable()
    return rows


def headline_of(rows: list[dict[str, Any]], memory: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The headline from the paired seconds and the peaks; ratios are rounded to 1e-4."""
    cells = {}
    for cell in memory:
        ratios = [row["infopo_s"] / row["dpo_s"] for row in rows if row["cell"] == cell]
        low, high = interval_of_median(ratios)
        cells |= {
            f"time_ratio_{cell}": round(median(ratios), 4),
            f"time_ratio_{cell}_low": round(low, 4),
            f"time_ratio_{cell}_high": round(high, 4),
        }

    return {
        "benchmark": "infopo_step",
        "pairs": len(rows) // len(memory),
        "time_ratio": max(cells[f"time_ratio_{cell}"] for cell in memory),
        "memory_ratio": round(max(own["infopo"] / own["dpo"] for own in memory.values()), 4),
        **cells,
    }


def main() -> None:
    """Time the pairs of every cell, measure the peaks, print the headline."""
    options = parser(__doc__ or "", "infopo_step")
    options.add_argument("--pairs", type=int, default=60)
    options.add_argument("--role", choices=list(ROLES), help="Measure the memory of one trainer (internal).")
    options.add_argument("--cell", choices=list(CELLS), help="Of which cell (internal).")
    args = options.parse_args()
    if args.role:
        in_own_process(args.role, args.cell, args.quick)
        return
    cells = ["lora"] if args.quick else list(CELLS)
    rows = [row for cell in cells for row in timed_pairs(cell, 3 if args.quick else args.pairs, args.quick)]
    memory = {cell: {role: peak_of(role, cell, args.quick) for role in ROLES} for cell in cells}
    seconds = {
        cell: {role: round(median(row[f"{role}_s"] for row in rows if row["cell"] == cell), 4) for role in ROLES}
        for cell in cells
    }
    print(f"seconds a step (median): {seconds}")
    finish(args, {"rows": rows, "memory_bytes": memory, "seconds": seconds}, headline_of(rows, memory))


if __name__ == "__main__":
    main()
