"""The main text of HTML pages, extracted in a process of its own that a page can only take down alone."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hf_ext.data.curation import html_worker
from hf_ext.data.curation.steps import Batch, RowStep, Rule, Values
from hf_ext.guards.extras import require_extra

WORKER_FILE = Path(html_worker.__file__)
# Bytes of address space: a page of 50 MB without markup takes 0.3 GiB, markup thirty times its size.
MAX_MEMORY = 2 << 30

LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Extraction(NamedTuple):
    """The text of a page, or the rule under which it has none."""

    text: str
    has_replacements: bool = False
    failure: str | None = None


OUTCOMES = {
    html_worker.UNDECODABLE: Extraction("", failure="undecodable"),
    html_worker.PARSER_ERROR: Extraction("", failure="parser_error"),
}


@dataclass(frozen=True, kw_only=True)
class HtmlToText(RowStep):
    """
    Extract the main text of HTML pages, with resiliparse as DCLM calls it.

    Bytes are decoded with the charset of the HTTP header, then as UTF-8, then with what the page says of itself or
    resiliparse detects; where none fits every byte, as UTF-8 with replacement, which `decode_fallback` says. Pages
    are parsed in a process of their own, bounded in time and memory: a page that kills the parser costs that page
    alone. `curate` does not keep the pages beside their texts; with `dataset.map` pass `remove_columns=["html"]`.

    | column in | type | column out | type |
    |---|---|---|---|
    | `html` | bytes or string | `text` | string |
    | `charset`, where there is one | string or null | `decode_fallback` | bool |

    Args:
        html_column (`str`, *optional*, defaults to `"html"`):
            Column of the pages; `text_column` is where their text goes.
        charset_column (`str`, *optional*, defaults to `"charset"`):
            Column of the HTTP header's charset; it may be absent.
        max_seconds (`float`, *optional*, defaults to 10):
            CPU seconds for a page (not held on Windows); the parser takes 2 milliseconds for most, and minutes for
            100,000 nested tags.
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            Drop, as `undecodable`, every page that is not valid UTF-8, as DCLM does without a word.

    Raises:
        MissingExtraError: if resiliparse is not installed.
        RuntimeError: if the parsing process cannot start.

    Reference: Li et al. 2024, *DataComp-LM*, section 4.2 (arXiv 2406.11794).
    """

    html_column: str = "html"
    charset_column: str = "charset"
    max_seconds: float = 10.0
    replicate_bugs: bool = False

    name: ClassVar[str] = "extract"
    column_field: ClassVar[str] = "html_column"
    document_types: ClassVar[tuple[type, ...]] = (str, bytes)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise ValueError(f"max_seconds must be a positive, finite number of seconds, got {self.max_seconds!r}.")

    @property
    def consumed_columns(self) -> tuple[str, ...]:
        """The pages."""
        return (self.html_column,) if self.html_column != self.text_column else ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What a page is dropped for; the value of all but the last is 1 where it happened."""
        failures = ("undecodable", "parser_error", "parser_crash", "too_slow")
        return (*(Rule(failure, maximum=0) for failure in failures), Rule("no_text", minimum=1))

    @property
    def versions(self) -> dict[str, str]:
        """Version of the parser."""
        require_extra("resiliparse")
        return {"resiliparse": version("resiliparse")}

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Extract each page's text; see [`RowStep.measure`]."""
        charsets = batch.get(self.charset_column) or [None] * len(texts)
        extractions = list(self._extractions(texts, charsets))
        values: dict[str, Values] = {}
        for rule in self.rules[:-1]:
            values[rule.name] = np.array([float(extraction.failure == rule.name) for extraction in extractions])
        lengths = [np.nan if failure else len(text.strip()) for text, _, failure in extractions]
        values["no_text"] = np.array(lengths, dtype=float)
        columns: dict[str, list[Any]] = {
            self.text_column: [extraction.text for extraction in extractions],
            "decode_fallback": [extraction.has_replacements for extraction in extractions],
        }
        return columns, values

    def _extractions(self, pages: Sequence[str | bytes], charsets: Sequence[str | None]) -> Iterator[Extraction]:
        """Each page's text; a worker that a page has killed is followed by another for the pages after it."""
        require_extra("resiliparse")
        position = 0
        while position < len(pages):
            extractions, return_code = self._run_worker(pages[position:], charsets[position:])
            yield from extractions
            position += len(extractions)
            if position < len(pages):
                is_slow = hasattr(signal, "SIGPROF") and return_code == -signal.SIGPROF
                yield Extraction("", failure="too_slow" if is_slow else "parser_crash")
                position += 1

    def _run_worker(
        self, pages: Sequence[str | bytes], charsets: Sequence[str | None]
    ) -> tuple[list[Extraction], int]:
        """What a worker says of the pages up to the one, if any, that kills it, and its exit status."""
        requests: list[bytes] = []
        surrogates: list[bool] = []
        for page, charset in zip(pages, charsets, strict=True):
            encoded_page, has_surrogates = _encoded(page)
            label = charset.strip().encode("ascii", "replace")[:100] if isinstance(charset, str) else b""
            requests += (html_worker.REQUEST.pack(isinstance(page, str), len(label), len(encoded_page)), label)
            requests.append(encoded_page)
            surrogates.append(has_surrogates)
        limits = [str(MAX_MEMORY), str(self.max_seconds), "strict" if self.replicate_bugs else "lenient"]
        # -S: no site, whose start-up files take longer than the worker's own; the path of this process replaces it
        worker = subprocess.run(  # noqa: S603 (this interpreter, a file of ours; pages go to its stdin)
            [sys.executable, "-S", "-P", str(WORKER_FILE), *limits],
            input=b"".join(requests),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if not worker.stdout:
            raise RuntimeError(
                f"The process that parses pages did not start (exit status {worker.returncode}): "
                f"{worker.stderr.decode(errors='replace').strip()[-500:]}"
            )
        extractions: list[Extraction] = []
        replies = memoryview(worker.stdout)[1:]
        while len(replies) >= html_worker.REPLY.size:
            outcome, size = html_worker.REPLY.unpack(replies[: html_worker.REPLY.size])
            encoded = replies[html_worker.REPLY.size : html_worker.REPLY.size + size]
            if len(encoded) < size:
                break
            has_replacements = outcome == html_worker.EXTRACTED_WITH_REPLACEMENTS or surrogates[len(extractions)]
            extractions.append(OUTCOMES.get(outcome) or Extraction(str(encoded, "utf-8"), has_replacements))
            replies = replies[html_worker.REPLY.size + size :]
        return extractions, worker.returncode


def _encoded(page: str | bytes) -> tuple[bytes, bool]:
    """A page as bytes, UTF-8 where it is text, and whether it had lone surrogates, which have none."""
    if isinstance(page, bytes):
        return page, False
    try:
        return page.encode(), False
    except UnicodeEncodeError:
        return LONE_SURROGATES.sub("\ufffd", page).encode(), True
