"""Processes that train together keep the same rows, or all of them stop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.distributed.launch import _free_port

ROOT = Path(__file__).parents[3]


def test_two_processes_with_unlike_predictions_stop_with_a_reason_and_like_ones_go_on() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--master_port", str(_free_port()), "-m", "tests.data.relabeling.run_ranks"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": loopback}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert f"rank {rank}: kept 3" in done.stdout
        for mode in ("consensus", "bayes_soft"):
            assert f"rank {rank}: {mode} the new labels differ between processes 0 and 1" in done.stdout
