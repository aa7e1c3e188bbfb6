"""Processes that end with the one they belong to: no worker goes on alone, whatever ended its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LAUNCHER_VARIABLE = "HF_EXT_LAUNCHER"  # number of the process whose end is that of its workers
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork, after which little is safe
_parents: list[int] = []


@contextmanager
def forks_end_with_us() -> Iterator[None]:
    """
    Inside, processes forked from here (workers of `Dataset.map` or of a data loader) leave Ctrl-C to this one.

    They print no traceback of their own, and end when this one does, by `kill -9` too (Linux): a pool's workers
    otherwise wait for work for ever.
    """
    _parents.append(os.getpid())
    try:
        yield
    finally:
        _parents.pop()


def end_with_launcher() -> None:
    """
    In a worker of `hf-ext train --num_processes N`: get SIGTERM when the launcher dies, by `kill -9` too (Linux).

    Raises:
        SystemExit: if the launcher is gone already.
    """
    number = os.environ.get(LAUNCHER_VARIABLE, "")
    if _libc is None or not number.isdecimal():
        return
    if os.getppid() == int(number):
        _end_with_parent(signal.SIGTERM)  # under `enable_jit_checkpoint` it saves first
    if not os.path.exists(f"/proc/{number}"):
        raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent(signal_number: int) -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal_number)


def _after_fork() -> None:
    if _parents:
        parent = _parents[-1]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(signal.SIGKILL)
        if _libc is not None and os.getppid() != parent and not os.path.exists(f"/proc/{parent}"):
            os._exit(128 + signal.SIGTERM)  # it died in between
        _parents[:] = [os.getpid()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
