"""What ends the launcher ends its workers: signals, a kill, and the status that comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

ROOT = Path(__file__).resolve().parents[2]
LINUX = sys.platform == "linux"

# Case of `run_launches`: exit status, and words of what is said.
ENDS = {
    "SIGINT": (130, "hf-ext train x: interrupted; its processes have ended"),
    "SIGKILL": (-9, ""),
    "saves at SIGTERM": (143, "ended by SIGTERM"),
    "no end, grace over": (143, "ended by SIGTERM"),
    "status 3": (3, ""),
    "accelerate": (129, "hf-ext train x: ended by SIGHUP; its processes have ended"),
}
SLOW_ENDS = {
    "SIGTERM": (143, "hf-ext train x: ended by SIGTERM; its processes have ended"),
    "no end, twice": (130, "interrupted"),
    "accelerate, status 3": (3, ""),
}
if not LINUX:
    ENDS.pop("SIGKILL")  # a signal of Linux at a parent's end


def launched(folder: Path, cases: Iterable[str]) -> dict[str, Any]:
    """What came of each case."""
    command = [sys.executable, "-m", "tests.cli.run_launches", str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo" if LINUX else "lo0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launched(tmp_path_factory.mktemp("launches"), ENDS)


def assert_ended(result: dict[str, Any], status: int, words: str) -> None:
    assert result["status"] == status, result["stderr"]
    assert result["alive"] == 0
    assert words in result["stderr"]
    assert "Traceback" not in result["stderr"]


@pytest.mark.parametrize("case", ENDS)
def test_no_worker_is_left_and_the_status_says_why(launches: dict[str, Any], case: str) -> None:
    assert_ended(launches[case], *ENDS[case])


@pytest.mark.slow
def test_so_it_is_with_other_signals_and_launchers(tmp_path: Path) -> None:
    results = launched(tmp_path, SLOW_ENDS)
    for case, end in SLOW_ENDS.items():
        assert_ended(results[case], *end)


def test_workers_that_save_at_sigterm_are_waited_for(launches: dict[str, Any]) -> None:
    assert launches["saves at SIGTERM"]["ended"] == 2
    assert launches["accelerate"]["ended"] == 1


MAPPING = """
import sys, time
from datasets import Dataset
from hf_ext.guards.exits import exit_status

def slow(row):
    open(sys.argv[1], "a").close()
    time.sleep(60)

sys.exit(exit_status(lambda: Dataset.from_dict({"a": [1, 2]}).map(slow, num_proc=2) and 0, "hf-ext data x"))
"""


@pytest.mark.parametrize(
    "name", ["SIGINT", pytest.param("SIGKILL", marks=pytest.mark.skipif(not LINUX, reason="of Linux alone"))]
)
def test_workers_of_a_map_end_with_their_process(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MAPPING, str(tmp_path / "begun")]
    # A session of its own, and the signal to all of it, as a terminal's Ctrl-C.
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _wait(lambda: (tmp_path / "begun").exists())
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    if name == "SIGINT":
        assert (process.returncode, err) == (130, "hf-ext data x: interrupted\n")
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left


def _wait(condition: Any) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
