"""
Run the consensus recipe in processes that may be killed, and write what came of each run as JSON.

    python -m tests.trainers.run_consensus jobs.json results.json
    python -m tests.trainers.run_consensus jobs.json results.json 2

A job: `id`, `folder`, `changes` (to the config), `rows`, and optionally where the process sends itself SIGKILL:
`kill_at` (after that many optimiser steps of the whole run), `kill_end` (where the n-th training ends, before anything
is made of it), `kill_moment` (at the n-th moment: a training begins, takes a step or ends, or a file of the run is
about to take its name), `kill_in` (in the n-th saving of predictions: half of them written). `uneven`: each process
gets labels of its own. Without a number of processes each job runs in a forked child.
A result: `exit`, `weights` (SHA-256 of the file in `output_dir`), `table` (rounds.md), `steps` (taken here), and
`moments` (passed here).
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_ext.data.relabeling import RRChannel
from hf_ext.rounds import consensus
from hf_ext.rounds.consensus import ConsensusRecipe
from tests.forks import run_jobs
from tests.trainers.classifiers import consensus_config, labelled_rows, tiny_bert

EPSILON = 1.2


class KillAt(TrainerCallback):
    """The power cut after so many steps, ends of trainings, or moments, whichever round they belong to."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.taken, self.ends, self.moments = job, 0, 0, 0
        for name in ("replace", "rename"):
            original = getattr(os, name)

            def hooked(source: Any, target: Any, *, original: Any = original, **kwargs: Any) -> None:
                if str(target).startswith(job["folder"]):
                    self.moment()
                original(source, target, **kwargs)

            setattr(os, name, hooked)

    def moment(self) -> None:
        self.moments += 1
        self.cut("kill_moment", self.moments)

    def cut(self, name: str, count: int) -> None:
        if self.job.get(name) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.moment()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken += 1
        self.cut("kill_at", self.taken)
        self.moment()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends += 1
        self.cut("kill_end", self.ends)
        self.moment()


def kill_in_saving(number: int) -> None:
    """The power cut in the n-th saving of predictions: they are written, the round's report is not."""
    save = consensus.save_predictions
    count = [0]

    def save_half(folder: Path, name: str, columns: Dataset) -> None:
        save(folder, name, columns)
        count[0] += 1
        if count[0] == number:
            file = next((folder / f"predictions-{name}").glob("*.arrow"))
            os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    consensus.save_predictions = save_half


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One run to its end."""
    if "kill_in" in job:
        kill_in_saving(job["kill_in"])
    seed = 1 + (int(os.environ.get("RANK", "0")) if job.get("uneven") else 0)
    rows = labelled_rows(job["rows"], 0.3, seed)
    counter = KillAt(job)
    folder = Path(job["folder"])
    try:
        ConsensusRecipe(
            Trainer,
            lambda: tiny_bert(hidden_dropout_prob=0.1),
            consensus_config(folder, **job["changes"]),
            rows,
            channel=RRChannel(EPSILON, 3),
            callbacks=[counter],
        ).run()
    except RuntimeError as error:
        return {"exit": 1, "error": str(error)}
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    table = (folder / "rounds.md").read_text(encoding="utf-8")
    return {"exit": 0, "weights": digest, "table": table, "steps": counter.taken, "moments": counter.moments}


if __name__ == "__main__":
    run_jobs(run)
