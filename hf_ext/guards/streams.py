"""Standard output that is cut off (`| head`), full, closed, or short of characters: no traceback, a true status."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

READER_LEFT = 141  # 128 + 13, as a shell reports a process that ended by SIGPIPE


class OutputError(OSError):
    """Standard output or error cannot be written; of no other file or pipe."""


def printing(command: Callable[[], int], prog: str) -> int:
    """
    Run a command that prints, and see that all of it arrived.

    Characters that the encoding lacks are printed as escapes. Inside another call, and where something else stands in
    place of the process's streams, the command runs as it is.

    Args:
        command (`Callable[[], int]`):
            The command; its result is the exit status.
        prog (`str`):
            Name in front of the message.

    Returns:
        `int`: the command's status; 141, without a word, where the reader has left, as `head` does; 1 where standard
        output is closed (nothing is run then) or cannot be written, with a line on stderr.
    """
    is_open = _fill_descriptors()
    if sys.stdout is None or not is_open:
        print(f"{prog}: error: standard output is closed; send it to a file, or to {os.devnull}", file=sys.stderr)
        return 1
    former = sys.stdout, sys.stderr
    files = [
        _Checked(number) if stream is getattr(sys, f"__{name}__") else None for number, name, stream in _streams()
    ]
    outputs = [stream if file is None else _over(file, stream) for file, stream in zip(files, former, strict=True)]
    sys.stdout, sys.stderr = outputs
    try:
        try:
            status = command()
        except SystemExit:
            _finish(files)
            raise
        _finish(files)
        return status
    except OutputError as error:
        for file in files:
            if file is not None:
                file.is_lost = True  # what is still buffered goes nowhere, and says nothing
        if error.errno == errno.EPIPE:
            return READER_LEFT
        print(f"{prog}: error: standard output cannot be written: {error.strerror}", file=former[1])
        return 1
    finally:
        sys.stdout, sys.stderr = former


class _Checked(io.FileIO):
    """The file of a standard stream, whose errors tell themselves from those of other files and pipes."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.error: OutputError | None = None
        self.is_lost = False

    def write(self, data: Any, /) -> int:
        if self.is_lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self.error = OutputError(error.errno, error.strerror)
            raise self.error from error


def _streams() -> list[tuple[int, str, TextIO]]:
    return [(1, "stdout", sys.stdout), (2, "stderr", sys.stderr)]


def _over(file: _Checked, stream: TextIO) -> TextIO:
    """The stream again, over a checked file."""
    stream.flush()
    unbuffered = getattr(stream, "write_through", False)  # python -u
    errors = stream.errors or "strict"
    if errors == "strict" or not (stream.encoding or "").lower().startswith("utf"):
        errors = "backslashreplace"
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )


def _finish(files: Iterable[_Checked | None]) -> None:
    """Print what is still buffered; an error that was swallowed on the way, as argparse does, is raised again."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for file in files:
        if file is not None and file.error is not None:
            raise file.error


def _fill_descriptors() -> bool:
    """
    Put the null device where a standard descriptor is closed: the next file opened would take its number otherwise,
    and what a library prints would land in it. Whether standard output was open.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            closed.append(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the process
    return 1 not in closed
