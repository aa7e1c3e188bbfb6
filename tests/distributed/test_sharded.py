"""
A model that two processes share trains as that of one process does, and what is saved is a stock model.

`accelerate launch` starts them with the shipped config. Two things of it a CPU cannot have: bfloat16
(`--mixed_precision no`), and accelerate's own decision to shard, which it takes on accelerators alone
(`run_sharded.sharding_accelerator`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_ext.recipes.files import find_accelerate_config
from tests.conformance.registry import BY_NAME, WITH_GRADIENT
from tests.distributed.lines import (
    LINES,
    OTHERS,
    PAGE,
    SAVED_AT,
    STEPS,
    Line,
    changes_of,
    jobs_of,
    with_table,
)
from tests.trainers.runs import train, weights_of

ROOT = Path(__file__).parents[2]
LIMIT = 1500  # seconds: a launch takes about two minutes on free cores, and test machines are shared
TOLERANCE = 1e-5
Results = dict[str, dict[str, Any]]

pytestmark = pytest.mark.timeout(1800)
every_line = pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)


def launch(config: str, jobs: list[dict[str, Any]], folder: Path) -> list[Results]:
    """`accelerate launch` of two processes with a config of the package; the results of each process."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(find_accelerate_config(config)),
    ]
    command += ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
    command += ["-m", "tests.distributed.run_sharded", str(folder / "jobs.json"), str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    interface = "lo0" if sys.platform == "darwin" else "lo"
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": interface}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (folder / "log").write_text(done.stdout + done.stderr, encoding="utf-8")
    return [json.loads((folder / f"results.{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes work."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """The results of every job, of the first process; the second one ended alike."""
    first, second = launch("fsdp2", jobs_of(folder), folder)
    is_killed = {name for name, result in first.items() if name.endswith("/killed")}
    log = (folder / "log").read_text(encoding="utf-8")[-6000:]
    for outcomes in (first, second):
        assert {name for name, result in outcomes.items() if result["exit"]} == is_killed, log
    return first


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], Any]]:
    """Losses and model of runs in this process alone, by the id of the job; filled as tests ask."""
    return {}


def run_whole(line: Line, lora: bool, runs: dict[str, Any], folder: Path) -> tuple[list[float], Any]:
    """The same run in one process with batches of the same rows, once."""
    name = f"{line.name}/{'lora' if lora else 'whole'}"
    if name not in runs:
        method = BY_NAME[line.name]
        kwargs = {"peft_config": method.adapter()} if lora else {}
        trainer = method.build(folder / "one" / name, line.rows, **changes_of(line, 4), kwargs=kwargs)
        runs[name] = (train(trainer), trainer)
    return runs[name]


@every_line
def test_each_loss_of_two_processes_that_share_the_model_is_that_of_one(
    line: Line, results: Results, whole_runs: dict, folder: Path
) -> None:
    shared = results[f"{line.name}/whole"]
    assert (shared["world"], shared["version"]) == (2, 2)
    num_sharded, num_parameters = shared["sharded"]
    assert num_sharded == num_parameters >= 20, "not every parameter is a DTensor"
    num_sharded, num_parameters = shared["originals"]
    assert num_sharded == num_parameters
    assert num_parameters >= 20 * line.num_copies
    assert (num_parameters > 0) == (line.num_copies > 0)
    losses, trainer = run_whole(line, False, whole_runs, folder)
    assert len(losses) == len(shared["losses"]) == STEPS
    assert np.abs(np.subtract(losses, shared["losses"])).max() <= TOLERANCE
    before = weights_of(BY_NAME[line.name].model())
    moved = [float((value - before[name]).abs().max()) for name, value in weights_of(trainer.model).items()]
    assert min(moved) > 1e-4, "a parameter has not moved: equal losses would mean little"


@every_line
def test_a_killed_run_resumes_to_the_same_losses_and_saves_a_stock_model(
    line: Line, results: Results, whole_runs: dict, folder: Path
) -> None:
    assert results[f"{line.name}/killed"]["exit"] == -9
    checkpoints = sorted(path.name for path in (folder / line.name / "killed" / "out").glob("checkpoint-*"))
    assert checkpoints == [f"checkpoint-{SAVED_AT}", f"checkpoint-{STEPS}"]
    resumed = results[f"{line.name}/resumed"]["losses"]
    assert len(resumed) == STEPS - SAVED_AT
    # Sums over processes are of the same two numbers: what is resumed is exact.
    assert resumed == results[f"{line.name}/whole"]["losses"][SAVED_AT:]
    loaded = weights_of(AutoModelForCausalLM.from_pretrained(folder / line.name / "killed" / "saved"))
    _, trainer = run_whole(line, False, whole_runs, folder)
    for name, weight in weights_of(trainer.model).items():
        assert float((loaded[name] - weight).abs().max()) <= 1e-4, name


@every_line
def test_an_adapter_of_a_sharded_model_trains_as_in_one_process_and_stock_classes_open_it(
    line: Line, results: Results, whole_runs: dict, folder: Path
) -> None:
    shared = results[f"{line.name}/lora"]
    num_sharded, num_parameters = shared["sharded"]
    assert num_sharded == num_parameters >= 28
    assert shared["originals"] == [0, 0], "without its adapters the model is the original: no copy is needed"
    losses, trainer = run_whole(line, True, whole_runs, folder)
    assert np.abs(np.subtract(losses, shared["losses"])).max() <= TOLERANCE
    loaded = weights_of(PeftModel.from_pretrained(BY_NAME[line.name].model(), folder / line.name / "lora" / "saved"))
    for name, weight in weights_of(trainer.model).items():
        assert float((loaded[name] - weight).abs().max()) <= 1e-4, name
    assert any(name.endswith("lora_B.default.weight") and bool(weight.any()) for name, weight in loaded.items())


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("moe_em", ("FSDP",)),
        ("flow_stream", ("stream", "hf-ext data flow-weights")),
        ("states", ("original_cache_dir under FSDP2", "train without it")),
    ],
)
def test_what_does_not_work_on_a_sharded_model_is_refused_by_name(
    job: str, words: tuple[str, ...], results: Results
) -> None:
    assert all(word in results[job]["error"] for word in words), results[job]["error"]


def test_the_page_has_the_table_of_the_lines() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "python -m tests.distributed.lines writes it anew"
    tested = {line.name for line in LINES} | set(OTHERS)
    # Variants of a method that has a line, and classifiers, which are small enough for one device.
    variants = {"flow_tokens", "context_free_budget", "context_free_top_up"}
    # The penalty refuses sharded weights (tests/comparison).
    assert set(BY_NAME) - tested == variants | {"penalty", "consensus", "weighted_classification"}
    assert {line.name for line in LINES} <= set(WITH_GRADIENT)


def test_a_gathered_parameter_is_as_it_was() -> None:
    from hf_ext._upstream.sharding import reshard, whole

    model = torch.nn.Linear(3, 2)
    assert whole(model.weight) is model.weight
    reshard(model)
    assert list(dict(model.named_parameters())) == ["weight", "bias"]
