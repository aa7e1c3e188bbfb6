"""Start `run_trainer` and read its results; each batch of jobs runs once however many test workers ask for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
LIMIT = 840  # seconds: a launch takes about one minute on a free core, and test machines are shared


def launch(jobs: list[dict[str, Any]], folder: Path, processes: int = 1) -> dict[str, dict[str, Any]]:
    """Run the jobs in `folder` on that many processes over gloo, and return their results by id."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.json"
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "tests.distributed.run_trainer", str(folder / "jobs.json"), str(results)]
    command += [str(processes)] if processes > 1 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert results.is_file(), f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(results.read_text(encoding="utf-8"))


def launch_once(
    name: str, jobs_in: Any, tmp_path_factory: pytest.TempPathFactory, processes: int = 1
) -> dict[str, dict[str, Any]]:
    """`launch(jobs_in(folder))`, once a test session; other workers of pytest-xdist wait and read the results."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if (folder / "results.json").is_file():
            return json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return launch(jobs_in(folder), folder, processes)
