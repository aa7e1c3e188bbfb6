"""Folders that one process writes at a time, and runs in them: begun for their settings, resumed, published whole."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from hf_ext.guards.disk import publishing, write_whole, writing
from hf_ext.guards.inside import read_json
from hf_ext.guards.locks import LOCK, InUseError, locked

P = ParamSpec("P")
T = TypeVar("T")

FORMAT_REVISION = 2  # of the record of a run's settings; 1: labels and two dozen settings alone were compared
_LONGEST = 80  # characters of a value in a message


@contextmanager
def claimed_folder(
    folder: str | os.PathLike[str], *, waits: bool = False, remedy: str = "name another folder"
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
        remedy (`str`, *optional*):
            What else to do than wait, for the message.

    Raises:
        InUseError: if another process holds it, and `waits` is not set.
        NotWritableError: if the place is read-only, without permission, or a file where a folder should be.
    """
    folder = Path(folder)
    is_new = not os.path.exists(folder)  # unlike Path.exists it takes a name that is too long
    try:
        with locked(folder / LOCK, folder, waits, remedy):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # goes only where nothing was written


@contextmanager
def claimed_file(path: str | os.PathLike[str], *, waits: bool = False, remedy: str = "name another") -> Iterator[None]:
    """
    Hold the name `path`, of a file or of a folder that is renamed to it, as [`claimed_folder`] does.

    The lock lies beside it. What killed processes left of [`~hf_ext.guards.disk.replacing`] is removed; a folder that
    one moved aside, and did not come to replace, is back.

    Raises:
        InUseError: if another process holds it, and `waits` is not set.
        NotWritableError: if the place is read-only, without permission, or a file where a folder should be.
    """
    path = Path(path)
    with locked(path.with_name(f".hf-ext-{path.name}.lock"), path, waits, remedy):
        remove_leftovers(path.parent, glob.escape(path.name))
        for former in path.parent.glob(".*.former"):
            if former.name.rsplit(".", 2)[0] != f".{path.name}":
                continue
            if path.exists():
                shutil.rmtree(former)
            else:
                os.replace(former, path)  # killed between its two renames
        yield


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what killed processes left of writing files of that name; who calls holds the claim to write them."""
    for leftover in folder.glob(".*.tmp"):
        # Without what tells the call: `.rows.parquet.12-ab.tmp` is of `rows.parquet`, which another process may write
        # while this one holds `rows`.
        if not fnmatchcase(leftover.name.rsplit(".", 2)[0], f".{pattern}"):
            continue
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


class Saves(Protocol):
    """What says where a run writes, and whether this process does: `TrainingArguments` do."""

    @property
    def output_dir(self) -> str | os.PathLike[str] | None:
        """The folder."""

    @property
    def should_save(self) -> bool:
        """Whether this process writes there."""


@contextmanager
def claimed_output(args: Saves) -> Iterator[None]:
    """
    Hold the `output_dir` of a run: the processes that train, or measure, together are one.

    Args:
        args ([`Saves`]):
            The processes that save claim the folder, one, or one on each machine.

    Raises:
        InUseError: if another run writes there; on every process.
        NotWritableError: if the folder cannot be written.
    """
    from accelerate.utils import gather_object

    refusal: Exception | None = None
    with ExitStack() as stack:
        if args.should_save and args.output_dir is not None:
            try:
                stack.enter_context(claimed_folder(args.output_dir, remedy="choose another output_dir"))
            except (InUseError, OSError) as error:
                refusal = error
        for any_refusal in gather_object([refusal]):
            if any_refusal is not None:
                raise any_refusal
        yield


def claims_output(method: Callable[P, T]) -> Callable[P, T]:
    """A method that trains, of an object with `args`: it holds their `output_dir`, as [`claimed_output`] does."""

    @wraps(method)
    def claiming(*args: P.args, **kwargs: P.kwargs) -> T:
        owner: Any = args[0]
        with claimed_output(owner.args):
            return method(*args, **kwargs)

    return claiming


class Processes(Protocol):
    """The processes of one run, such as accelerate's `PartialState`."""

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes."""

    def wait_for_everyone(self) -> None:
        """Go on once all have come here."""


class OneProcess:
    """A run of this process alone."""

    is_main_process = True

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


class RunFolder:
    """
    The folder of a run in steps: begun for its settings and no others, a finished step remembered, its model whole.

    Whoever writes there holds it meanwhile, by [`claimed_folder`] or [`claimed_output`].

    Args:
        folder (`str` or `Path`):
            The place.
        record (`str`, *optional*, defaults to `"run.json"`):
            Name of the file in it that says what the run was begun with.
        remedy (`str`, *optional*):
            How to take another place, for messages.
        processes ([`Processes`], *optional*):
            Of the run; this one alone by default.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        record: str = "run.json",
        *,
        remedy: str = "choose another output_dir",
        processes: Processes | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.record = self.folder / record
        self.remedy = remedy
        self.processes = processes or OneProcess()

    def begin(
        self,
        settings: Mapping[str, Any],
        row_digests: Mapping[str, Any] | None = None,
        row_change: Callable[[str, Any], str | None] | None = None,
        *,
        parts: str = "*",
    ) -> None:
        """
        Begin the run, or go on with it: refused where its result would depend on anything else than before.

        Args:
            settings (`Mapping`):
                Plain values, mappings of them too.
            row_digests (`Mapping`, *optional*):
                Name in messages (`training rows`) to a digest, plain values for JSON.
            row_change (`Callable`, *optional*):
                From such a name and its former digest to what is different now, in words, or `None`.
            parts (`str`, *optional*):
                Pattern of what a run leaves in the folder, such as `round-*`. Where a file matches it and no record
                is there, the folder holds a run of unknown settings, or something else. Hidden files do not count.

        Raises:
            DiskFullError: if there is no room for the record.
            ValueError: if the run was begun with other settings or rows, or if the folder holds something else.
        """
        content = {
            "format_revision": FORMAT_REVISION,
            "settings": json.loads(json.dumps(dict(_flat(settings)))),
            "rows": dict(row_digests or {}),
        }
        former = self._former(parts)
        self.processes.wait_for_everyone()  # all have looked before one writes
        if former is not None:
            changes = changed_settings(former["settings"], content["settings"])
            changes += _changed_rows(former["rows"], content["rows"], row_change)
            refuse_changes(self.folder, changes, self.remedy)
        elif self.processes.is_main_process:
            _write_record(self.record, content)
        self.processes.wait_for_everyone()

    def results(self, step: str) -> dict[str, Any] | None:
        """
        What a finished step left behind, or `None` where it is still to do.

        Raises:
            ValueError: if its file is damaged; nothing here writes one by halves, so somebody else has.
        """
        path = self.folder / f"{step}.json"
        if not path.is_file():
            return None
        try:
            return read_json(path, subject="the record of a finished step")
        except ValueError as error:
            raise ValueError(f"{error} Remove it, and the step is done again.") from error

    def mark_done(self, step: str, results: Mapping[str, Any]) -> None:
        """
        Write down, by the main process, that a step is over: all else of it must be on the disk by now.

        Raises:
            DiskFullError: if there is no room; a step that was marked before stays so.
        """
        if self.processes.is_main_process:
            _write_record(self.folder / f"{step}.json", results)

    def publish(self, model: Path) -> None:
        """
        Copy a finished model from a folder below into the run's own, as [`publishing`] does.

        Raises:
            DiskFullError: if there is no room; what was in the folder is intact.
        """
        if self.processes.is_main_process:
            with publishing(self.folder) as staging:
                shutil.copytree(model, staging, copy_function=shutil.copyfile)
        self.processes.wait_for_everyone()

    def _former(self, parts: str) -> dict[str, Any] | None:
        remedy = f"{self.remedy[0].upper()}{self.remedy[1:]}."
        if not self.record.is_file():
            refuse_strangers(self.record, remedy, parts)
            return None
        try:
            former = read_json(self.record)
            revision = former.get("format_revision")
            parts_compared = (former.get("settings"), former.get("rows"))
            if revision == FORMAT_REVISION and not all(isinstance(part, dict) for part in parts_compared):
                raise ValueError("it holds no settings, or nothing on rows")
        except ValueError as error:
            raise ValueError(f"{self.record} is damaged ({error}): the run cannot go on. {remedy}") from error
        if revision != FORMAT_REVISION:
            raise ValueError(
                f"{self.record} was written by another version of hf-ext (format {revision!r}, this is "
                f"{FORMAT_REVISION}), which compares other settings: finish the run with that version. Or: "
                f"{self.remedy}, or delete this one."
            )
        return former


def _write_record(path: Path, values: Mapping[str, Any]) -> None:
    with writing(
        "the record of a run", path, advice="Free some space and run again: what is marked as done stays so."
    ):
        # All in ASCII: a path that is no UTF-8 has characters in Python that UTF-8 cannot write.
        write_whole(path, json.dumps(values, indent=1) + "\n")


def refuse_strangers(record: Path, remedy: str, parts: str = "*") -> None:
    """
    Refuse a folder that holds files but no record of what a run was begun with.

    Args:
        record (`Path`):
            The file that is missing.
        remedy (`str`):
            A sentence, for the message.
        parts (`str`, *optional*):
            Pattern of the files that count; hidden ones do not, for a lock is one, and what a kill left of a file.

    Raises:
        ValueError: if there is such a file; the message names the first.
    """
    names = sorted(path.name for path in record.parent.glob(parts) if not path.name.startswith("."))
    if names:
        raise ValueError(
            f"{record.parent} is not empty and holds no {record.name}, which says what a run was begun with, but "
            f"{names[0]!r}. {remedy}"
        )


def changed_settings(former: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """A clause for each setting whose value is another, or that one of both lacks: `adam_beta1 was 0.9, is 0.1`."""
    return [
        f"{name} was {_shown(former, name)}, is {_shown(current, name)}"
        for name in {**former, **current}
        if name not in former or name not in current or _differs(former[name], current[name])
    ]


def _differs(value: Any, other: Any) -> bool:
    # By their text as well: no NaN equals another, and a run with one among its settings could never go on.
    return value != other and repr(value) != repr(other)


def refuse_changes(place: str | os.PathLike[str], changes: list[str], remedy: str) -> None:
    """
    Refuse to go on with a run that was begun otherwise.

    Args:
        place (`str` or `os.PathLike`):
            Folder or file of the run.
        changes (`list[str]`):
            A clause for each difference; where there is none, nothing is refused.
        remedy (`str`):
            How to take another place.

    Raises:
        ValueError: if there is a difference; the message names each, and what to do.
    """
    if changes:
        raise ValueError(
            f"{place} was begun with other settings: {'; '.join(changes)}. Run with the former ones to finish it, or "
            f"{remedy}, or delete this one."
        )


def _changed_rows(
    former: Mapping[str, Any], current: Mapping[str, Any], row_change: Callable[[str, Any], str | None] | None
) -> Iterator[str]:
    for name in {**former, **current}:
        if name not in current or name not in former:
            yield f"{name}: {'there are none now' if name in former else 'there were none'}"
        elif row_change is not None and (change := row_change(name, former[name])) is not None:
            yield f"other {name} ({change})"


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "not there"
    text = repr(settings[name])
    # the beginning of a hash tells two apart, and a command takes a whole one for a key, which it does not repeat
    longest = 16 if re.fullmatch("'[0-9a-f]{64}'", text) else _LONGEST
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Mappings inside mappings as one, `model.config.dropout`: a message then names the one value that changed."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
