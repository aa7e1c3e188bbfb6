"""
Run training jobs that are interrupted while they save, and write what came of each as JSON.

    python -m tests.conformance.interruptions jobs.json results.json
    python -m tests.conformance.interruptions jobs.json results.json 2

Without a number of processes each job runs in a forked child, which may be killed.

A job: `id`, `method`, `folder`, `rows`, `changes`, and optionally one of

- `phase`: the process kills itself while it saves `checkpoint-{at}`: half-way in the file of that name, or before the
  manifest, in it, after it, or while an older checkpoint is removed (`USED` of the tests);
- `sigterm_at`: it sends itself SIGTERM in that step, of several processes the last one alone;
- `room_at`, `room`: from that step on no file may grow past `room` bytes (a real limit of the system);
- `room`, alone: the same after training and a first `save_model`, for a second one of other weights;
- `resume`: `true`, or the name of a checkpoint in the output folder.

A result: `exit`, `weights` (SHA-256), `first` (the first step trained), `warnings`, `error` and `message`.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers.modeling_utils
from transformers import TrainerCallback, TrainerState

from hf_ext.guards.checkpoints import SEAL_NAME
from hf_ext.trainers.base import trainer as base_trainer
from tests.conformance.registry import BY_NAME
from tests.distributed.run_trainer import digest_of
from tests.forks import run_jobs
from tests.tiny import tiny_model
from tests.trainers.runs import TOKENIZER


def power_cut(file: str | Path | None = None) -> None:
    """Leave half of `file`, and end: no clean-up, no handler."""
    if file is not None:
        os.truncate(file, os.path.getsize(file) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in(phase: str, at: int) -> None:
    """Have the process killed in that phase of saving `checkpoint-{at}`."""
    folder = f"checkpoint-{at}"

    def half(write: Callable[..., Any], position: int) -> Callable[..., Any]:
        """`write`, whose argument at `position` is a file: half of it is all that gets there."""

        def written(*args: Any, **kwargs: Any) -> Any:
            result = write(*args, **kwargs)
            file = Path(args[position])
            if file.name == phase and file.parent.name == folder:
                power_cut(file)
            return result

        return written

    torch.save = half(torch.save, 1)
    TrainerState.save_to_json = half(TrainerState.save_to_json, 1)  # type: ignore[method-assign]
    transformers.modeling_utils.safe_save_file = half(transformers.modeling_utils.safe_save_file, 1)
    seal, replace, rmtree = base_trainer.seal, os.replace, shutil.rmtree

    def sealed(path: Path) -> None:
        if path.name == folder and phase == "before the manifest":
            power_cut()
        seal(path)
        if path.name == folder and phase == "after the manifest":
            power_cut()

    def replaced(source: Any, target: Any) -> None:
        if phase == "in the manifest" and Path(target).name == SEAL_NAME and Path(target).parent.name == folder:
            power_cut(source)
        replace(source, target)

    def removed(path: Any, *args: Any, **kwargs: Any) -> None:
        if phase == "in the rotation" and Path(path).name == f"checkpoint-{at - 4}":
            (Path(path) / "trainer_state.json").unlink()
            power_cut()
        rmtree(path, *args, **kwargs)

    base_trainer.seal, os.replace, base_trainer.shutil.rmtree = sealed, replaced, removed  # type: ignore[assignment]


class Interrupt(TrainerCallback):
    """SIGTERM, or a full disk, in a step; and the first step that is trained."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.first = job, -1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        self.first = step if self.first < 0 else self.first
        if step == self.job.get("room_at"):
            leave_room(self.job["room"])
        last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if step == self.job.get("sigterm_at") and last:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # the host's timer fires in this step


def leave_room(size: int) -> None:
    """No file may grow past `size` bytes; Python ignores the signal that comes with the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Listening(logging.Handler):
    """Collects warnings of ours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end, or to its interruption."""
    heard = Listening()
    logging.getLogger("hf_ext").addHandler(heard)
    if "phase" in job:
        kill_in(job["phase"], job["at"])
    method, folder = BY_NAME[job["method"]], Path(job["folder"])
    model = tiny_model(TOKENIZER, attention_dropout=0.1)
    changes = dict(job["changes"])
    if changes.get("eval_strategy"):
        changes["kwargs"] = {"eval_dataset": method.rows(8)}
    trainer = method.build(folder, job["rows"], model=model, **changes)
    interrupt = Interrupt(job)
    trainer.add_callback(interrupt)
    if trainer.stop_on_sigterm is not None:
        trainer.stop_on_sigterm.jit_manager.kill_wait = 0
    resume = job.get("resume")
    result: dict[str, Any] = {"exit": 0, "warnings": heard.said}
    try:
        trainer.train(resume_from_checkpoint=str(folder / "out" / resume) if isinstance(resume, str) else resume)
        if "room" in job and "room_at" not in job:
            trainer.save_model()
            result["saved"] = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
            with torch.no_grad():
                next(trainer.model.parameters()).add_(1)
            leave_room(job["room"])
            trainer.save_model()
    except SystemExit as stopped:
        result["exit"] = stopped.code
    except Exception as error:
        result |= {"exit": 1, "error": type(error).__name__, "message": str(error)}
    return result | {"weights": digest_of(trainer.model), "first": interrupt.first}


if __name__ == "__main__":
    run_jobs(run)
