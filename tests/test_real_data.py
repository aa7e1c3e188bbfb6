"""The `real_data` fixture: a skip with one clear line, a failure where real data is required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEST = "def test_reads(real_data):\n    assert (real_data / 'manifest.json').is_file()\n"


@pytest.mark.parametrize(
    ("data", "required", "outcome"),
    [("", "", "1 skipped"), ("", "1", "1 error"), ("no-such-folder", "", "1 skipped"), (".", "1", "1 passed")],
)
def test_missing_data_skips_and_fails_where_required(tmp_path, data, required, outcome):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "manifest.json").write_text("{}")
    command = [sys.executable, "-m", "pytest", "-q", "-rsE", "-p", "no:cacheprovider", "--rootdir", ".", "test_it.py"]
    env = os.environ | {"HF_EXT_DATA": data, "HF_EXT_REQUIRE_REAL": required}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert outcome in done.stdout
    if "passed" not in outcome:
        assert "HF_EXT_DATA" in done.stdout
