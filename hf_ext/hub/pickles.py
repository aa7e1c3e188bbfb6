"""Which files hold a pickle, by name and by content. Nothing is ever unpickled to find out."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from itertools import islice
from pathlib import Path
from typing import BinaryIO

__all__ = ["PICKLE_SUFFIXES", "is_pickle"]

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".pt2"})
"""Names that promise a pickle: torch's archives, the trainer's states, and pickles proper, compressed or not."""

TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".parquet", ".arrow"})
"""Names of tables and texts: in `train.pt.jsonl` the language is Portuguese. Their content is looked at as ever."""

COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})

PROBED_OPCODES = 64  # so many valid opcodes in a row are no accident
MEMBER_BYTES = 1 << 20  # how much of a member of an archive is looked at


def is_pickle(path: str | Path) -> bool:
    """
    Whether a file holds a pickle, which runs code when it is loaded.

    Looks at the name, at the first opcodes, and into zip archives (as `torch.save` and `numpy.savez` write) and numpy
    files, whose object arrays are pickles. Compressed streams such as `.gz` are judged by their name.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `bool`: true also for a name in [`PICKLE_SUFFIXES`], whatever it holds: the Hub's scanner goes by names too. A
        name that ends as a table's or a text's does (`train.pt.jsonl`) is none of these.
    """
    if _is_named_like_one(path):
        return True
    with open(path, "rb") as file:
        return _holds_pickle(file)


def _is_named_like_one(name: str | Path) -> bool:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    while suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(PICKLE_SUFFIXES & set(suffixes)) and suffixes[-1] not in TEXT_SUFFIXES


def _holds_pickle(file: BinaryIO, depth: int = 0) -> bool:
    head = file.read(128)
    file.seek(0)
    if head.startswith(b"\x93NUMPY"):
        return b"|O" in file.readline(1 << 16)  # the header is one line; object arrays are pickled after it
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return depth > 3 or _zip_holds_pickle(file, depth)
    return _starts_as_pickle(file, head)


def _zip_holds_pickle(file: BinaryIO, depth: int) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if _is_named_like_one(name):
                    return True
                with archive.open(name) as member:
                    if _holds_pickle(io.BytesIO(member.read(MEMBER_BYTES)), depth + 1):
                        return True
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return True  # damaged, encrypted or of an unknown kind: what cannot be looked into is not published
    return False


def _starts_as_pickle(file: BinaryIO, head: bytes) -> bool:
    """Protocol 2 and up begin with a mark and a number; a text pickle is told by parsing it to its stop."""
    binary = len(head) > 1 and head[0] == 0x80 and head[1] <= 16
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about escapes in what is no pickle
            opcodes = sum(1 for _ in islice(pickletools.genops(file), PROBED_OPCODES))
            if opcodes == PROBED_OPCODES and binary:
                return True
            file.seek(0)
            pickletools.dis(file, out=io.StringIO())  # checks the stack as well: 'a.' parses, and is no pickle
    except Exception:  # pickletools raises whatever the bytes provoke
        return False
    return True
