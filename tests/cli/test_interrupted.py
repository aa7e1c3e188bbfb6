"""Stopped in the middle of writing, a data verb leaves what was there, and ends with the signal's status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

ROOT = Path(__file__).parents[2]
STOPPED = """
import os, sys, time
import hf_ext.data.media as media
from hf_ext.cli import main

def half(rows, path):
    path.write_bytes(b"PAR1 and half of the rows")
    print("half", flush=True)
    time.sleep(60)

media.write_parquet = half
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_while_writing_leaves_the_former_file_and_nothing_else(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    Dataset.from_dict({"label": [0, 1], "pred": [0, 1]}).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "new.parquet").write_text("the former file")
    line = ["data", "relabel", "--dataset", "rows.parquet", "--num-classes", "2", "--output", "new.parquet"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", STOPPED, *line, "--overwrite"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(number)
    assert process.wait(60) == status
    assert (tmp_path / "new.parquet").read_text() == "the former file"
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.parquet", "new.parquet", "cache"}
