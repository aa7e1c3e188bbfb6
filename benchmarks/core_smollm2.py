"""
What is the CORE of a small instruction-tuned model?

SmolLM2-135M-Instruct in float32, protocol `foundry`, the first 100 rows of each of the 23 tasks at hand, 16 of them of
CORE (all of their rows with `--all`; a run with it goes on where one without it ended). No CORE of this model is
published, and 16 tasks on some of their rows are not CORE: the figures are to be compared with this table only.

Last line, one JSON object:
  benchmark, tasks, rows
  core16_v2, core16_v2_error      mean of centred accuracies by DCLM's baselines of 2025, and its standard error
  core16_v1, core16_v1_error      the same by those of the paper
  tasks_above_guessing            tasks whose accuracy is more than two standard errors above guessing, by v2
  rows_cut                        rows whose prompt lost its beginning, at 2,048 tokens
  process_minutes                 CPU minutes of all tasks together

    python benchmarks/core_smollm2.py            # within 90 minutes on 2 cores; a killed run goes on
    python benchmarks/core_smollm2.py --quick    # seconds, a tiny model, not the claim
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from common import data_folder, finish, parser, piece
from core_speed import QUICK_TASKS, model_and_tokenizer
from tqdm.auto import tqdm

from hf_ext.evaluation.core import CORE_TASKS, CoreReport, TaskResult, evaluate_core
from hf_ext.evaluation.core.task_files import load_tasks

ROWS = 100


def headline_of(report: CoreReport, cpu_s: float) -> dict[str, Any]:
    """Figures of the report."""
    scores = report.scores().values()
    cut = sum(round(task.truncated * task.rows) for task in report.tasks)
    return {
        "benchmark": "core_smollm2",
        "tasks": len(report.tasks),
        "rows": sum(task.rows for task in report.tasks),
        **{score.name: round(score.value, 5) for score in scores},
        **{f"{score.name}_error": round(score.standard_error, 5) for score in scores},
        "tasks_above_guessing": sum(task.centered() > 2 * task.centered_error() for task in report.tasks),
        "rows_cut": cut,
        "process_minutes": round(cpu_s / 60, 1),
    }


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "", "core_smollm2")
    options.add_argument("--all", action="store_true", help="All rows that the files have, not the first 100.")
    arguments = options.parse_args()
    data = data_folder() / "core_eval"
    max_rows = None if arguments.all else 3 if arguments.quick else ROWS
    labels = QUICK_TASKS if arguments.quick else [rows.task.label for rows in load_tasks(data, "all")]
    model, tokenizer = model_and_tokenizer(arguments.quick)
    records = arguments.work / ("records-quick" if arguments.quick else "records")
    tasks = []
    settings: dict[str, Any] = {}
    cpu_s = 0.0

    def compute(label: str) -> dict[str, Any]:
        started = time.process_time()
        report = evaluate_core(model, tokenizer, data, tasks=label, max_rows=max_rows, output_dir=records)
        return {
            "task": asdict(report.tasks[0]),
            "settings": report.settings,
            "cpu_s": time.process_time() - started,
        }

    for label in tqdm(labels, desc="task"):
        facts = {"max_rows": max_rows, "quick": arguments.quick}
        result = piece(arguments.work, label, facts, lambda label=label: compute(label))
        tasks.append(TaskResult.from_dict(result["task"]))
        settings = result["settings"]
        cpu_s += result["cpu_s"]
    report = CoreReport(tasks, settings | {"model": "SmolLM2-135M-Instruct"})
    print(report)
    rows = [
        asdict(task)
        | {"centered_v2": task.centered("v2"), "centered_v1": task.centered("v1"), "is_core": task.label in CORE_TASKS}
        for task in tasks
    ]
    finish(arguments, {"rows": rows, "settings": report.settings}, headline_of(report, cpu_s))


if __name__ == "__main__":
    main()
