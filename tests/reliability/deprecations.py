"""
Plugin of pytest: a deprecation that transformers, trl or another host library announces fails the test it comes from.

`make test-lowest` and `make test-newest` run with `-p tests.reliability.deprecations`. Hosts announce in two ways, and
both count: as a warning of Python, and as a line of their log. What we cannot act on is in `ALLOWED`, with the reason.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

HOSTS = ("transformers", "trl", "datasets", "accelerate", "huggingface_hub", "peft")
ANNOUNCES = re.compile(r"deprecat|will be removed|no longer be supported|in a future (release|version)", re.IGNORECASE)

# Beginning of the announcement -> why it stays.
ALLOWED = {
    "`is_gradient_checkpointing` is deprecated": "peft 0.21.2 asks for it wherever it wraps a model",
    "`gradient_checkpointing` is deprecated": "trl 1.16 sets it in SFTConfig by default; the newer name came with"
    " transformers 5.23, which is above our floor",
}


class Announcements(logging.Handler):
    """Keeps the log lines that announce the end of something."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if ANNOUNCES.search(line) and not line.startswith(tuple(ALLOWED)):
            self.lines.append(f"{record.name}: {line}")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings raised in a file of a host, or by a host in ours, become errors."""
    for category in ("DeprecationWarning", "FutureWarning"):
        for host in HOSTS:
            config.addinivalue_line("filterwarnings", rf"error::{category}:{host}\b")
        for start in ALLOWED:
            config.addinivalue_line("filterwarnings", f"ignore:{re.escape(start)}:{category}")


@pytest.fixture(autouse=True)
def no_host_announces_the_end_of_something() -> Iterator[None]:
    """Fail where a host logged an announcement during the test."""
    seen = Announcements()
    loggers = [logging.getLogger(host) for host in HOSTS]
    for logger in loggers:
        logger.addHandler(seen)
    yield
    for logger in loggers:
        logger.removeHandler(seen)
    assert not seen.lines, "announced by a host library: " + "; ".join(seen.lines)
