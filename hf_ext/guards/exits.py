"""What a command says and returns when something goes wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_ext.guards.disk import DiskFullError, is_disk_full, is_refused
from hf_ext.guards.engines import BackendError
from hf_ext.guards.extras import missing_extra
from hf_ext.guards.processes import forks_end_with_us
from hf_ext.guards.streams import OutputError

# What a user can put right by typing something else. NotImplementedError and the like are ours.
INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)

TRACEBACK_VARIABLE = "HF_EXT_TRACEBACK"
SIGTERM_STATUS = 143  # 128 + 15, as a shell reports a process that ended by SIGTERM

_KEY = re.compile(r"[0-9a-fA-F]{48,}")


def without_keys(text: str) -> str:
    """A message in which nothing that may be a secret key is repeated: it was typed in the wrong place."""
    return _KEY.sub("(not shown: it looks like a key)", text)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process with status 143 by an exception, as Ctrl-C does: what is half-written goes."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other one set a handler
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _is_of_chat_template(error: Exception) -> bool:
    """Whether it came up while transformers (5.23) rendered a template: that came with the model, and is no bug."""
    step = error.__traceback__
    while step is not None:
        if os.path.basename(step.tb_frame.f_code.co_filename) == "chat_template_utils.py":
            return True
        step = step.tb_next
    return False


def _is_of_packages(error: Exception) -> bool:
    """Whether a package is missing that a setting asks for; a name that a package lacks is no mistake of the user."""
    if not isinstance(error, ImportError):
        return False
    return (error.name or "").partition(".")[0] != "hf_ext" and "cannot import name" not in str(error)


def _is_of_killed_worker(error: Exception) -> bool:
    """Whether a process that shared the work was killed, as the system does where memory runs out."""
    from concurrent.futures import BrokenExecutor

    return isinstance(error.__cause__, BrokenExecutor)


def exit_status(command: Callable[[], int | None], prog: str) -> int:
    """
    Run a command and turn its errors into a message and an exit status.

    Args:
        command (`Callable[[], int | None]`):
            The command; its result is the exit status, `None` means 0.
        prog (`str`):
            Name in front of the message.

    Returns:
        `int`: 2 after an error of the input or of a chat template, a missing package, or a place that cannot be read
        or written (message on stderr, no traceback, unless `HF_EXT_TRACEBACK=1`), 1 after values that are not finite,
        where a disk is full, where an engine that samples failed or was refused, and where a process that shared the
        work was killed, 130 after Ctrl-C. Any other error
        passes through, with its traceback.
    """
    try:
        with forks_end_with_us():
            return _status(command, prog)
    except BaseException as error:
        if not _is_interrupted(error):
            raise
        if os.environ.get("RANK", "0") == "0":  # one line, not one a process
            print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C's, or was raised in cleaning up after it, as by the workers of `Dataset.map`."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _status(command: Callable[[], int | None], prog: str) -> int:
    try:
        return int(command() or 0)
    except Exception as error:
        if _is_interrupted(error) or isinstance(error, OutputError):
            raise
        full, in_template, of_packages = is_disk_full(error), _is_of_chat_template(error), _is_of_packages(error)
        is_broken = isinstance(error, FloatingPointError | BackendError) or _is_of_killed_worker(error)
        is_known = full or in_template or of_packages or is_broken or is_refused(error)
        if not (is_known or isinstance(error, INPUT_ERRORS)):
            raise
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        message = " ".join(str(missing_extra(error) or error).split()) if of_packages else str(error)
        if in_template:
            message = f"the tokenizer's chat template fails: {type(error).__name__}: {message}"
        if full and not isinstance(error, DiskFullError):  # of a host library's own file, such as a cache
            message = (
                f"no room on a disk ({message}). Free some space, or choose another disk by the command's options, "
                "HF_DATASETS_CACHE, HF_HOME or TMPDIR, and run again."
            )
        print(f"{prog}: error: {without_keys(message)}", file=sys.stderr)
        return 1 if full or is_broken else 2
