"""Locks of what one process writes at a time, let go of by the system when the process ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ext.guards.disk import is_refused, unwritable

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger(__name__)

LOCK = ".hf-ext.lock"  # hidden: no push takes `.hf-ext*` along, and no check for an empty folder may count it
_CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_claims: set[tuple[str, int]] = set()  # lock and thread: a run claims its folder, and its trainer the same one again

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_claims.clear)  # filelock >= 4 closes the child's copy of the lock, too


class InUseError(ValueError):
    """Another process writes there; the message names the place, the process and what to do."""


def is_lock(name: str) -> bool:
    """Whether a file's name is that of a lock."""
    return name.startswith(".hf-ext") and name.endswith(".lock")


@contextmanager
def locked(lock: Path, place: Path, waits: bool, remedy: str) -> Iterator[None]:
    """
    Hold a lock; a process forked inside does not, and the same thread may take it again.

    Args:
        lock (`Path`):
            Its file, made where it is missing, with the folders above it, and removed at the end.
        place (`Path`):
            What it stands for, for messages.
        waits (`bool`):
            Whether to wait for the process that holds it.
        remedy (`str`):
            What else to do than wait, for the message.

    Raises:
        InUseError: if another process holds it, and `waits` is not set.
        NotWritableError: if its file cannot be made.
    """
    from filelock import FileLock  # imported here: `hf-ext --help` does without

    key = os.path.realpath(lock), threading.get_ident()  # Path.resolve raises a RuntimeError for links in a circle
    if key in _claims:
        yield
        return
    handle = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        is_held = _acquired(handle)
        if not is_held and not lock.exists():
            lock.touch()  # refused where no file can be made: filelock takes that for a lock of somebody else
            is_held = _acquired(handle)
        if not is_held and not waits:
            raise InUseError(f"{place} is being written by {_holder(lock)}. Wait until it has ended, or {remedy}.")
        if not is_held:
            logger.warning("%s is being written by %s: waiting until it has ended.", place, _holder(lock))
            handle.acquire()
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            if is_refused(error) or error.errno == errno.ENOENT:  # the folder is there: /proc answers so
                raise unwritable(error, place) from error
            raise
        logger.warning(
            "The file system of %s knows no locks (%s): see yourself that no other process writes there.", place, error
        )
        yield
        return
    try:
        _claims.add(key)
        with suppress(OSError):  # for the message alone; Windows lets nobody write into a locked file
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # A fork that leaves by this way, too, holds nothing.
        if key in _claims:
            _claims.discard(key)
            with suppress(OSError):
                lock.unlink()  # while it is held: who waits for it looks whether its file is still there
            handle.release()


def _acquired(handle: FileLock) -> bool:
    from filelock import Timeout

    try:
        handle.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")[:200] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
