"""Two processes on one place, started a little apart: what each of them got, said, and left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forks import forked

GAPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # seconds between the two starts


@dataclass(frozen=True)
class Outcome:
    """
    How a process ended.

    Args:
        result: what its work returned, after JSON; `None` after an error.
        error (`str`): class of the error, or nothing.
        message (`str`): the error's text.
    """

    result: Any = None
    error: str = ""
    message: str = ""


def started(work: Callable[[], Any], record: Path) -> int:
    """A process that does the work and writes its outcome into `record`."""

    def recorded() -> None:
        try:
            outcome = {"result": work()}
        except Exception as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        record.write_text(json.dumps(outcome))

    return forked(recorded)


def outcomes(work: Callable[[], Any], folder: Path, gap: float) -> list[Outcome]:
    """Of the first process, of the second, started `gap` seconds later, and of a third when both have ended."""
    records = [folder / name for name in ("first", "second", "afterwards")]
    first = started(work, records[0])
    time.sleep(gap)
    second = started(work, records[1])
    statuses = [os.waitpid(number, 0)[1] for number in (first, second)]
    statuses.append(os.waitpid(started(work, records[2]), 0)[1])
    assert statuses == [0, 0, 0]
    return [Outcome(**json.loads(record.read_text())) for record in records]
