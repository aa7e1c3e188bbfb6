"""Killed and resumed, or on two processes, a mixture draws the same rows and leaves the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import LIMIT, ROOT

SAVING = {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 3e-3}
# Rows of the three sources: 110. With 8 or 16 rows a step the run is in its first epoch, with 4 x 4 x 2 beyond it.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"host": "sft", "changes": {}},
    "workers": {"host": "sft", "changes": {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2}},
    "second epoch": {"host": "sft", "changes": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16}},
    "packed": {"host": "weighted", "changes": {"packing": True, "gradient_accumulation_steps": 2}},
    "blocks": {"host": "sft", "changes": {}, "settings": {"reward": "probe_drop"}},
    "dpo": {"host": "dpo", "changes": {}},
    "classifier": {"host": "classifier", "changes": {"gradient_accumulation_steps": 2}},
}


def launch(jobs: list[dict[str, Any]], folder: Path, *processes: str) -> dict[str, Any]:
    """Results of jobs by id, or on several processes a list of them, one for each process."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "tests.trainers.mixture.run_mixture", str(folder / "jobs.json")]
    results = folder / "results.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(results), *processes], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT,
        check=False,
    )  # fmt: skip
    names = [results.with_suffix(f".{rank}.json") for rank in range(int(processes[0]))] if processes else [results]
    assert all(name.is_file() for name in names), done.stdout[-2000:] + done.stderr[-6000:]
    answers = [json.loads(name.read_text(encoding="utf-8")) for name in names]
    return {"ranks": answers} if processes else answers[0] | {"stderr": done.stderr[-6000:]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each case whole, killed after step 6, and gone on with."""
    folder = tmp_path_factory.mktemp("mixtures")
    jobs = []
    for name, case in CASES.items():
        job = case | {"changes": SAVING | case["changes"]}
        place = str(folder / f"{name} killed")
        jobs += [
            job | {"id": f"{name} whole", "folder": str(folder / name)},
            job | {"id": f"{name} killed", "folder": place, "kill_at": 6},
            job | {"id": f"{name} resumed", "folder": place, "resume": True},
        ]
    return launch(jobs, folder)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_same_sources_and_weights(name: str, runs: dict[str, Any]) -> None:
    whole, killed, resumed = (runs[f"{name} {part}"] for part in ("whole", "killed", "resumed"))
    assert killed["exit"] == -9
    assert whole["exit"] == resumed["exit"] == 0, runs["stderr"]
    assert whole["step"] == resumed["step"] == 10
    assert whole["sources"] == resumed["sources"]
    assert whole["state"] == resumed["state"]
    assert whole["weights"] == resumed["weights"]


def test_two_processes_draw_one_source_a_micro_batch_and_observe_what_one_process_does(tmp_path: Path) -> None:
    """8 rows of one process are 4 of each of two: the same alignments, and the same choices, without a measurement."""
    changes = {"max_steps": 3, "gradient_accumulation_steps": 2}
    job = {"host": "sft", "settings": {"floor_share": 1 / 3}}
    alone = job | {"id": "a", "folder": str(tmp_path / "a"), "changes": changes | {"per_device_train_batch_size": 8}}
    shared = job | {"id": "a", "folder": str(tmp_path / "b"), "changes": changes}
    whole = launch([alone], tmp_path)["a"]
    first, second = (answers["a"] for answers in launch([shared], tmp_path, "2")["ranks"])
    assert (first["world"], whole["world"]) == (2, 1)
    assert first["sources"] == second["sources"] == whole["sources"]
    assert first["weights"] == second["weights"]
    assert first["state"] == second["state"]
    assert first["alignments"] == second["alignments"]
    assert first["alignments"] == pytest.approx(whole["alignments"], rel=1e-5, abs=1e-6)
