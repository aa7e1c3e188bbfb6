"""Jobs of a test that may kill their process: each in a fork, so that imports are paid once."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run_jobs(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """
    Run the jobs of the file that the first argument names, and write what they return into the second.

    Under torchrun every process runs all of them, without forks, and writes a file of its own.
    """
    jobs, results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = {job["id"]: run(job) for job in jobs}
        results.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
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
