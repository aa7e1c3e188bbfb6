"""Files that are whole or not there, and one clear sentence when the disk is full."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

# EFBIG: a limit on the size of files; EDQUOT: a quota, which Windows does not know
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Libraries written in Rust and C++ raise errors of their own, without an errno.
_FULL_MESSAGES = ("No space left on device", "File too large", "Disk quota exceeded", "(os error 112)")
_REFUSED = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
STAGING = "_saving"  # begins like everything that no push takes along
_WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
# torch.save (2.13) raises a plain RuntimeError for a write that failed.
_TORCH_WRITER = ("PytorchStreamWriter failed", "file write failed", "inline_container")


class DiskFullError(OSError):
    """Something could not be written for want of room; the message says what, where, how much and what to do."""


class NotWritableError(OSError):
    """A place cannot be written, whatever room there is; the message says which and why."""


def is_refused(error: BaseException) -> bool:
    """Whether the system refused a place: read-only, no permission, a file where a folder should be."""
    return isinstance(error, NotWritableError) or (isinstance(error, OSError) and error.errno in _REFUSED)


def unwritable(error: OSError, location: str | os.PathLike[str], subject: str = "") -> NotWritableError:
    """The sentence for a place that cannot be written because of `error`."""
    reason = "a file is in the way" if error.errno == errno.EEXIST else error.strerror
    if error.filename is not None:
        reason = f"{reason}: {error.filename}"
    return NotWritableError(
        f"Cannot write {subject + ' to ' if subject else ''}{location} ({reason}). Name another place."
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, is a write that found no room (disk, quota or file size limit)."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        text = str(error)
        if any(words in text for words in _FULL_MESSAGES):
            return True
        if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WRITER):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def writing(
    subject: str,
    location: str | os.PathLike[str],
    *,
    num_bytes: int | None = None,
    advice: str = "Free some space or choose another folder, and run again.",
    clean_up: Callable[[], object] | None = None,
) -> Iterator[None]:
    """
    Turn a full disk inside into a [`DiskFullError`], a refused place into one sentence; other errors pass through.

    Args:
        subject (`str`):
            What is being written, as the message names it.
        location (`str` or `os.PathLike`):
            File or folder; it need not exist.
        num_bytes (`int`, *optional*):
            Bytes it takes, where they are known.
        advice (`str`, *optional*):
            End of the message: what is intact, and what to do.
        clean_up (`Callable`, *optional*):
            Removes what was half-written; called once the free bytes have been read.

    Raises:
        DiskFullError: if there is no room.
        NotWritableError: if the place is read-only or not permitted, or a file lies where a folder should be.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and is_refused(error) and not isinstance(error, NotWritableError):
            raise unwritable(error, location, subject) from error
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        # before the clean-up, which makes room
        free = free_bytes(location)
        room = f"{_size(free)} free"
        if num_bytes:
            room += f", about {_size(num_bytes)} needed"
            room += "; so a quota, or a limit on the size of files?" if free > 2 * num_bytes else ""
        if clean_up is not None:
            clean_up()
        raise DiskFullError(f"No room to write {subject} to {location} ({room}). {advice}") from error


def free_bytes(location: str | os.PathLike[str]) -> int:
    """Free bytes of the disk that holds `location`, or would."""
    path = Path(location).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """
    A temporary name to write to; on leaving it is flushed to the disk and renamed to `path`.

    A kill or an error leaves the old file, or none: never a part of the new one. A file is replaced at once. A folder
    is replaced where it is empty, or with `overwrite`: it is moved aside, and removed when the new one is there.
    """
    path = Path(path)
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this call alone: containers that share a disk may share process numbers, and threads do.
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    former = path.with_name(f".{path.name}.{token}.former")
    try:
        yield temporary
        # content first, then the name: otherwise a power cut may leave the name with an empty file
        flush(temporary)
        if overwrite and path.is_dir():
            # a folder with something in it cannot be replaced at once
            os.replace(path, former)
        elif temporary.is_dir() and path.is_dir():
            path.rmdir()  # an empty folder may be replaced, which not every system does by itself
        os.replace(temporary, path)
        flush_folder(path.parent)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def publishing(
    folder: Path,
    *,
    num_bytes: int | None = None,
    advice: str = "What was in the folder before is intact. Free some space and run again.",
    is_writer: bool = True,
) -> Iterator[Path]:
    """
    A folder to save a model to; on leaving, its files are moved into `folder`, once all of them are on the disk.

    The weights come last, and those of an earlier save in another number of files go: what a kill or a full disk
    leaves is the model saved before, or none.

    Args:
        folder (`Path`):
            Where the model goes; the caller holds it.
        num_bytes (`int`, *optional*):
            Bytes it takes, where they are known.
        advice (`str`, *optional*):
            End of the message where there is no room.
        is_writer (`bool`, *optional*, defaults to `True`):
            Whether this process moves the files: of several that save together one does.

    Raises:
        DiskFullError: if there is no room; what was in the folder is intact.
    """
    staging = folder / STAGING
    remove = lambda: _remove(staging)  # noqa: E731  named for what it does, twice
    with writing("the model", folder, num_bytes=num_bytes, advice=advice, clean_up=remove):
        if is_writer:
            remove()  # left by a killed run
        yield staging
        if is_writer:
            flush(staging)
            _move_model(staging, folder)


def _move_model(staging: Path, folder: Path) -> None:
    names = {file.name for file in staging.iterdir()}
    in_the_way = [name for name in sorted(names) if (folder / name).is_dir() and not (staging / name).is_dir()]
    if in_the_way:  # said before the first file moves: half of a model would be in the folder
        raise IsADirectoryError(errno.EISDIR, "a folder is in the way", str(folder / in_the_way[0]))
    matches = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    kinds = {match[1] for match in matches}
    former_weights = ((file, _WEIGHTS.fullmatch(file.name)) for file in folder.iterdir())
    former_files = [file for file, match in former_weights if match and match[1] in kinds]
    if any(match[2] or match[3] for match in matches):
        # Shards cannot be replaced all at once, and old ones beside new ones would load without an error: the former
        # model goes first, its index before all, without which transformers loads no shard.
        for file in sorted(former_files, key=_weights_order, reverse=True):
            file.unlink()
    for file in sorted(staging.iterdir(), key=_weights_order):
        target = folder / file.name
        if file.is_dir():
            _remove(target)  # a folder is renamed onto nothing but an empty one
        os.replace(file, target)
    for file in former_files:
        if file.name not in names:
            file.unlink(missing_ok=True)
    shutil.rmtree(staging)


def _remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, whose target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _weights_order(file: Path) -> int:
    """Weights come behind everything else, and their index, which makes shards a model, behind them."""
    match = _WEIGHTS.fullmatch(file.name)
    return 0 if match is None else 2 if match[3] else 1


class _Sink(io.RawIOBase):
    """A file that remembers a failed write, and drops what follows, instead of raising."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.position = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        self.position += count
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return count

    def tell(self) -> int:
        return self.position

    def writable(self) -> bool:
        return True


@contextmanager
def parquet_sink(path: str | os.PathLike[str]) -> Iterator[_Sink]:
    """
    A file to give to a Parquet writer in place of its path; a write that failed is raised at the end, or looked up.

    pyarrow (25.0) aborts the process, with no error, no `finally` and no file removed, where a write inside a page
    fails; so its writer hears of none, and goes on packing for nothing.

    Raises:
        OSError: if a write failed; the system's own error.
    """
    with open(path, "wb") as file:
        sink = _Sink(file)
        try:
            yield sink
        finally:
            if sink.error is not None:
                raise sink.error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file as [`replacing`] does; text is UTF-8, its line ends are kept."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_whole(path: str | os.PathLike[str], pieces: Iterable[bytes]) -> None:
    """
    Append to a file, all or nothing: where a piece cannot be had or written, the file ends as it did.

    Args:
        path (`str` or `os.PathLike`):
            The file. With no piece it is not made.
        pieces (`Iterable[bytes]`):
            What to append, a write each: what another process appends meanwhile stands between pieces, not in one.

    Raises:
        OSError: if a piece cannot be written; the system's own error.
    """
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:
        return
    if not os.path.isdir(folder := os.path.dirname(path) or "."):
        os.makedirs(folder, exist_ok=True)
    # unbuffered: a piece is one write, which the system puts at the end as a whole
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            for piece in chain([first], pieces):
                remainder = memoryview(piece)
                while remainder:
                    remainder = remainder[file.write(remainder) :]
        except BaseException:
            file.truncate(end)
            raise


def drop_half_line(path: str | os.PathLike[str]) -> None:
    """Cut off the line that a kill broke at the end of a file: what is appended next would be glued to it."""
    path = Path(path)
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())


def flush(path: str | os.PathLike[str]) -> None:
    """Wait until the file, or every file below the folder, is on the disk: a power cut may then come."""
    path = Path(path)
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                flush(inner)
        return
    with open(path, "r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Wait until the names in `folder` are on the disk, where the system can tell."""
    if os.name == "nt":  # folders cannot be opened there
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:  # some network file systems do not know it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(number)
