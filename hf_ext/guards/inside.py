"""Files of a folder that may come from elsewhere: they lie in that folder, and are files. Nothing else is opened."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

MOST_JSON_BYTES = 256 * 2**20
"""Of a JSON file that is read whole: the largest known `tokenizer.json` has 34 MB."""


def require_path_inside(name: object, named_in: object) -> str:
    """
    Refuse the name of a file that leads out of the folder it is said to lie in.

    Args:
        name (`object`):
            As a manifest has it.
        named_in (`object`):
            The manifest, for the message.

    Raises:
        ValueError: if the name is no string, empty, absolute (on POSIX or Windows), or has `..` in it.
    """
    if isinstance(name, str) and name.strip() and "\0" not in name:
        inside = PureWindowsPath(name)  # knows the separators of both worlds
        if not inside.anchor and ".." not in inside.parts and inside.parts:
            return name
    raise ValueError(
        f"{named_in} names {name!r}, which is no path inside its folder. It was not read: fetch the folder again, "
        "from a source you trust."
    )


def require_file(path: str | os.PathLike[str]) -> Path:
    """
    Refuse what is no plain file: to open a pipe or a device may wait for ever.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is a folder, a pipe, a socket or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing.") from None
    except OSError as error:  # a link to itself, a name that is too long
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if stat.S_ISREG(mode):
        return path
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    kind = next((word for test, word in kinds if test(mode)), "a device")
    raise ValueError(f"{path} is {kind}, not a file. Put the file itself there.")


def file_in(folder: str | os.PathLike[str], name: object, named_in: object) -> Path:
    """
    The path of a file that a manifest names.

    Links are followed where they stay in the folder; those of the Hub's cache, from a snapshot to the repository's
    blobs, are as good.

    Args:
        folder (`str` or `os.PathLike`):
            Where the file must lie.
        name (`object`):
            As the manifest has it.
        named_in (`object`):
            The manifest, for the message.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the name or a link leads out of the folder, or what is there is no file.
    """
    path = Path(folder) / require_path_inside(name, named_in)
    require_file(path)
    require_inside(path, folder)
    return path


def require_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """
    Refuse a file that lies elsewhere once links are followed.

    Raises:
        ValueError: if a link leads out of the folder.
    """
    real, root = Path(path).resolve(), Path(folder).resolve()
    if real.is_relative_to(root):
        return
    # the Hub's cache: snapshots/<commit>/<name> is a link to ../../blobs/<hash>
    for place in (root, *root.parents):
        if place.parent.name == "snapshots" and real.is_relative_to(place.parent.parent / "blobs"):
            return
    raise ValueError(
        f"{path} is a link that leads out of {folder}. It was not read: put a copy of the file there if you trust it."
    )


def require_links_inside(folder: str | os.PathLike[str]) -> None:
    """
    Refuse a folder of rows that holds a link to a place outside of it, at any depth.

    Files in hidden folders pass, such as the interpreter of a virtual environment: `datasets` reads none of them.

    Raises:
        ValueError: if there is such a link; the message names it.
    """
    for place, folders, files in os.walk(folder):
        is_hidden = any(part.startswith(".") for part in Path(place).relative_to(folder).parts)
        for name in folders if is_hidden else (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                require_inside(path, folder)


def read_json(
    path: str | os.PathLike[str], kind: type | tuple[type, ...] = dict, *, subject: str | None = None
) -> Any:
    """
    A JSON file, whole.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        kind (`type`, *optional*, defaults to `dict`):
            What it must hold.
        subject (`str`, *optional*):
            What it is for, as the message names it.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no JSON, too large, nested too deeply, or holds something else.
    """
    path = require_file(path)
    size = path.stat().st_size
    if size > MOST_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than the {MOST_JSON_BYTES:,} that are read of a JSON file.")
    verdict = f"{path} is no JSON" if subject is None else f"{path} is not {subject}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    # Python's parser recurses once a level
    except RecursionError:
        raise ValueError(f"{verdict}: it is nested too deeply to be read.") from None
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{verdict}: {error}.") from error
    if not isinstance(values, kind):
        expected = " or a ".join(word.__name__ for word in (kind if isinstance(kind, tuple) else (kind,)))
        if subject is None and kind is dict:
            raise ValueError(f"{path} must be a JSON object, found {type(values).__name__}.")
        raise ValueError(f"{verdict}: it holds a {type(values).__name__}, expected a {expected}.")
    return values


T = TypeVar("T")


def read_as(path: str | os.PathLike[str], build: Callable[[dict[str, Any]], T], subject: str) -> T:
    """
    What `build` makes of a JSON file's object.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if [`read_json`] refuses the file, or `build` does not take its values.
    """
    values = read_json(path, subject=subject)
    try:
        return build(values)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not {subject}: {type(error).__name__}: {error}.") from error
