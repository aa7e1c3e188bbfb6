"""Addresses taken out of texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_ext.data.curation.patterns import trie_pattern
from hf_ext.data.curation.steps import Batch, RowStep, Rule, Values
from hf_ext.data.curation.top_level_domains import TOP_LEVEL_DOMAINS, VERSION

_HOST_CHARACTERS = frozenset("-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@:%._+~#=")
_LONGEST_HOST = 256
_LONGEST_SPACE = 10
_TAIL = r"[-a-zA-Z0-9()@:%_+.~#?&/=]*"
_SCHEMES = ("https://", "http://", "ftp://")

_DOTTED_NUMBERS = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_LETTER_IP = re.compile(rf"\s{{0,10}}\b(?:(?:https?|ftp)://)?(?:[0-2]?[0-9]{{1,2}}\.){{3}}[0-2]?[0-9]{{1,2}}{_TAIL}")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})"
_IP = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
# a version number has four parts, too: an address of numbers needs a scheme, a port or a path
_IP_ADDRESS = re.compile(
    rf"\b(?:(?:https?|ftp)://{_IP}(?![0-9])|(?<![0-9.]){_IP}(?=:[0-9]{{2,5}}(?![0-9])|/[a-zA-Z])){_TAIL}"
)
_LINE_ENDS = re.compile(r"\n{3,}")


@dataclass(frozen=True, kw_only=True)
class RemoveUrls(RowStep):
    """
    Take addresses out of texts, and leave no more than one empty line in a row.

    An address is a host that ends in a top-level domain (names of 3 October 2026), with scheme and path where it has
    them, or four numbers with a scheme, a port or a path. The spaces before it go with it, and so does a line that
    held nothing else. A document of which nothing is left goes.

    Args:
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            As DCLM does it: hosts are looked for only in texts that *begin* with the letters of a top-level domain
            (`"The ..."` does, with `th`); version numbers such as 1.2.3.4 are taken for addresses; up to ten spaces
            and line ends before an address go with it.

    Reference: Li et al. 2024, *DataComp-LM*, section 4.1 (arXiv 2406.11794).
    """

    replicate_bugs: bool = False

    name: ClassVar[str] = "remove_urls"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Characters left."""
        return (Rule("no_text", minimum=1),)

    @property
    def versions(self) -> dict[str, str]:
        """Of the names of the top-level domains."""
        return {"top_level_domains": VERSION}

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Clean each text; see [`RowStep.measure`]."""
        cleaned = [_as_dclm(text) if self.replicate_bugs else _without_addresses(text) for text in texts]
        # a text of line ends alone is one to DCLM
        lengths = [len(text) if self.replicate_bugs else len(text.strip()) for text in cleaned]
        return {self.text_column: cleaned}, {"no_text": np.array(lengths, dtype=float)}


def _as_dclm(text: str) -> str:
    if _patterns().beginning.match(text):
        pieces: list[str] = []
        end = 0
        for start, stop in _hosts(text):
            floor = max(end, start - _LONGEST_SPACE)
            while start > floor and text[start - 1].isspace():
                start -= 1
            pieces.append(text[end:start])
            end = stop
        text = "".join(pieces) + text[end:]
    if _DOTTED_NUMBERS.search(text):
        text = _LETTER_IP.sub("", text)
    return _LINE_ENDS.sub("\n\n", text) if "\n\n\n" in text else text


def _without_addresses(text: str) -> str:
    if "." in text:
        text = _cut(text, list(_hosts(text)))
        if _DOTTED_NUMBERS.search(text):
            text = _cut(text, [match.span() for match in _IP_ADDRESS.finditer(text)])
    return _LINE_ENDS.sub("\n\n", text) if "\n\n\n" in text else text


def _hosts(text: str) -> Iterator[tuple[int, int]]:
    """
    Where hosts begin, with their scheme, and where their paths end, from left to right.

    A search for the whole pattern tries every character of every word; here only a dot before a top-level domain is
    looked for, and the rest around it.
    """
    patterns = _patterns()
    end = 0
    for match in patterns.suffix.finditer(text):
        dot = match.start()
        if dot <= end:
            continue
        start = dot
        floor = max(end, dot - _LONGEST_HOST)
        while start > floor and text[start - 1] in _HOST_CHARACTERS:
            start -= 1
        if start == dot:
            continue
        if text.startswith("//", start - 2):
            start -= next((len(s) for s in _SCHEMES if start - len(s) >= end and text.endswith(s, 0, start)), 0)
        address = patterns.address.match(text, start)
        if address is not None:
            end = address.end()
            yield start, end


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` without some spans, the spaces before each, and the lines that hold nothing else."""
    pieces: list[str] = []
    end = 0
    begins_line = True  # whether only what is cut stands before `end` on its line
    for start, stop in spans:
        while start > end and text[start - 1] in " \t":
            start -= 1
        begins_line = (begins_line and start == end) or (start > 0 and text[start - 1] == "\n")
        if begins_line:
            while text.startswith((" ", "\t"), stop):
                stop += 1
            if text.startswith("\n", stop):
                stop += 1
        pieces.append(text[end:start])
        end = stop
    return "".join(pieces) + text[end:]


class _Patterns:
    """Of the names of the top-level domains; a tenth of a second to compile."""

    def __init__(self) -> None:
        names = trie_pattern(TOP_LEVEL_DOMAINS)
        self.suffix = re.compile(rf"\.{names}\b")
        self.address = re.compile(rf"(?:(?:https?|ftp)://)?[-a-zA-Z0-9@:%._+~#=]{{1,256}}\.{names}\b{_TAIL}")
        self.beginning = re.compile(names, re.IGNORECASE)


@lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    return _Patterns()
