"""A folder or file that one process writes at a time: claimed with a lock, let go when the process ends, however."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hf_ext.guards.disk import is_refused, unwritable

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

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
    is_new = not os.path.exists(folder)  # unlike Path.exists it takes a name that is too long
    try:
        with _claimed(folder / LOCK, folder, waits, then):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # goes only where nothing was written


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
        remove_leftovers(path.parent, glob.escape(path.name))
        yield


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what killed processes left of writing files of that name; who calls holds the claim to write them."""
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


@contextmanager
def claimed_output(args: Any) -> Iterator[None]:
    """
    Hold the `output_dir` of a training for this run: the processes that train together are one.

    Args:
        args (`TrainingArguments`):
            With `output_dir` and `should_save`: the processes that save claim it, one, or one on each machine.

    Raises:
        InUseError: another run writes there; on every process.
        NotWritableError: the folder cannot be written.
    """
    from accelerate.utils import gather_object

    refusal: Exception | None = None
    with ExitStack() as stack:
        if args.should_save:
            try:
                stack.enter_context(claimed_folder(args.output_dir, then="or choose another output_dir"))
            except (InUseError, OSError) as error:
                refusal = error
        for found in gather_object([refusal]):
            if found is not None:
                raise found
        yield


def claims_output(method: Callable[P, T]) -> Callable[P, T]:
    """A method that trains, of an object with `args`: it holds their `output_dir`, as [`claimed_output`] does."""

    @wraps(method)
    def claiming(*args: P.args, **kwargs: P.kwargs) -> T:
        owner: Any = args[0]
        with claimed_output(owner.args):
            return method(*args, **kwargs)

    return claiming


def is_lock(name: str) -> bool:
    """Whether a file's name is that of a lock."""
    return name.startswith(".hf-ext") and name.endswith(".lock")


@contextmanager
def _claimed(lock: Path, place: Path, waits: bool, then: str) -> Iterator[None]:
    from filelock import FileLock  # imported here: `hf-ext --help` does without

    key = str(lock.resolve()), threading.get_ident()
    if key in _held:
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
            raise InUseError(f"{place} is being written by {_holder(lock)}. Wait until it has ended, {then}.")
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
