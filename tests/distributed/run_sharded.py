"""
Train in two processes that share the parameters of the model (FSDP2, over gloo), and write what came of each job.

    python -m tests.distributed.run_sharded jobs.json results.json 2

A job: `id`, `method` (a name of the registry), `folder`, `rows` and `changes` (to the config). A result: `losses` (per
optimiser step, mean of the processes), `sharded` (parameters that are in parts, and all), `world`.
Each process writes a file of its own; the model of a job is saved in `folder/saved`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers.trainer
import yaml
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from torch.distributed.tensor import DTensor

from hf_ext.recipes.files import find_accelerate_config
from tests.conformance.registry import BY_NAME
from tests.forks import run_jobs
from tests.trainers.runs import train


def plugin() -> FullyShardedDataParallelPlugin:
    """What `--accelerate_config fsdp2` says, without a launcher, which would hand it over in the environment."""
    settings = yaml.safe_load(find_accelerate_config("fsdp2").read_text())["fsdp_config"]
    return FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        state_dict_type=settings["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
        transformer_cls_names_to_wrap=["Qwen3DecoderLayer"],
    )


def sharding_accelerator(**kwargs: Any) -> Accelerator:
    """An accelerator that shards on processors, where accelerate would quietly copy the model to each process."""
    kwargs.pop("fsdp_plugin", None)
    accelerator = Accelerator(**kwargs)
    assert accelerator.num_processes > 1
    for state in (PartialState, AcceleratorState):  # accelerate has it in both
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin()
    return accelerator


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job to its end, and save its model."""
    transformers.trainer.Accelerator = sharding_accelerator
    trainer = BY_NAME[job["method"]].build(Path(job["folder"]), job["rows"], **job["changes"])
    losses = train(trainer)
    parameters = list(trainer.model.parameters())
    mean = trainer.accelerator.gather(torch.tensor(losses, dtype=torch.float64)[None]).mean(dim=0).tolist()
    trainer.save_model(str(Path(job["folder"]) / "saved"))
    return {
        "losses": mean,
        "sharded": [sum(isinstance(value, DTensor) for value in parameters), len(parameters)],
        "world": trainer.accelerator.num_processes,
    }


if __name__ == "__main__":
    run_jobs(run)
