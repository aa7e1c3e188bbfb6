"""A worker for `run_launches`: it says that it is there, and waits for a signal or fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hf_ext.guards.processes import end_with_launcher


def main(folder: Path, work: str) -> int:
    """Exit status of the worker."""
    end_with_launcher()

    def handler(_number: int, _frame: Any) -> None:
        (folder / f"asked-{os.getpid()}").touch()
        if work == "save":
            time.sleep(0.3)
            (folder / f"saved-{os.getpid()}").touch()
            os._exit(143)

    if work != "wait":
        signal.signal(signal.SIGTERM, handler)
    (folder / f"worker-{os.getpid()}").touch()
    if work == "fail":
        if os.environ.get("RANK", "0") == "0":
            time.sleep(1)
            return 3
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(300)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
