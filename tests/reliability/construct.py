"""
Child of `test_leak.py`: construct a trainer again and again, and say what the process then holds.

    python -m tests.reliability.construct METHOD N FOLDER

METHOD is a name of `tests.conformance.registry.TRAINERS`, or `stock` for TRL's SFTTrainer itself. Prints one JSON line
for every ten constructions: how many there were, resident bytes, open files, threads, and living trainers.
"""

from __future__ import annotations

import tests.conftest  # isort: skip  # noqa: F401 - one thread, the CPU, offline: before torch

import gc
import json
import sys
from pathlib import Path
from typing import Any

import psutil
from datasets import disable_progress_bars
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from tests.conformance.registry import BY_NAME, plain_rows
from tests.trainers.runs import build, config_of

ROWS = 8


def construct(name: str, folder: Path) -> Any:
    """A trainer, built as a user builds it."""
    if name == "stock":
        return build(SFTTrainer, config_of(SFTConfig, folder / "out"), plain_rows(ROWS))
    return BY_NAME[name].build(folder, ROWS)


def main() -> None:
    """Construct, drop, count."""
    name, times, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    disable_progress_bars()
    process = psutil.Process()
    for n in range(1, times + 1):
        construct(name, folder)
        if n % 10 == 0:
            gc.collect()
            alive = sum(issubclass(type(thing), Trainer) for thing in gc.get_objects())
            held = {"rss": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}
            print(json.dumps({"constructions": n, "trainers": alive} | held), flush=True)


if __name__ == "__main__":
    main()
