"""Jobs of a test that may kill their process: each in a fork, so that imports are paid once."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


def run_jobs(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """
    Run the jobs of the file that the first argument names, and write what they return into the second.

    A third argument is the number of processes: each runs all jobs, and writes a file of its own.
    """
    jobs, results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    torch.set_num_threads(1)
    gc.freeze()  # a full collection, with which every training begins, is then quick
    found: dict[str, Any] = {}

    def run_all() -> None:
        outcomes = {job["id"]: run(job) for job in jobs}
        results.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(outcomes), encoding="utf-8")

    if len(sys.argv) > 3:
        run_together(run_all, int(sys.argv[3]))
        return
    for job in jobs:
        file = results.with_suffix(".job.json")
        child = os.fork()
        if child == 0:
            try:
                file.write_text(json.dumps(run(job)), encoding="utf-8")
            except BaseException:
                traceback.print_exc()
                os._exit(99)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found[job["id"]] = json.loads(file.read_text(encoding="utf-8")) if code == 0 else {"exit": code}
        file.unlink(missing_ok=True)
    results.write_text(json.dumps(found), encoding="utf-8")


def forked(work: Callable[[], Any]) -> int:
    """Number of a process that runs `work` and ends: status 0, or 99 after an error, which it prints."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_together(work: Callable[[], Any], processes: int = 2) -> None:
    """
    Run `work` in forks that find what `torchrun` tells its processes; raises where one fails, which ends the others.

    `torchrun` itself, whose processes import everything anew, is started by `tests/recipes/test_training.py`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}

    def joined(rank: int) -> None:
        os.environ.update(world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        work()

    running = {forked(partial(joined, rank)) for rank in range(processes)}
    is_broken = False
    while running:
        for child in sorted(running):
            number, status = os.waitpid(child, os.WNOHANG)
            if number and status:
                is_broken = True
                for other in running - {child}:  # it would wait for the one that is gone
                    os.kill(other, signal.SIGKILL)
            running -= {number}
        time.sleep(0.02)
    if is_broken:
        raise RuntimeError("one of the processes that work together has failed; what it printed says why")
