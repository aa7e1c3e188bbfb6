"""
Run training jobs in a process of their own, or in two that train together, and write what came of each as JSON.

    python -m tests.distributed.run_trainer jobs.json results.json
    python -m tests.distributed.run_trainer jobs.json results.json 2

A job: `id`, `method` (a name of the registry), `folder`, `rows`, `changes` (to the config), and optionally `kill_at`
(the process sends itself SIGKILL after that many steps, at 0 after the last one and all that training does after it),
`resume` (from the newest checkpoint, if there is one), `dropout`, `streaming`
(the rows come from an `IterableDataset`), `lora` (an adapter is trained) and `nan_at` (after that many steps the
gradient of the last process is NaN; `error` is then what training ended with).
Without a number every job runs in a child of its own, so that a killed one takes nothing with it and a resumed one
starts afresh. A result: `losses` (per optimiser step, over all processes), `weights` (SHA-256 of the trained model),
`state` (SHA-256 of what the next step would start from: optimiser, schedule and random numbers), `fit` (coordinates
of a mixture's restarts), `step` (the last one taken), `logs` (the metrics logged), `exit` (as `subprocess` gives it),
`world`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import TrainerCallback

from hf_ext.guards.world import check_world_size
from hf_ext.moe.em import MixtureFit
from tests.conformance.registry import BY_NAME
from tests.forks import run_together
from tests.trainers.runs import train


class KillAt(TrainerCallback):
    """The power cut: no clean-up, no handler."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class NanGradient(TrainerCallback):
    """The gradient of the first trained parameter is NaN, while the loss is finite, from the step after `step` on."""

    def __init__(self, step: int, steps: int = 1) -> None:
        self.steps = range(step, step + steps)
        self.hook: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            trained = next(value for value in model.parameters() if value.requires_grad)
            self.hook = trained.register_hook(lambda gradient: gradient * float("nan"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


def digest_of(model: torch.nn.Module) -> str:
    """SHA-256 of every parameter, in order."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def state_digest(trainer: Any) -> str:
    """SHA-256 of the optimiser's state, the schedule's, and the random numbers of torch, NumPy and Python."""
    optimizer = trainer.optimizer.state_dict()
    moments = [value for entry in optimizer["state"].values() for value in entry.values()]
    tensors = [value for value in moments if isinstance(value, torch.Tensor)] + [torch.random.get_rng_state()]
    if isinstance(getattr(trainer, "fit", None), MixtureFit):
        tensors += trainer.fit.state_dict().values()
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors))
    digest.update(np.random.get_state()[1].tobytes())  # noqa: NPY002  the state that a checkpoint holds
    digest.update(repr((optimizer["param_groups"], trainer.lr_scheduler.state_dict(), random.getstate())).encode())
    return digest.hexdigest()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end."""
    method, rows = BY_NAME[job["method"]], job["rows"]
    model = method.model(job.get("dropout", 0.0))
    if job.get("streaming"):
        rows = method.rows(rows).to_iterable_dataset()
    if job.get("lora"):
        job["changes"]["kwargs"] = {"peft_config": method.adapter(0.1)}
    trainer = method.build(Path(job["folder"]), rows, model=model, **job["changes"])
    if "kill_at" in job:
        trainer.add_callback(KillAt(job["kill_at"]))
    if "nan_at" in job:
        return run_into_nan(trainer, job["nan_at"])
    resume = job.get("resume") and any(Path(trainer.args.output_dir).glob("checkpoint-*"))
    losses = train(trainer, **({"resume_from_checkpoint": True} if resume else {}))
    mean = trainer.accelerator.gather(torch.tensor(losses, dtype=torch.float64)[None]).mean(dim=0).tolist()
    return {
        "losses": mean,
        "weights": digest_of(trainer.accelerator.unwrap_model(trainer.model)),
        "state": state_digest(trainer),
        "step": trainer.state.global_step,
        "logs": trainer.state.log_history,
        **({"fit": trainer.fit.state.point.tolist()} if isinstance(getattr(trainer, "fit", None), MixtureFit) else {}),
        "world": trainer.accelerator.num_processes,
        "exit": 0,
    }


def run_into_nan(trainer: Any, step: int) -> dict[str, Any]:
    """Train until a gradient of the last process is NaN; every process comes here, or the gathering would wait."""
    if trainer.accelerator.is_last_process:
        trainer.add_callback(NanGradient(step))
    message = ""
    try:
        trainer.train()
    except FloatingPointError as error:
        message = str(error)
    stopped = trainer.accelerator.gather(torch.tensor([bool(message)])).tolist()
    finite = all(bool(torch.isfinite(value).all()) for value in trainer.model.parameters())
    return {"error": message, "stopped": stopped, "finite": finite, "step": trainer.state.global_step, "exit": 0}


def run_in_child(job: dict[str, Any], file: Path) -> dict[str, Any]:
    """Train one job in a forked child: the parent has imported everything and started nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file.write_text(json.dumps(run(job)), encoding="utf-8")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(file.read_text(encoding="utf-8")) if code == 0 else {"exit": code}


def main() -> None:
    """Run the jobs of the first argument into the second."""
    jobs, results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    found = {}
    torch.set_num_threads(1)
    gc.freeze()  # a full collection, with which every training begins, is then quick

    def run_all() -> None:
        for job in jobs:
            found[job["id"]] = run(job)
            check_world_size(world)
        if os.environ["RANK"] == "0":
            results.write_text(json.dumps(found), encoding="utf-8")

    if len(sys.argv) > 3:
        world = int(sys.argv[3])
        run_together(run_all, world)
        return
    for job in jobs:
        found[job["id"]] = run_in_child(job, results.with_suffix(".job.json"))
        results.with_suffix(".job.json").unlink(missing_ok=True)
    results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
