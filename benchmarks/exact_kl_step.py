"""
What does a step with the exact KL cost next to plain SFT on the same rows?

`ContextFreeSFTTrainer` with `kl="exact"` and LoRA on 4 target rows and 4 context-free rows, against TRL's `SFTTrainer`
with the same adapter on the same 8 rows as one batch: at most 64 tokens each, SmolLM2-135M-Instruct, bf16 autocast
where the processor multiplies it in hardware, else float32; the result says which. Collation, loss, backward, AdamW
step and log line are timed. Each of the two runs in a process of its own, started from a small one, whose peak is its
memory; the order is swapped from round to round, and a round's ratio is that of the two medians over its steps.

Last line, one JSON object:
  benchmark, rounds
  time_ratio                     median over the rounds, exact over plain SFT (goal <= 1.9)
  time_ratio_low, _high          lowest and highest round
  memory_ratio                   peak memory, exact over plain SFT, medians over the rounds (goal <= 1.2)

    python benchmarks/exact_kl_step.py [--rounds 3] [--steps 3]    # under ten minutes on 2 cores
    python benchmarks/exact_kl_step.py --cpu-clock                 # CPU seconds of one thread: for a shared machine
    python benchmarks/exact_kl_step.py --quick                     # under a minute, a tiny model, not the claim
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from common import finish, has_bf16, parser, piece
from peak import run_alone
from tqdm.auto import tqdm

ROLES = ("sft", "exact")
ROWS = 4  # of the target, and of the store
LENGTH = 64
SEED = 0


# --- in a process of its own -----------------------------------------------------------------------------------------


def model_and_tokenizer(quick: bool) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, or a tiny model."""
    if quick:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer()
        return tiny_model(tokenizer), tokenizer
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_ext.demo.model import embedded_model

    path = embedded_model()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def sampled_store(model: Any, tokenizer: Any, folder: Path) -> Any:
    """A store of as many rows as a step takes: the same in every process."""
    from hf_ext import generate_context_free

    return generate_context_free(
        model, tokenizer, 1, output_dir=folder, max_new_tokens=LENGTH - 1, batch_size=ROWS, seed=SEED,
        show_progress=False,
    )  # fmt: skip


class Stepper:
    """One trainer, driven step by step through its own methods."""

    def __init__(self, role: str, quick: bool, folder: Path) -> None:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        from hf_ext import ContextFreeSFTConfig, ContextFreeSFTTrainer

        model, tokenizer = model_and_tokenizer(quick)
        store = sampled_store(model, tokenizer, folder / "store")
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(10, 200, (ROWS, LENGTH), generator=generator).tolist()
        rows = [{"input_ids": row, "labels": row} for row in ids]
        if role == "sft":
            rows += [{name: row[name] for name in ("input_ids", "labels")} for row in store.to_dataset()]
        config_class, trainer_class = {
            "sft": (SFTConfig, SFTTrainer),
            "exact": (ContextFreeSFTConfig, ContextFreeSFTTrainer),
        }[role]
        args = config_class(
            str(folder / "run"),
            per_device_train_batch_size=len(rows),
            bf16=not quick and has_bf16(),
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
            learning_rate=1e-4,
            **({"kl": "exact"} if role == "exact" else {}),
        )
        lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        self.trainer: Any = trainer_class(
            model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora,
            **({"context_free_dataset": store} if role == "exact" else {}),
        )  # fmt: skip
        if role == "exact":
            self.trainer.before_training(None)
        self.trainer.create_optimizer()
        accelerator = self.trainer.accelerator
        self.model, self.optimizer = accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.trainer.current_gradient_accumulation_steps = 1
        self.rows = list(self.trainer.train_dataset)

    def step(self) -> None:
        """One whole training step."""
        trainer = self.trainer
        batch = {name: values.to(trainer.args.device) for name, values in trainer.data_collator(self.rows).items()}
        (batch,), items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        loss = trainer.training_step(self.model, batch, items)
        self.optimizer.step()
        self.optimizer.zero_grad()
        trainer.log({"loss": loss.item()})


def in_own_process(args: argparse.Namespace) -> None:
    """Take the steps of one trainer, and print the seconds of each, without the first, and on a GPU the peak."""
    import torch

    if args.cpu_clock:
        torch.set_num_threads(1)  # threads that wait for each other burn time on a busy machine
    clock = time.process_time if args.cpu_clock else time.perf_counter
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(args.role, args.quick, Path(folder))
        for _ in range(args.steps + 1):
            started = clock()
            stepper.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(round(clock() - started, 4))
    report: dict[str, Any] = {"seconds": seconds[1:], "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        report["device"] = torch.cuda.max_memory_allocated()
    print(json.dumps(report))


# --- the small process -----------------------------------------------------------------------------------------------


def measured(role: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the steps, and the peak memory in bytes, of one trainer in a fresh process."""
    switches = [name for name, is_set in (("--quick", args.quick), ("--cpu-clock", args.cpu_clock)) if is_set]
    command = [sys.executable, __file__, "--role", role, "--steps", str(args.steps), *switches]
    output, peak = run_alone(command)
    report = json.loads(output.splitlines()[-1])
    peak = report.get("device", peak)
    return {"step_seconds": report["seconds"], "peak_bytes": peak, "threads": report["threads"]}


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline from each round's seconds and peaks."""
    by_role = {role: [row for row in rows if row["role"] == role] for role in ROLES}
    ratios = [
        median(exact["step_seconds"]) / median(plain["step_seconds"])
        for plain, exact in zip(by_role["sft"], by_role["exact"], strict=True)
    ]
    peaks = {role: median(row["peak_bytes"] for row in by_role[role]) for role in ROLES}
    return {
        "benchmark": "exact_kl_step",
        "rounds": len(ratios),
        "time_ratio": round(median(ratios), 4),
        "time_ratio_low": round(min(ratios), 4),
        "time_ratio_high": round(max(ratios), 4),
        "memory_ratio": round(peaks["exact"] / peaks["sft"], 4),
    }


def main() -> None:
    """Measure both in turn, print the headline."""
    options = parser(__doc__ or "", "exact_kl_step")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=3, help="Timed steps a process; one more comes before.")
    options.add_argument("--cpu-clock", action="store_true", help="Count the CPU seconds of one thread instead.")
    options.add_argument("--role", choices=ROLES, help="Take the steps of one trainer (internal).")
    args = options.parse_args()
    if args.role:
        in_own_process(args)
        return
    rounds = 1 if args.quick else args.rounds
    settings = {"steps": args.steps, "quick": args.quick, "cpu_clock": args.cpu_clock}
    jobs = [(number, role) for number in range(rounds) for role in (ROLES if number % 2 else ROLES[::-1])]
    rows: list[dict[str, Any]] = []
    for number, role in tqdm(jobs, desc="Processes", unit="process"):
        result = piece(args.work, f"{role}-{number}", settings, lambda role=role: measured(role, args))
        rows.append({"round": number, "role": role, **result})
    how = {"clock": "cpu" if args.cpu_clock else "wall", "dtype": "bfloat16" if has_bf16() else "float32"}
    finish(args, {"rows": rows, **how}, headline_of(rows))


if __name__ == "__main__":
    main()
