"""
Launch workers as `hf-ext train --num_processes 2` does, send signals to the launchers, and write what came of each.

    python -m tests.cli.run_launches FOLDER CASE...

Every case of `CASES` is a launcher in a fork of its own, so that imports are paid once; all run side by side. Writes
`FOLDER/results.json`: case to `status`, `stderr`, `alive` (workers when the launcher has ended) and `ended` (how many
wrote a file at SIGTERM).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hf_ext.cli import launching

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
MORE = ("--mixed_precision", "no", "--dynamo_backend", "no")
# Case: launcher, what its workers do, the signals it gets, seconds of grace.
CASES: dict[str, tuple[tuple[str, ...], str, tuple[int, ...], int]] = {
    "SIGTERM": (TORCHRUN, "wait", (signal.SIGTERM,), 60),
    "SIGINT": (TORCHRUN, "wait", (signal.SIGINT,), 60),
    "SIGKILL": (TORCHRUN, "wait", (signal.SIGKILL,), 60),
    "saves at SIGTERM": (TORCHRUN, "save", (signal.SIGTERM,), 60),
    "no end, grace over": (TORCHRUN, "ignore", (signal.SIGTERM,), 1),
    "no end, twice": (TORCHRUN, "ignore", (signal.SIGINT, signal.SIGINT), 60),
    "status 3": (TORCHRUN, "fail", (), 60),
    "accelerate": ((*ACCELERATE, *MORE), "save", (signal.SIGHUP,), 60),
    "accelerate, status 3": ((*ACCELERATE, *MORE), "fail", (), 60),
}


def launcher(folder: Path, how: tuple[str, ...], work: str, grace: int) -> int:
    """Number of the process that launches."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        with (folder / "stderr").open("wb") as file:
            os.dup2(file.fileno(), 2)
        launching.GRACE = grace
        command = [sys.executable, "-m", *how, "-m", "tests.cli.launched", str(folder), work]
        status = launching.launch(command, {}, "hf-ext train x")
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "a launch took too long"
        time.sleep(0.02)


def workers(folder: Path) -> list[int]:
    return [int(file.name.split("-")[1]) for file in folder.glob("worker-*")]


def main(root: Path, names: list[str]) -> None:
    """Those cases."""
    cases = {name: CASES[name] for name in names}
    launchers, results = {}, {}
    for case, (how, work, _signals, grace) in cases.items():
        (root / case).mkdir()
        launchers[case] = launcher(root / case, how, work, grace)
    for case, (how, _work, signals, _grace) in cases.items():
        count = 2 if how is TORCHRUN else 1
        wait_for(lambda folder=root / case, count=count: len(workers(folder)) == count)  # type: ignore[misc]
        for number, name in enumerate(signals):
            if number:  # once the first was passed on
                wait_for(lambda folder=root / case: list(folder.glob("asked-*")))  # type: ignore[misc]
                time.sleep(0.2)
            os.kill(launchers[case], name)
    for case, number in launchers.items():
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        at_once = sum(map(psutil.pid_exists, workers(root / case)))
        if "SIGKILL" in case:  # nobody waits for them
            wait_for(lambda folder=root / case: not any(map(psutil.pid_exists, workers(folder))), 20)  # type: ignore[misc]
            at_once = 0
        results[case] = {
            "status": status,
            "stderr": (root / case / "stderr").read_text(encoding="utf-8"),
            "alive": at_once,
            "ended": len(list((root / case).glob("saved-*"))),
        }
    (root / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
