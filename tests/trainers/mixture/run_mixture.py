"""
Run trainings on a mixture in processes of their own, some of which are killed.

    python -m tests.trainers.mixture.run_mixture jobs.json results.json [processes]

A job: `id`, `host` (of `sources.HOSTS`), `folder`, `changes` to the configuration, `settings` of the mixture, and
optionally `kill_at` (SIGKILL after that step's checkpoint) and `resume`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transformers import TrainerCallback

from tests.distributed.run_trainer import digest_of
from tests.forks import run_jobs
from tests.trainers.mixture.sources import HOSTS, mixture


class KillAfterSave(TrainerCallback):
    """The power cut, when a checkpoint is whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end."""
    mix = mixture(**job["settings"]) if "settings" in job else None
    trainer = HOSTS[job["host"]](Path(job["folder"]), mix, **job["changes"])
    if "kill_at" in job:
        trainer.add_callback(KillAfterSave(job["kill_at"]))
    trainer.train(resume_from_checkpoint=True if job.get("resume") else None)
    return {
        "weights": digest_of(trainer.accelerator.unwrap_model(trainer.model)),
        "sources": trainer.mixture.batch_sources,
        "state": trainer.mixture.state_dict(),
        "alignments": trainer.feedback.alignments,
        "world": trainer.accelerator.num_processes,
        "step": trainer.state.global_step,
        "exit": 0,
    }


if __name__ == "__main__":
    run_jobs(run)
