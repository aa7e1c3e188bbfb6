"""Two hundred trainers constructed in one process hold no more than the first twenty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.registry import TRAINERS

ROOT = Path(__file__).resolve().parents[2]
WARM, LAST = 20, 200
GROWTH = 0.05  # of the resident memory after the first twenty


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["stock", *(method.name for method in TRAINERS)])
def test_two_hundred_constructions_hold_no_more_than_twenty(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.reliability.construct", name, str(LAST), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"constructions"')]
    held = {line["constructions"]: line for line in lines}
    first, last = held[WARM], held[LAST]
    growth = last["rss"] / first["rss"] - 1
    print(f"{name}: {first['rss'] / 2**20:.0f} MiB after {WARM}, {growth:+.2%} after {LAST}")
    assert last["trainers"] <= 1
    assert last["files"] <= first["files"]
    assert last["threads"] <= first["threads"]
    assert growth < GROWTH
