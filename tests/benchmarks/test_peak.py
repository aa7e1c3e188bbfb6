"""Peak memory is the command's own, however large the process that asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MB = 2**20
HOLDS = "block = bytearray(b'x') * ({} * 2**20)"
FAT = f"""
import sys
sys.path.insert(0, sys.argv[1])
from peak import peak_memory
{HOLDS.format(400)}
for size in (64, 256):
    print(peak_memory([sys.executable, "-S", "-c", {HOLDS!r}.format(size)]))
"""


@pytest.mark.skipif(os.name != "posix", reason="peaks are read from getrusage")
def test_two_programs_of_known_use_differ_by_it_under_a_parent_larger_than_both():
    command = [sys.executable, "-c", FAT, str(BENCHMARKS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    small, large = map(int, printed.split())
    assert 64 * MB < small < 100 * MB
    assert large - small == pytest.approx(192 * MB, abs=4 * MB)


def test_device_memory_that_a_command_names_is_what_counts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peak

    try:
        assert peak.peak_memory([sys.executable, "-S", "-c", "print('{\"device\": 12345}')"]) == 12345
        with pytest.raises(subprocess.CalledProcessError):
            peak.peak_memory([sys.executable, "-S", "-c", "raise SystemExit(3)"])
    finally:
        sys.modules.pop("peak", None)
