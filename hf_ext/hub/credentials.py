"""Which files hold a key, a password or a token, told by what is in them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_credential"]

SCANNED_BYTES = 4 << 20  # keys and settings are small; larger texts are tokenizers and rows

_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_LABEL_KEY = re.compile(r"[0-9a-fA-F\s]+")
LABEL_KEY_DIGITS = range(64, 129, 2)  # as `data.relabeling.keys` reads them: 32 to 64 bytes
_KINDS = {
    "a secret key for label privacy": re.compile(r"LABEL_KEY\b[\"']?\s*[=:]\s*[\"']?[0-9a-fA-F]{64,128}\b"),
    "a Hugging Face token": re.compile(r"(?<![A-Za-z0-9])hf_(?!(.)\1{9})[A-Za-z0-9]{30,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key": re.compile(
        r"(?<![A-Za-z0-9+/])(?:AKIA|ASIA)[A-Z0-9]{9}(?!EXAMPLE)[A-Z0-9]{7}(?![A-Za-z0-9+/])"
    ),
    "a GitHub token": re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
}


def find_credential(path: str | Path) -> tuple[str, int] | None:
    """
    The first credential in a text file of up to 4 MiB: what it is, and its line, counted from 1.

    Known are a key of [`~hf_ext.data.relabeling.KeyRef`] (a file of 64 to 128 hexadecimal digits and nothing else, or
    an assignment to a name that ends in `LABEL_KEY`), tokens of Hugging Face and GitHub, AWS access keys, and private
    keys in PEM or OpenPGP armour. Larger files and binary ones are not read.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `tuple[str, int]` or `None`: such as `("a Hugging Face token", 3)`.
    """
    if Path(path).stat().st_size > SCANNED_BYTES:
        return None
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        return None
    text = content.decode(encoding or "utf-8", errors="replace")
    if _LABEL_KEY.fullmatch(text) and len("".join(text.split())) in LABEL_KEY_DIGITS:
        return "a secret key for label privacy", 1
    for kind, pattern in _KINDS.items():
        match = pattern.search(text)
        if match is not None:
            return kind, text.count("\n", 0, match.start()) + 1
    return None
