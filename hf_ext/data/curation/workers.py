"""One function over many tasks, here or in processes: a few tasks ahead, so that memory holds them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from hf_ext.guards.processes import forks_end_with_us

Task = tuple[Any, ...]

_functions: list[Callable[..., int]] = []  # of this worker process


def run_tasks(
    function: Callable[..., int], tasks: Iterable[Task], num_proc: int, report: Callable[[int], Any]
) -> None:
    """
    Call `function` with every task; in any order where there are several processes.

    Args:
        function (`Callable`):
            Leaves its result on the disk and returns how many rows it was given. A process gets it once, not with each
            task: it may hold a large index.
        tasks (`Iterable[tuple]`):
            Arguments; taken as they are needed.
        num_proc (`int`):
            Processes; with 1 everything happens in this one.
        report (`Callable[[int], Any]`):
            Told the rows of each task that is over.

    Raises:
        RuntimeError: if a process was killed, which the system does where memory runs out.
    """
    if num_proc == 1:
        for task in tasks:
            report(function(*task))
        return
    # A fork takes the steps along as they are; `datasets` forks too. Windows and macOS start anew.
    context = get_context("fork" if "fork" in get_all_start_methods() and sys.platform == "linux" else "spawn")
    with forks_end_with_us(), ProcessPoolExecutor(num_proc, context, _begin, (function,)) as pool:
        pending: set[Future[int]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(_call, task))
                if len(pending) >= 2 * num_proc:
                    pending = _reported(pending, report)
            while pending:
                pending = _reported(pending, report)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process was killed, most likely by the system because memory ran out. The chunks before are kept: "
                "run again with a smaller num_proc."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def peak_bytes() -> int:
    """Most memory that this process has held; 0 where the system does not say."""
    try:
        # of this process alone: `ru_maxrss` starts at the size of the process that it was forked from
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return int(match[1]) * 1024 if match else 0
    except OSError:
        if sys.platform == "win32":
            return 0
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024


def _begin(function: Callable[..., int]) -> None:
    _functions.append(function)


def _call(task: Task) -> int:
    return _functions[-1](*task)


def _reported(pending: set[Future[int]], report: Callable[[int], Any]) -> set[Future[int]]:
    over, waiting = wait(pending, return_when=FIRST_COMPLETED)
    for future in over:
        report(future.result())
    return waiting
