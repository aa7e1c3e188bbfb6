"""
Train in two processes that share the parameters of the model (FSDP2, over gloo), and write what came of each job.

    accelerate launch --config_file fsdp2.yaml --num_processes 2 -m tests.distributed.run_sharded jobs.json results

A job: `id`, `method` (a name of the registry), `folder`, `rows`, `changes` (to the config), and optionally `lora` (an
adapter is trained), `kill_at` (every process sends itself SIGKILL after that many steps), `resume` (from the newest
checkpoint) and `save` (the model, in `folder/saved`). Each job runs in forks of the launched processes, so that a
killed one takes nothing with it and imports are paid once. A result: `losses` (per optimiser step, mean of the
processes), `sharded` (parameters that are in parts, and all), `originals` (the same of the frozen copy that some
methods hold), `version` (of FSDP, as the launcher said it), `world`, `exit`; `error`, where the trainer refused.
Each process writes a file of its own into `results`.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers.trainer
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tests.conformance.registry import BY_NAME
from tests.distributed.run_trainer import KillAt
from tests.forks import forked
from tests.trainers.runs import train


def sharding_accelerator(**kwargs: Any) -> Accelerator:
    """An accelerator that shards on processors, where accelerate would quietly copy the model to each process."""
    kwargs.pop("fsdp_plugin", None)
    accelerator = Accelerator(**kwargs)
    assert accelerator.num_processes > 1
    for state in (PartialState, AcceleratorState):  # accelerate has it in both
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # of the environment, as the launcher filled it
    return accelerator


def sharded_of(*models: torch.nn.Module | None) -> tuple[int, int]:
    """How many parameters of models are in parts, once a forward is over, and how many there are."""
    modules = [module for model in models if model is not None for module in model.modules()]
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()
    are_parts = [isinstance(value, DTensor) for module in modules for value in module.parameters(recurse=False)]
    return sum(are_parts), len(are_parts)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end, and save its model."""
    transformers.trainer.Accelerator = sharding_accelerator
    method = BY_NAME[job["method"]]
    changes = dict(job["changes"])
    rows = job["rows"]
    if job.get("lora"):
        changes["kwargs"] = {"peft_config": method.adapter()}
    if job.get("streaming"):
        rows = method.rows(rows).to_iterable_dataset()
    try:
        trainer = method.build(Path(job["folder"]), rows, **changes)
        if "kill_at" in job:
            trainer.add_callback(KillAt(job["kill_at"]))
        losses = train(trainer, **({"resume_from_checkpoint": True} if job.get("resume") else {}))
    except ValueError as error:
        return {"error": str(error), "exit": 0}
    mean = trainer.accelerator.gather(torch.tensor(losses, dtype=torch.float64)[None]).mean(dim=0).tolist()
    if job.get("save"):
        trainer.save_model(str(Path(job["folder"]) / "saved"))
    original = getattr(trainer, "original", None)
    return {
        "losses": mean,
        "sharded": sharded_of(trainer.model),
        "originals": sharded_of(getattr(trainer, "ref_model", None), getattr(original, "frozen", None)),
        "version": trainer.accelerator.state.fsdp_plugin.fsdp_version,
        "world": trainer.accelerator.num_processes,
        "exit": 0,
    }


def port_of(job: int, folder: Path, rank: int) -> str:
    """A free port that the first process chooses, and tells the others by a file."""
    file = folder / f"port.{job}"
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            file.with_suffix(f".{job}.new").write_text(str(probe.getsockname()[1]), encoding="utf-8")
        file.with_suffix(f".{job}.new").replace(file)
    while not file.is_file():
        time.sleep(0.01)
    return file.read_text(encoding="utf-8")


def main() -> None:
    """Run the jobs of the first argument, one after the other, each in a fork."""
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    gc.freeze()  # a full collection, with which every training begins, is then quick
    outcomes: dict[str, Any] = {}

    def work(job: dict[str, Any], port: str, file: Path) -> None:
        # Of this job's own: the launcher's rendezvous is for one group, and a killed process would leave it broken.
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"})
        file.write_text(json.dumps(run(job)), encoding="utf-8")

    for number, job in enumerate(jobs):
        file = folder / f"job.{number}.{rank}.json"
        child = forked(partial(work, job, port_of(number, folder, rank), file))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes[job["id"]] = json.loads(file.read_text(encoding="utf-8")) if code == 0 else {"exit": code}
    (folder / f"results.{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
