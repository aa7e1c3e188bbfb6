"""Rules on the address of a page: lists of domains and of words."""

from __future__ import annotations

import hashlib
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import xxhash

from hf_ext.data.curation.patterns import trie_pattern
from hf_ext.data.curation.steps import Batch, Drop, Judgement, RowStep, Rule, Values
from hf_ext.guards.inside import require_file

LISTS = ("domains", "curated_domains", "strict_words", "hard_words", "soft_words")  # in the order of the rules

_CONTROLS_AND_SPACE = "".join(map(chr, range(33)))
_AUTHORITY = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.\-]*:)?[/\\]{2,}(.*)", re.DOTALL)
_WEB_SCHEME = re.compile(r"(?:https?|ftp):", re.IGNORECASE)
_OTHER_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*:(?!\d*(?:[/\\?#]|$))")  # bad.com:80 has none
_PLAIN_BLOCK = re.compile(rb"(?:[a-z0-9][a-z0-9._\-]*[a-z0-9]\n)+")
_NO_HOST = re.compile(r"[\x00-\x20<>^`{|}\x7f]")


@dataclass(frozen=True, kw_only=True)
class UrlRules(RowStep):
    """
    Drop pages by their address: listed domains, and words in the address, as DCLM and RefinedWeb do.

    The lists are text files of yours, a domain or a word a line; none is shipped. A rule without a list is not asked.

    Args:
        url_column (`str`, *optional*, defaults to `"url"`):
            Column of the addresses. They are read as browsers do, without a scheme, too; one that cannot be read stays
            in, and the rules on domains measure NaN of it.
        missing_url (`str`, *optional*, defaults to `"raise"`):
            What becomes of rows whose address is null, and of datasets without the column: `"raise"`, or `"keep"`.
        domains (`str`, *optional*):
            File of domains; pages of one, and of any domain below it, go, whatever the port or user.
        curated_domains (`str`, *optional*):
            File of domains that are curated elsewhere (RefinedWeb leaves out Wikipedia, arXiv, GitHub and others).
        strict_words (`str`, *optional*):
            File of words of which none may be anywhere in the address once `-` and `.` are deleted.
        hard_words (`str`, *optional*):
            File of words of which none may stand in the address as a whole word.
        soft_words (`str`, *optional*):
            File of words of which `max_soft_words` different ones may stand in the address.
        max_soft_words (`int`, *optional*, defaults to 1):
            See `soft_words`.
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            Look for domains as DCLM does: the letters `www` are deleted from host and port, which must then be in the
            list as it is. `www.bad.com` is thus never found.

    Raises:
        ValueError: if no list is given, or one is no file.
        FileNotFoundError: if a list is missing.

    Reference: Penedo et al. 2023, *The RefinedWeb Dataset for Falcon LLM*, appendix G.1 (arXiv 2306.01116).
    """

    url_column: str = "url"
    missing_url: str = "raise"
    domains: str | None = None
    curated_domains: str | None = None
    strict_words: str | None = None
    hard_words: str | None = None
    soft_words: str | None = None
    max_soft_words: int = 1
    replicate_bugs: bool = False

    name: ClassVar[str] = "url"
    column_field: ClassVar[str] = "url_column"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.missing_url not in ("raise", "keep"):
            raise ValueError(f'missing_url must be "raise" or "keep", got {self.missing_url!r}.')
        if self.max_soft_words < 0:
            raise ValueError(f"max_soft_words must be at least 0, got {self.max_soft_words!r}.")
        if not self._lists:
            raise ValueError(f"UrlRules needs a list: pass the path of one or more of {', '.join(LISTS)}.")

    @property
    def _lists(self) -> list[tuple[str, str]]:
        return [(name, path) for name in LISTS if (path := getattr(self, name)) is not None]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """A rule for each list, whose value is the number of listed words, or 1 for a listed domain."""
        return tuple(Rule(name, maximum=self.max_soft_words if name == "soft_words" else 0) for name, _ in self._lists)

    @property
    def versions(self) -> dict[str, str]:
        """Hashes of the lists."""
        return {name: _file_hash(*_file_state(path)) for name, path in self._lists}

    def problem_of(self, value: str | bytes) -> Drop | None:
        """An address may be empty: it is then one that cannot be read."""
        drop = super().problem_of(value)
        return None if drop is not None and drop.rule == "empty" else drop

    def judge(self, batch: Batch, indices: Sequence[int] | None = None) -> Judgement:
        """As [`RowStep.judge`], with rows of no address as `missing_url` says."""
        if self.missing_url == "keep":
            num_rows = len(next(iter(batch.values()), ()))
            urls = batch.get(self.url_column) or [None] * num_rows
            # other columns, pages among them, are left unread
            batch = ChainMap({self.url_column: ["" if url is None else url for url in urls]}, batch)  # type: ignore[arg-type]
        return super().judge(batch, indices)

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Look each address up in the lists; see [`RowStep.measure`]."""
        values: dict[str, Values] = {}
        for name, path in self._lists:
            state = _file_state(path)
            if name.endswith("domains"):
                values[name] = _domains_of(*state, self.replicate_bugs).count(texts)
            else:
                pattern = _word_pattern(*state, name != "strict_words")
                addresses = [url.lower() for url in texts]
                if name == "strict_words":
                    addresses = [url.replace("-", "").replace(".", "") for url in addresses]
                values[name] = np.array([len(set(pattern.findall(url))) for url in addresses], dtype=float)
        return {}, values


def host_of(url: str) -> str | None:
    """
    The host of an address, in ASCII and lower case, without user, port and final dot; `None` where there is none.

    It is read as leniently as browsers read it: `//bad.com`, `bad.com/page`, `http:\\\\bad.com` have a host, too.
    `javascript:` and `mailto:` have none.
    """
    url = url.strip(_CONTROLS_AND_SPACE).replace("\t", "").replace("\n", "").replace("\r", "")
    if match := _AUTHORITY.match(url):
        url = match[1]
    elif match := _WEB_SCHEME.match(url):
        url = url[match.end() :].lstrip("/\\")
    elif _OTHER_SCHEME.match(url):
        return None
    authority = re.split(r"[/\\?#]", url, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    host = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return ascii_host(unquote(host) if "%" in host else host)


def ascii_host(host: str) -> str | None:
    """A host name as its registry writes it: IDNA, lower case; `None` where it is none."""
    if not host.isascii():
        try:
            host = host[:1000].encode("idna").decode()
        except UnicodeError:
            return None
    host = host.lower().strip(".")
    return host if 0 < len(host) <= 253 and not _NO_HOST.search(host) else None


class DomainList:
    """
    Domains by 64-bit hashes, sorted: 8 bytes each, where a set of strings would take 120.

    In a trillion look-ups in a list of four million, one host in five is taken for another.
    """

    def __init__(self, path: str, letter: bool) -> None:
        self.letter = letter
        with open(path, "rb") as file:
            entries: Iterable[bytes] = (line.decode(errors="replace").rstrip("\r\n").lower().encode() for line in file)
            if not letter:
                entries = _entries_of(file)
            self.hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, entries), dtype=np.uint64)
        self.hashes.sort()

    def count(self, urls: list[str]) -> Values:
        """1 for each address that is of a listed domain, 0 for others, NaN where there is no host; `(rows,)`."""
        values = np.zeros(len(urls))
        candidates: list[int] = []
        rows: list[int] = []
        for row, url in enumerate(urls):
            names = self._names_of(url)
            if not names:
                values[row] = np.nan
            candidates.extend(map(_hash, names))
            rows.extend([row] * len(names))
        hashes = np.array(candidates, dtype=np.uint64)
        places = np.searchsorted(self.hashes, hashes)
        is_listed = places < len(self.hashes)
        is_listed[is_listed] = self.hashes[places[is_listed]] == hashes[is_listed]
        values[np.array(rows, dtype=int)[is_listed]] = 1
        return values

    def _names_of(self, url: str) -> list[str]:
        """The names that a list may have for an address: its host, and what is above it."""
        if self.letter:
            try:
                netloc = urlsplit(url).netloc.lower().replace("www", "")
            except ValueError:
                return []
            return [netloc] if netloc else []
        host = host_of(url)
        if host is None:
            return []
        labels = host.split(".")
        # a top-level domain alone would ban every page below it
        return [host] + [".".join(labels[first:]) for first in range(1, len(labels) - 1)]


def _entries_of(file: Iterable[bytes]) -> Iterator[bytes]:
    lines = iter(file)
    while block := list(islice(lines, 10_000)):
        text = b"".join(block).lower()
        # millions of lines are as they should be, and seen to be so thousands at a time
        if _PLAIN_BLOCK.fullmatch(text) and b"www." not in text:
            yield from text.split()
        else:
            entries = (_entry_of(line.decode(errors="replace")) for line in block)
            yield from (entry.encode() for entry in entries if entry)


def _entry_of(line: str) -> str | None:
    """The domain that a line of a list names; a line with a path names less than a domain."""
    entry = line.strip().lower()
    if entry.startswith("#"):
        return None
    entry = re.sub(r"^[a-z]+://", "", entry).rstrip("/").removeprefix("*.").removeprefix("www.")
    return None if "/" in entry else ascii_host(entry)


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def _file_state(path: str) -> tuple[str, int, int]:
    """A file as it is now, so that a changed one is read again."""
    status = require_file(path).stat()
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _domains_of(path: str, mtime_ns: int, size: int, letter: bool) -> DomainList:
    return DomainList(path, letter)


@lru_cache(maxsize=8)
def _word_pattern(path: str, mtime_ns: int, size: int, whole_words: bool) -> re.Pattern[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        pattern = trie_pattern(line.strip().lower() for line in file)
    return re.compile(rf"\b{pattern}\b" if whole_words else pattern)


@lru_cache(maxsize=16)
def _file_hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
