"""Killed while it saves, stopped by SIGTERM, out of disk: every trainer goes on from a whole checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hf_ext.guards.checkpoints import checkpoints_in, find_damage, is_sealed
from tests.conformance.registry import TRAINERS

pytestmark = [
    pytest.mark.timeout(900),  # waits for a job of several runs, which the first test to come starts
    pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX"),
]
ROOT = Path(__file__).parents[2]
NAMES = [method.name for method in TRAINERS]
every_trainer = pytest.mark.parametrize("name", NAMES)

# 24 rows in batches of 4: 6 steps an epoch. One checkpoint is kept: losing it would lose the run.
CHANGES = {
    "max_steps": 12, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 1, "seed": 40,
    "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "linear",
}  # fmt: skip
# Killed in that phase of saving checkpoint-8, with checkpoint-4 before it: the step a run goes on from.
USED = {
    "model.safetensors": 4, "optimizer.pt": 4, "scheduler.pt": 4, "rng_state.pth": 4, "trainer_state.json": 4,
    "before the manifest": 4, "in the manifest": 4, "after the manifest": 8, "in the rotation": 8,
}  # fmt: skip
# Every phase, SIGTERM in every step, and a full disk, of every trainer are in the slow suite.
BY_DEFAULT = {name: ["optimizer.pt"] for name in NAMES}
BY_DEFAULT[NAMES[0]] += ["before the manifest", "in the rotation"]
STOPPED = ["weighted_sft", "infopo"]  # a trainer of TRL's for SFT, and one for preferences
SIGTERM = {"enable_jit_checkpoint": True, "save_strategy": "no"}


def run_jobs(jobs: list[dict[str, Any]], folder: Path, processes: int = 1) -> dict[str, dict[str, Any]]:
    """Run jobs in children of a process of their own, or in several processes; the results of the last of these."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command, results = [sys.executable, "-m"], folder / "results.json"
    command += ["tests.conformance.interruptions", str(folder / "jobs.json"), str(results)]
    command += [str(processes)] if processes > 1 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840, check=False)
    results = results if processes == 1 else results.with_suffix(f".{processes - 1}.json")
    assert results.is_file(), f"exit {done.returncode}\n{done.stderr[-6000:]}"
    return json.loads(results.read_text(encoding="utf-8"))


def job_of(name: str, what: str, folder: Path, **more: Any) -> dict[str, Any]:
    changes = CHANGES | more.pop("changes", {})
    return {"id": f"{name}/{what}", "method": name, "folder": str(folder), "rows": 24, "changes": changes} | more


def cut_jobs(folder: Path, name: str, phases: Iterable[str]) -> list[dict[str, Any]]:
    jobs = []
    for phase in phases:
        place = folder / name / phase.replace(" ", "_")
        jobs += [
            job_of(name, f"{phase}/killed", place, phase=phase, at=8),
            job_of(name, f"{phase}/resumed", place, resume=True),
        ]
    return jobs


def full_jobs(folder: Path, name: str) -> list[dict[str, Any]]:
    full = folder / name / "full"
    return [job_of(name, "full", full, room_at=5, room=200_000), job_of(name, "full/resumed", full, resume=True)]


def sigterm_jobs(folder: Path, name: str, steps: list[int], **changes: Any) -> list[dict[str, Any]]:
    jobs = [job_of(name, "sigterm/whole", folder / name / "sigterm_whole", changes=changes)]
    for step in steps:
        place = folder / name / f"sigterm_{step}"
        jobs += [
            job_of(name, f"sigterm/{step}/stopped", place, sigterm_at=step, changes=changes | SIGTERM),
            job_of(name, f"sigterm/{step}/resumed", place, resume=True, changes=changes | SIGTERM),
        ]
    return jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, dict[str, Any]]:
    """Each trainer whole, killed while saving, stopped, out of disk; and resumed each time: one process."""
    jobs = []
    for name in NAMES:
        jobs += [job_of(name, "whole", place / name / "whole")]
        jobs += cut_jobs(place, name, BY_DEFAULT[name])
        jobs += sigterm_jobs(place, name, [9])[1:] if name in STOPPED else []
    jobs += full_jobs(place, NAMES[0])
    jobs += [job_of(NAMES[0], "save", place / "save", room=50_000, changes={"max_steps": 1, "save_strategy": "no"})]
    return run_jobs(jobs, place)


# --- killed while saving ---------------------------------------------------------------------------------------------


def assert_cut_and_resumed(results: dict[str, Any], name: str, phase: str, folder: Path) -> None:
    killed, resumed = results[f"{name}/{phase}/killed"], results[f"{name}/{phase}/resumed"]
    assert killed["exit"] == -9, killed
    assert resumed["exit"] == 0, resumed
    assert resumed["first"] == USED[phase] + 1
    assert resumed["weights"] == results[f"{name}/whole"]["weights"]
    warned = [text for text in resumed["warnings"] if "checkpoint-8" in text and "hf_ext_checkpoint.json" in text]
    assert bool(warned) == (USED[phase] == 4), resumed["warnings"]
    assert [path.name for path in checkpoints_in(folder / "out")] == ["checkpoint-12"]
    assert find_damage(folder / "out" / "checkpoint-12") is None


@pytest.mark.parametrize(("name", "phase"), [(name, phase) for name in NAMES for phase in BY_DEFAULT[name]])
def test_killed_while_saving_it_resumes_to_the_same_weights(name: str, phase: str, results: dict, place: Path) -> None:
    assert_cut_and_resumed(results, name, phase, place / name / phase.replace(" ", "_"))


@pytest.mark.slow
@every_trainer
def test_killed_in_any_phase_of_saving_it_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    found = run_jobs([job_of(name, "whole", tmp_path / "whole"), *cut_jobs(tmp_path, name, USED)], tmp_path)
    for phase in USED:
        assert_cut_and_resumed(found, name, phase, tmp_path / name / phase.replace(" ", "_"))


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


def assert_stopped_and_resumed(results: dict, whole: str, name: str, step: int) -> None:
    stopped, resumed = results[f"{name}/sigterm/{step}/stopped"], results[f"{name}/sigterm/{step}/resumed"]
    assert stopped["exit"] == 143, stopped
    assert f"stopped after step {step}" in stopped["warnings"][-1]
    assert resumed["first"] == step + 1, resumed
    assert resumed["weights"] == results[whole]["weights"]


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_by_sigterm_it_resumes_to_the_same_weights(name: str, results: dict, place: Path) -> None:
    assert_stopped_and_resumed(results, f"{name}/whole", name, 9)
    assert is_sealed(place / name / "sigterm_9" / "out" / "checkpoint-9")


@pytest.mark.slow
@every_trainer
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "epoch"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ],
    ids=["plain", "eval", "eval_each_epoch", "accumulation"],
)
def test_stopped_at_any_step_it_resumes_to_the_same_weights(name: str, changes: dict, tmp_path: Path) -> None:
    steps = list(range(1, 12))
    found = run_jobs(sigterm_jobs(tmp_path, name, steps, **changes), tmp_path)
    for step in steps:
        assert_stopped_and_resumed(found, f"{name}/sigterm/whole", name, step)


# --- two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_agree_on_the_whole_checkpoint(tmp_path: Path) -> None:
    """SIGTERM reaches one process alone; then a file of one process is damaged, which only the other looks at."""
    name, place, changes = (
        NAMES[0],
        tmp_path / "cut",
        CHANGES | {"max_steps": 6, "save_steps": 2, "save_total_limit": 3},
    )
    changes |= {"per_device_train_batch_size": 2, "enable_jit_checkpoint": True}
    first = run_jobs(
        [
            job_of(name, "whole", tmp_path / "whole", changes=changes),
            job_of(name, "stopped", place, changes=changes, sigterm_at=3),
        ],
        tmp_path / "first", processes=2,
    )  # fmt: skip
    assert first[f"{name}/stopped"]["exit"] == 143, first
    assert [path.name for path in checkpoints_in(place / "out")] == ["checkpoint-3", "checkpoint-2"]
    file = place / "out" / "checkpoint-3" / "rng_state_1.pth"
    file.write_bytes(file.read_bytes()[:-1])
    again = run_jobs([job_of(name, "resumed", place, changes=changes, resume=True)], tmp_path / "again", processes=2)
    assert again[f"{name}/resumed"]["first"] == 3
    assert again[f"{name}/resumed"]["weights"] == first[f"{name}/whole"]["weights"]


# --- a full disk -----------------------------------------------------------------------------------------------------


def assert_out_of_disk_and_resumed(results: dict, name: str) -> None:
    full, resumed = results[f"{name}/full"], results[f"{name}/full/resumed"]
    assert full["error"] == "DiskFullError"
    for words in ("a checkpoint", "checkpoint-8", "free", "needed", "checkpoint-4 is whole", "resume"):
        assert words in full["message"], full["message"]
    assert "\n" not in full["message"]
    assert resumed["first"] == 5
    assert not [text for text in resumed["warnings"] if "checkpoint" in text], "the unfinished one was not removed"
    assert resumed["weights"] == results[f"{name}/whole"]["weights"]


def test_out_of_disk_while_saving_it_says_so_and_resumes_to_the_same_weights(results: dict) -> None:
    assert_out_of_disk_and_resumed(results, NAMES[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_out_of_disk_every_trainer_says_so_and_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    found = run_jobs([job_of(name, "whole", tmp_path / "whole"), *full_jobs(tmp_path, name)], tmp_path)
    assert_out_of_disk_and_resumed(found, name)


def test_out_of_disk_the_model_saved_before_is_as_it_was(results: dict, place: Path) -> None:
    found = results[f"{NAMES[0]}/save"]
    assert found["error"] == "DiskFullError", found
    for words in ("the model", str(place / "save"), "free", "needed", "intact"):
        assert words in found["message"], found["message"]
    now = {path.name: path.stat().st_mtime_ns for path in (place / "save" / "out").iterdir()}
    assert now == found["saved"]
