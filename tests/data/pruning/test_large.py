"""A million rows on disk: what `prune` keeps in memory, and that a killed run ends with the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# HF_EXT_PRUNE_ROWS makes the test smaller; the limits are those of the full size.
ROWS, WIDTH, SHARE = int(os.environ.get("HF_EXT_PRUNE_ROWS", "1000000")), 384, 0.01
LIMIT = 3 * 2**30

CHILD = """
import json, sys, time
import numpy as np
from datasets import load_from_disk
from hf_ext import prune
rows, vectors, out, resume = sys.argv[1:]
start = time.perf_counter()
kept = prune(load_from_disk(rows), fraction=0.01, column=np.load(vectors, mmap_mode="r"), resume_path=resume,
             save_every=2.0, show_progress=False)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # rusage would count the parent's memory
found = {"row": list(kept["row"]), "rank": list(kept["prune_rank"]), "seconds": seconds}
json.dump({**found, **{name: int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}}, open(out, "w"))
"""


def make_rows(folder):
    """Unit-like rows of a falling spectrum, written in pieces, and a dataset of their numbers."""
    from datasets import Dataset

    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(WIDTH))).astype(np.float32)
    vectors = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.float32, shape=(ROWS, WIDTH))
    for first in range(0, ROWS, 50_000):
        block = rng.standard_normal((min(50_000, ROWS - first), WIDTH), dtype=np.float32) * scale + 0.02
        vectors[first : first + len(block)] = block
    vectors.flush()
    Dataset.from_dict({"row": np.arange(ROWS)}).save_to_disk(folder / "rows")


def started(folder, name):
    words = [str(folder / "rows"), str(folder / "x.npy"), str(folder / f"{name}.json"), str(folder / f"{name}.npz")]
    return subprocess.Popen([sys.executable, "-c", CHILD, *words], env=os.environ | {"TQDM_DISABLE": "1"})


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_a_million_rows_are_pruned_within_three_gigabytes_and_a_killed_run_keeps_the_same(tmp_path):
    make_rows(tmp_path)
    assert started(tmp_path, "whole").wait() == 0
    whole = json.loads((tmp_path / "whole.json").read_text())
    print(
        f"\n{ROWS:,} x {WIDTH} to {SHARE:.0%}: {whole['seconds']:.0f} s, peak {whole['VmHWM'] / 2**30:.2f} GiB, "
        f"{whole['RssAnon'] / 2**30:.2f} GiB of them not mapped from files at the end"
    )
    assert len(whole["row"]) == ROWS * SHARE
    assert whole["VmHWM"] < LIMIT
    child, picks = started(tmp_path, "cut"), tmp_path / "cut.npz"
    try:
        while child.poll() is None:
            if picks.exists() and len(np.load(picks)["0/numbers"]) > ROWS * SHARE / 2:
                break
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert picks.exists(), "the run ended before it could be killed"
    assert started(tmp_path, "cut").wait() == 0
    again = json.loads((tmp_path / "cut.json").read_text())
    assert (again["row"], again["rank"]) == (whole["row"], whole["rank"])
    assert again["VmHWM"] < LIMIT
