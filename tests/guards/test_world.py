"""A launch that gives fewer processes than promised, or ones that train apart, exits non-zero and says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ext.guards.world import check_world_size

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys
from accelerate import PartialState
from hf_ext.guards.world import check_world_size
if os.environ.get("JOIN"):
    PartialState(cpu=True)  # what TrainingArguments(use_cpu=True) does
processes = check_world_size(int(sys.argv[1]) if sys.argv[1:] else None)
os.write(1, f"WORLD {processes}\\n".encode())  # one write: two processes share this pipe
"""
CPU_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_machines: 1
machine_rank: 0
num_processes: 2
use_cpu: true
main_process_ip: 127.0.0.1
main_process_port: 29511
mixed_precision: 'no'
"""
DROPPED = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_USE_CPU",
    "HF_EXT_NUM_PROCESSES",
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch"]


def launch(tmp_path: Path, prefix: list[str], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(tmp_path / "home"),
        **variables,
    }
    command = [sys.executable, *prefix, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow  # tests/recipes/test_training.py starts two processes that pass
@pytest.mark.parametrize("expected", ["2", ""], ids=["given", "from-environment"])
def test_torchrun_with_two_joined_processes_passes(tmp_path, expected):
    done = launch(tmp_path, TORCHRUN, *filter(None, [expected]), JOIN="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WORLD 2") == 2


def test_torchrun_processes_that_train_apart_are_stopped(tmp_path):
    done = launch(tmp_path, TORCHRUN)
    assert done.returncode != 0
    assert "promises 2 processes, but 1 trains together" in done.stderr
    assert "each trains apart" in done.stderr
    assert "use_cpu=True" in done.stderr


@pytest.mark.parametrize("how", ["config", pytest.param("arguments", marks=pytest.mark.slow)])
def test_accelerate_launch_that_degrades_to_one_process_is_stopped(tmp_path, how):
    config = tmp_path / "cpu.yaml"
    config.write_text(CPU_CONFIG)
    options = ["--config_file", str(config)] if how == "config" else ["--cpu", "--num_processes", "2"]
    done = launch(tmp_path, [*ACCELERATE, *options])
    assert done.returncode != 0
    assert "WORLD" not in done.stdout
    assert "asked for more than one process" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr


def test_accelerate_launch_of_one_process_passes(tmp_path):
    done = launch(tmp_path, [*ACCELERATE, "--cpu", "--num_processes", "1"])
    assert done.returncode == 0, done.stderr
    assert "WORLD 1" in done.stdout


@pytest.mark.slow
def test_promise_in_the_environment_is_held_against_a_degraded_launch(tmp_path):
    done = launch(tmp_path, [*ACCELERATE, "--cpu", "--num_processes", "3"], HF_EXT_NUM_PROCESSES="3")
    assert done.returncode != 0
    assert "HF_EXT_NUM_PROCESSES promises 3 processes, but 1 trains together" in done.stderr
    assert "torchrun --nproc_per_node 3" in done.stderr


def test_plain_python_is_one_process(monkeypatch):
    for name in DROPPED:
        monkeypatch.delenv(name, raising=False)
    assert check_world_size() == check_world_size(1) == 1
    with pytest.raises(RuntimeError, match="The caller promises 2 processes, but 1 trains together"):
        check_world_size(2)


def test_promise_that_is_no_number_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        check_world_size(0)
    monkeypatch.setenv("HF_EXT_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="HF_EXT_NUM_PROCESSES must be a number of processes >= 1, got 'two'"):
        check_world_size()
