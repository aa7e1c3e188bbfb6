"""A folder or file that one process writes at a time: claimed with a lock, let go when the process ends, however."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_ext.guards.disk import refuse_unwritable

logger = logging.getLogger(__name__)

LOCK = ".hf-ext.lock"  # hidden: no push takes `.hf-ext*` along, and no check for an empty folder may count it
_CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_held: set[tuple[str, int]] = set()  # lock and thread: a run claims its folder, and its trainer the same one again

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # filelock >= 4 closes the child's copy of the lock, too


class InUseError(ValueError):
    """Another process writes there; the message names the place, the process and what to do."""


@contextmanager
def claimed_folder(
    folder: str | os.PathLike[str], *, waits: bool = False, then: str = "or name another folder"
) -> Iterator[None]:
    """
    Hold `folder`, made where it is missing, for writing; the lock lies in it, as `.hf-ext.lock`, and goes at the end.

    The system lets go of it when the process ends, by `kill -9` too; a process forked inside does not hold it. Inside,
    the same thread may claim the folder again. Processes on several machines see each other where their shared file
    system carries `flock` between machines (NFS 4 and Lustre, mostly; NFS 3 without its lock daemon does not); where
    it knows no locks at all, a warning says that nothing was claimed.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        waits (`bool`, *optional*, defaults to `False`):
            Whether to wait, with a line in the log, for the process that holds it: for a cache that it is about to
            finish.
        then (`str`, *optional*):
            What else to do than wait, for the message.

    Raises:
        InUseError: another process holds it, and `waits` is not set.
        NotWritableError: the place cannot be written: read-only, no permission, a file where a folder should be.
    """
    folder = Path(folder)
    with _claimed(folder / LOCK, folder, waits, then):
        yield


@contextmanager
def claimed_file(
    path: str | os.PathLike[str], *, waits: bool = False, then: str = "or name another"
) -> Iterator[None]:
    """
    Hold the name `path`, of a file or of a folder that is renamed to it, as [`claimed_folder`] does.

    The lock lies beside it. What killed processes left of [`~hf_ext.guards.disk.replacing`] is removed.

    Raises:
        InUseError: another process holds it, and `waits` is not set.
        NotWritableError: the place cannot be written: read-only, no permission, a file where a folder should be.
    """
    path = Path(path)
    with _claimed(path.with_name(f".hf-ext-{path.name}.lock"), path, waits, then):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield


def is_lock(name: str) -> bool:
    """Whether a file's name is that of a lock."""
    return name.startswith(".hf-ext") and name.endswith(".lock")


@contextmanager
def _claimed(lock: Path, place: Path, waits: bool, then: str) -> Iterator[None]:
    from filelock import FileLock, Timeout  # imported here: `hf-ext --help` does without

    key = str(lock.resolve()), threading.get_ident()
    if key in _held:
        yield
        return
    handle = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle.acquire(timeout=0)
        except Timeout:
            if not waits:
                raise InUseError(
                    f"{place} is being written by {_holder(lock)}. Wait until it has ended, {then}."
                ) from None
            logger.warning("%s is being written by %s: waiting until it has ended.", place, _holder(lock))
            handle.acquire()
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            refuse_unwritable(error, place)
            raise
        logger.warning(
            "The file system of %s knows no locks (%s): see yourself that no other process writes there.", place, error
        )
        yield
        return
    try:
        _held.add(key)
        with suppress(OSError):  # for the message alone; Windows lets nobody write into a locked file
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # A fork that leaves by this way, too, holds nothing.
        if key in _held:
            _held.discard(key)
            with suppress(OSError):
                lock.unlink()  # while it is held: who waits for it looks whether its file is still there
            handle.release()


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")[:200] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
