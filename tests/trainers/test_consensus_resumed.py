"""A recipe killed in any round, or between two, ends in the same weights, bit for bit; and on two processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.timeout(900),  # waits for a job of several runs
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

ROOT = Path(__file__).resolve().parents[2]
# 48 rows in batches of 8: six steps a round on all rows, checkpoints at 2, 4 and 6.
COMMON: dict[str, Any] = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
CASES: dict[str, dict[str, Any]] = {
    # first round, then two of retraining
    "rounds": {"mode": "consensus", "budget": "steps", "select_on_noisy_eval": False, "rounds": 2},
    # the last step of a round is in the middle of an epoch
    "max_steps": {
        "mode": "consensus",
        "budget": "steps",
        "select_on_noisy_eval": False,
        "max_steps": 4,
        "save_steps": 4,
    },
    # two folds of three strategies, and then the one that was chosen
    "choice": {"mode": "consensus", "selection_folds": 2},
    "cross_fit": {"mode": "full", "select_on_noisy_eval": False, "cross_fit": 2},
}
KILLS: dict[str, list[dict[str, Any]]] = {
    "rounds": [{"kill_at": 1}, {"kill_at": 11}, {"kill_in": 2}],
    "max_steps": [{"kill_end": 1}, {"kill_end": 2}],
    "choice": [{"kill_at": 9}],
    "cross_fit": [{"kill_at": 9}],
}


def job_of(case: str, what: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"id": what, "folder": str(folder), "rows": 48, "changes": COMMON | CASES[case]} | more


def launch(jobs: list[dict[str, Any]], folder: Path, processes: int = 1) -> list[dict[str, Any]]:
    """The results, one dict a process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command, results = [sys.executable, "-m"], folder / "results.json"
    command += ["tests.trainers.run_consensus", str(folder / "jobs.json"), str(results)]
    command += [str(processes)] if processes > 1 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840, check=False)
    files = [results] if processes == 1 else [results.with_suffix(f".{rank}.json") for rank in range(processes)]
    assert all(file.is_file() for file in files), f"exit {done.returncode}\n{done.stderr[-6000:]}"
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def jobs_of(case: str, kills: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """A run that nothing stops, and two for every kill: to it, and from it."""
    jobs = [job_of(case, f"{case}/whole", folder / case / "whole")]
    for number, kill in enumerate(kills):
        place = folder / case / f"cut{number}"
        jobs += [job_of(case, f"{case}/killed{number}", place, **kill), job_of(case, f"{case}/resumed{number}", place)]
    return jobs


def assert_resumed(found: dict[str, Any], case: str, kills: list[dict[str, Any]]) -> None:
    whole = found[f"{case}/whole"]
    assert whole["exit"] == 0
    for number, kill in enumerate(kills):
        killed, resumed = found[f"{case}/killed{number}"], found[f"{case}/resumed{number}"]
        assert killed["exit"] == -9, kill
        assert resumed["exit"] == 0, kill
        assert resumed["weights"] == whole["weights"], kill
        assert resumed["table"] == whole["table"], kill
        if "kill_at" in kill:  # checkpoints are two steps apart
            assert resumed["steps"] <= whole["steps"] - kill["kill_at"] + 2, "it did not go on where it was"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case, in one launch."""
    folder = tmp_path_factory.mktemp("killed")
    return launch([job for case in CASES for job in jobs_of(case, KILLS[case], folder)], folder)[0]


@pytest.mark.parametrize("case", CASES)
def test_killed_recipe_resumes_in_the_right_round_to_the_same_weights(case: str, found: dict[str, Any]) -> None:
    assert_resumed(found, case, KILLS[case])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_killed_recipe_resumes_from_ten_random_moments_and_three_half_written_files(case: str, tmp_path: Path) -> None:
    """A step, beginning or end of a training, a file about to take its name: between rounds and in publishing too."""
    whole = launch([job_of(case, "whole", tmp_path / "count")], tmp_path / "first")[0]["whole"]
    rng = random.Random(case)
    kills: list[dict[str, Any]] = [{"kill_moment": rng.randint(1, whole["moments"])} for _ in range(10)]
    kills += [{"kill_moment": whole["moments"]}, *({"kill_in": n} for n in (1, 2, 3) if n <= 2 or case != "max_steps")]
    print(f"{case}: {len(kills)} kills: {kills}")
    assert_resumed(launch(jobs_of(case, kills, tmp_path), tmp_path)[0], case, kills)


def test_two_processes_take_the_same_rows_and_unlike_ones_are_refused(tmp_path: Path) -> None:
    jobs = [
        job_of("rounds", "alike", tmp_path / "alike", changes=COMMON | CASES["rounds"] | {"rounds": 1}),
        job_of("rounds", "unlike", tmp_path / "unlike", uneven=True),
    ]
    one, two = launch(jobs, tmp_path, processes=2)
    assert one["alike"]["exit"] == two["alike"]["exit"] == 0
    assert one["alike"]["weights"] == two["alike"]["weights"]
    assert one["alike"]["steps"] == 6  # three of four rows a process and step, in each of two rounds
    for found in (one, two):
        assert "the training labels differ between processes 0 and 1" in found["unlike"]["error"]
