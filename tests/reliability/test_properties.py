"""The property tests of the losses with twenty times the examples of the default suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_properties_of_losses_hold_on_ten_thousand_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "logical", "--maxprocesses", "4", "--timeout", "3600",
         "--hypothesis-show-statistics", "tests/losses"],
        cwd=ROOT, env=os.environ | {"HF_EXT_EXAMPLES": str(EXAMPLES)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{EXAMPLES} passing" in done.stdout
