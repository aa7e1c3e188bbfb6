"""Which files hold a key, a password or a token, by name and by content, in archives too."""

from __future__ import annotations

import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import translate
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["Credential", "any_of", "find_credential", "is_secret_name"]

SCANNED_BYTES = 4 << 20  # keys and settings are small; larger texts are tokenizers and rows
ARCHIVE_BYTES = 64 << 20  # of an archive as it lies there, and of what is read out of it
TAR_END = 256 << 20  # where reading a compressed tar stops: to skip a member it is decompressed

# Names of files and folders at any depth, without case.
SECRET_NAMES = (
    ".env", ".env.*", ".env~", "*.env", ".envrc*", ".netrc*", "_netrc*", ".pgpass*", ".pypirc*", ".npmrc*", ".my.cnf",
    ".git-credentials*", ".htpasswd*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.key.*",
    "*.key~", "*.releases.jsonl", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", ".ssh", ".aws", ".azure",
    ".gnupg", ".kube", ".docker", ".dockercfg", ".s3cfg", ".boto", ".*_history", "kaggle.json", "secrets.toml",
)  # fmt: skip
BY_NAME = "what is named like a secret"
LABEL_KEY = "a secret key for label privacy"

_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_HEX_ONLY = re.compile(r"[0-9a-fA-F\s]+")
LABEL_KEY_DIGITS = range(64, 129, 2)  # as `data.relabeling.keys` reads them: 32 to 64 bytes
_KINDS = {
    # Between the two stands what a language or a format puts there: ` = "`, `\"] = \"`, `,`, a space, a line's end.
    LABEL_KEY: re.compile(
        r"LABEL_KEY\b\W{1,40}(?:value\W{1,9})?(?!(.)\1{9})[0-9a-f]{64,128}\b", re.IGNORECASE | re.ASCII
    ),
    "a Hugging Face token": re.compile(
        r"(?<![A-Za-z0-9])hf_(?:(?!(.)\1{9})[A-Za-z0-9]{30,}|(?:oauth|jwt)_eyJ[A-Za-z0-9_-]{12,})"
    ),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key": re.compile(r"(?<![\w+/])(?:AKIA|ASIA)[A-Z0-9]{9}(?!EXAMPLE)[A-Z0-9]{7}(?![\w+/])", re.ASCII),
    "a GitHub token": re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
}
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)


class Credential(NamedTuple):
    """What was found, such as `"a Hugging Face token"`, and where in the file: `"line 3"`, `"member 'a/.env'"`."""

    kind: str
    place: str


def any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """One expression for names, as in `fnmatch`; a folder's name ends in a slash, which a pattern may ask for."""
    return re.compile("|".join(translate(text) for pattern in patterns for text in (pattern, f"{pattern}/")))


_SECRET_NAME = any_of(SECRET_NAMES)


def is_secret_name(name: str) -> bool:
    """Whether one name of a path, of a file or of a folder with a slash behind it, is that of something secret."""
    return _SECRET_NAME.match(name.casefold()) is not None


def find_credential(path: str | Path) -> Credential | None:
    """
    The first credential in a text of up to 4 MiB, or in a member of a zip, tar or gzip file of up to 64 MiB.

    Known are a key of [`~hf_ext.data.relabeling.KeyRef`] (a file of 64 to 128 hexadecimal digits and nothing else, or
    such digits behind a name that ends in `LABEL_KEY`, in any language or format), tokens of Hugging Face and GitHub,
    AWS access keys, and private keys in PEM or OpenPGP armour; in an archive also members that are named like secrets.
    Other binary files are not read.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        [`Credential`] or `None`.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > ARCHIVE_BYTES:
        return None
    with path.open("rb") as file:
        head = file.read(512)
        is_text = b"\0" not in head or head.startswith(tuple(_BYTE_ORDER_MARKS))
        if is_text and size <= SCANNED_BYTES:
            credential = _in_text(head + file.read(SCANNED_BYTES))
            if credential is not None:
                return credential
    return _in_archive(path, head)


def _in_text(content: bytes) -> Credential | None:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if len(content) > SCANNED_BYTES or (encoding is None and b"\0" in content):
        return None
    text = content.decode(encoding or "utf-8", errors="replace")
    # Decimal digits alone are labels or numbers, one a line, and no key that `data.relabeling.keys` would take.
    digits = "".join(text.split()) if _HEX_ONLY.fullmatch(text) else ""
    if len(digits) in LABEL_KEY_DIGITS and not digits.isdecimal():
        return Credential(LABEL_KEY, "line 1")
    for kind, pattern in _KINDS.items():
        match = pattern.search(text)
        if match is not None:
            return Credential(kind, f"line {text.count(chr(10), 0, match.start()) + 1}")
    return None


def _in_archive(path: Path, head: bytes) -> Credential | None:
    num_bytes = 0
    try:
        for name, content in _members(path, head):
            if any(map(is_secret_name, PurePosixPath(name).parts)):
                return Credential(BY_NAME, f"member {name!r}")
            credential = _in_text(content)
            if credential is not None:
                return Credential(
                    credential.kind, f"member {name!r}, {credential.place}" if name else credential.place
                )
            num_bytes += len(content)
            if num_bytes > ARCHIVE_BYTES:
                return None
    except _BROKEN:  # no such archive after all, or an encrypted one
        return None
    return None


def _members(path: Path, head: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and beginnings of an archive's files; a gzip file that is no tar has one, without a name."""
    most = SCANNED_BYTES + 1
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, archive.read(info)[:most] if info.file_size <= SCANNED_BYTES else b""
        return
    if head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() and member.size <= SCANNED_BYTES else None
                    yield member.name, b"" if file is None else file.read(most)
                    if member.offset_data + member.size > TAR_END:
                        return
            return
        except tarfile.ReadError:
            if not head.startswith(b"\x1f\x8b"):
                raise
        with gzip.open(path) as stream:
            yield "", stream.read(most)
