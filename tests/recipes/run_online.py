"""
Run the online recipe once whole, then again killed over and over, each time further on, until it is through.

    python -m tests.recipes.run_online FOLDER ARGUMENT...

The power cut comes just before a file of the run takes its name or a step is taken: the second such moment of the
first run, the third of the next, and so on. Every run is a child of its own. Writes `FOLDER/killed.json`: where each
killed run was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_ext
from hf_ext.recipes.infopo.online import RECIPE

# What a run would import: once here, and not once a child.
HEAVY = (
    getattr(hf_ext, RECIPE.trainer),
    RECIPE.make_parser(),
    transformers.LlamaForCausalLM,
    transformers.AutoTokenizer,
)
MOST = 40  # runs; a loop that makes no progress must end


def before(module: Any, name: str, hook: Callable[..., None]) -> None:
    """Call `hook` with the arguments of a module's function before it."""
    original = getattr(module, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        hook(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(module, name, hooked)


def child(arguments: list[str], kill_at: int | None, log: Path) -> int:
    """Exit status of a run in a child; -9 where it was killed before its `kill_at`-th moment."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = 0

    def moment(place: str) -> None:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{place}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    ours = str(log.parent / "cut")  # and not the caches of other libraries, which a second run finds filled
    before(os, "replace", lambda _, target, **__: moment(str(target)) if str(target).startswith(ours) else None)
    before(os, "rename", lambda _, target, **__: moment(str(target)) if str(target).startswith(ours) else None)
    before(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: moment("step"))
    status = 1
    try:
        status = RECIPE.run(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


def main(folder: Path, arguments: list[str]) -> int:
    """The whole run into `whole`, the killed ones into `cut`."""
    log = folder / "killed.txt"
    if child([*arguments, "--output_dir", str(folder / "whole")], None, log):
        return 1
    statuses = []
    for kill_at in range(2, MOST):
        statuses.append(child([*arguments, "--output_dir", str(folder / "cut")], kill_at, log))
        if statuses[-1] != -signal.SIGKILL:
            break
    places = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    (folder / "killed.json").write_text(json.dumps({"statuses": statuses, "places": places}))
    return statuses[-1]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
