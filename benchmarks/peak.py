"""Peak memory of a command, from a parent that is small itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Linux counts what a process held before `exec` into its `ru_maxrss`: a child forked from a large parent starts at the
# parent's size. So a bare interpreter, itself started afresh, starts the command and reads its peak.
LAUNCHER = """
import json, resource, subprocess, sys
program = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"status": program.returncode, "output": program.stdout, "peak": peak}))
"""


def run_alone(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """What a command prints, and its peak resident memory in bytes, its own children's included if larger."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    printed = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    report = json.loads(printed)
    if report["status"]:
        raise subprocess.CalledProcessError(report["status"], list(command), report["output"])
    return report["output"], report["peak"]


def peak_memory(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Peak resident memory of a command in bytes; that of the device where the last line says `{"device": bytes}`."""
    output, peak = run_alone(command, environment)
    lines = output.splitlines()
    device = json.loads(lines[-1]).get("device") if lines and lines[-1].startswith("{") else None
    return peak if device is None else int(device)
