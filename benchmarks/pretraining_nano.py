"""
Does one command make a model of shards in minutes, and the same one where it is killed?

`pretraining/nano_1x` on the articles of `wikitext2`, detokenised, and the documents of `web_docs`, packed with a
tokenizer of 1,024 tokens made of them: `hf-ext train pretraining` as a user types it, with CORE on the first 20 rows
of each of the 16 tasks at hand. Then the same command again, killed by SIGKILL at the checkpoint in the middle and
resumed.

Last line, one JSON object:
  benchmark, tokens
  minutes, process_minutes  of the undisturbed command, on the clock and of the processors  (goal: minutes <= 15)
  first_loss, last_loss     of its curve, nats a token
  core16_v2, core16_v2_error, core_rows
  has_card                  whether the card tells of CORE
  killed_at_step            the checkpoint from which the killed command went on
  identical_weights         whether both end in the same file of weights, bit for bit       (goal: true)

    python benchmarks/pretraining_nano.py            # 30 minutes on 2 cores; a killed run goes on
    python benchmarks/pretraining_nano.py --quick    # a minute, few tokens, not the claim
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from common import finish, parser, piece
from curation_quality import TEXT_DOCS, detokenised, rows_of
from nano_runs import ON_CPU, QUICK_SIZE, core_folder, launch, minutes_of, nano_tokenizer

CORE_ROWS = 20
SAVE_STEPS = 100
KILL_STEP = 300  # of 712
LENGTH = 512
QUICK = (*QUICK_SIZE, "--max_steps", "6")
LAST_OF_CHECKPOINT = "hf_ext_checkpoint.json"


def make_shards(folder: Path, quick: bool) -> None:
    """Pack the documents, unless they are."""
    from datasets import Dataset

    from hf_ext import pack

    texts = [detokenised(row["text"]) for row in rows_of("wikitext2/validation.jsonl.gz")]
    texts += [row["text"] for row in rows_of(TEXT_DOCS)]
    texts = texts[::30] if quick else texts
    length = int(QUICK_SIZE[1]) if quick else LENGTH
    pack(Dataset.from_dict({"text": texts}), nano_tokenizer(texts), folder, sequence_length=length)


def outcome(folder: Path) -> dict[str, Any]:
    """What lies in the folder of a run that has ended."""
    from hf_ext.evaluation.core import CoreReport
    from hf_ext.trainers.pretraining.curve import TrainingCurve

    curve = TrainingCurve.load(folder / "report")
    core = CoreReport.load(folder / "report")
    score = core.score()
    args = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
    return {
        "tokens": args["max_steps"] * curve.tokens_per_step,  # the last log line may be some steps before the end
        "curve": [{"step": step, "loss": loss} for step, loss in zip(curve.steps, curve.losses, strict=True)],
        "core": {"name": score.name, "value": score.value, "error": score.standard_error},
        "core_rows": sum(task.rows for task in core.tasks),
        "has_card": "## DCLM CORE" in (folder / "README.md").read_text(encoding="utf-8"),
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }


def run_of(options: argparse.Namespace, shards: Path, kill_step: int | None) -> dict[str, Any]:
    """The command from its beginning, killed behind the checkpoint of a step and resumed where there is one."""
    folder = options.work / ("undisturbed" if kill_step is None else "killed")
    records = options.work / f"{folder.name}-launches"
    for place in (folder, records):  # of a benchmark that was killed: a run is timed whole
        shutil.rmtree(place, ignore_errors=True)
    words = ["train", "pretraining", *ON_CPU, "--config", "pretraining/nano_1x", "--dataset_name", shards]
    words += ["--output_dir", folder, "--core_data", core_folder(options.work, options.quick)]
    words += ["--core_max_rows", 2 if options.quick else CORE_ROWS]
    words += ["--save_steps", 2 if options.quick else SAVE_STEPS, *(QUICK if options.quick else ())]
    if kill_step is not None:
        last_file = folder / f"checkpoint-{kill_step}" / LAST_OF_CHECKPOINT
        launch(words, records, last_file.exists)
        if (folder / "model.safetensors").exists():
            raise SystemExit("The command was killed too late to show anything.")
        words += ["--resume_from_checkpoint", "true"]
    launch(words, records)
    return outcome(folder) | minutes_of(records)


def headline_of(runs: dict[str, dict[str, Any]], kill_step: int) -> dict[str, Any]:
    """The headline from both runs."""
    run = runs["undisturbed"]
    return {
        "benchmark": "pretraining_nano",
        "tokens": run["tokens"],
        "minutes": run["minutes"],
        "process_minutes": run["process_minutes"],
        "first_loss": round(run["curve"][0]["loss"], 4),
        "last_loss": round(run["curve"][-1]["loss"], 4),
        run["core"]["name"]: round(run["core"]["value"], 5),
        f"{run['core']['name']}_error": round(run["core"]["error"], 5),
        "core_rows": run["core_rows"],
        "has_card": run["has_card"],
        "killed_at_step": kill_step,
        "identical_weights": run["weights"] == runs["killed"]["weights"],
    }


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__ or "", "pretraining_nano").parse_args()
    if options.quick:
        options.work /= "quick"
    shards = options.work / "shards"
    make_shards(shards, options.quick)
    kill_step = 2 if options.quick else KILL_STEP
    runs = {}
    for name, step in (("undisturbed", None), ("killed", kill_step)):
        runs[name] = piece(options.work, name, {}, lambda step=step: run_of(options, shards, step))
        print(json.dumps({"run": name, **{k: v for k, v in runs[name].items() if k != "curve"}}), flush=True)
    rows = [{"run": name, **point} for name, run in runs.items() for point in run["curve"]]
    facts = {name: {k: v for k, v in run.items() if k != "curve"} for name, run in runs.items()}
    finish(options, {"rows": rows, "runs": facts}, headline_of(runs, kill_step))


if __name__ == "__main__":
    main()
