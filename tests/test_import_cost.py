"""What `import hf_ext` and `hf-ext --help` cost: nothing heavy imported, and little time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "datasets", "trl", "numpy")
IMPORT = "import hf_ext"
HELP = "from hf_ext.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"


@pytest.mark.parametrize("code", [IMPORT, HELP, "import hf_ext; dir(hf_ext)"], ids=["import", "help", "dir"])
def test_nothing_heavy_is_imported(code):
    report = f"{code}\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "hf_ext" in modules
    assert modules.isdisjoint(HEAVY)


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize(("code", "bound"), [(IMPORT, 0.1), (HELP, 0.3)], ids=["import", "help"])
def test_time_above_a_bare_interpreter(code, bound):
    """Median of 11 runs, each followed by a bare one, in seconds."""
    extra = [_seconds(code) - _seconds("pass") for _ in range(11)]
    assert statistics.median(extra) <= bound
