"""
Run the online recipe once whole, then again killed over and over, each time further on, until it is through.

    python -m tests.recipes.run_online FOLDER ARGUMENT...
    python -m tests.recipes.run_online --random N FOLDER ARGUMENT...

The power cut comes just before a file of the run takes its name or a step is taken: the second such moment of the
first run, the third of the next, and so on; `--random` kills N runs once each, at moments drawn by lot, into `cut-0`,
`cut-1` ... Every run is a child of its own. Writes `FOLDER/killed.json`: where each killed run was.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

import hf_ext
from hf_ext._upstream import steps as _upstream_steps
from hf_ext.recipes.infopo.online import RECIPE

# What a run would import: once here, and not once a child.
HEAVY = (
    getattr(hf_ext, RECIPE.method.trainer),
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


def child(arguments: list[str], folder: Path, kill_at: int | None, log: Path) -> int:
    """Exit status of a run into `folder`, in a child; -9 where it was killed before its `kill_at`-th moment."""
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

    ours = str(folder)  # and not the caches of other libraries, which a second run finds filled
    before(os, "replace", lambda _, target, **__: moment(str(target)) if str(target).startswith(ours) else None)
    before(os, "rename", lambda _, target, **__: moment(str(target)) if str(target).startswith(ours) else None)
    before(_upstream_steps, "clip_grads_with_norm_", lambda *_, **__: moment("step"))
    status = 1
    try:
        status = RECIPE.run([*arguments, "--output_dir", ours])
        (log.parent / "moments.txt").write_text(str(seen))
    finally:
        sys.stdout.flush()
        os._exit(status)


def main(folder: Path, arguments: list[str], kills: int | None = None) -> int:
    """The whole run into `whole`, the killed ones into `cut` or, one each, into `cut-N`."""
    log = folder / "killed.txt"
    gc.freeze()  # a full collection, with which every training begins, is then quick
    if child(arguments, folder / "whole", None, log):
        return 1
    statuses = []
    if kills is None:
        for kill_at in range(2, MOST):
            statuses.append(child(arguments, folder / "cut", kill_at, log))
            if statuses[-1] != -signal.SIGKILL:
                break
    else:
        rng, moments = random.Random(0), int((folder / "moments.txt").read_text())
        for number in range(kills):
            for kill_at in (rng.randint(1, moments), None):
                statuses.append(child(arguments, folder / f"cut-{number}", kill_at, log))
    places = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    (folder / "killed.json").write_text(json.dumps({"statuses": statuses, "places": places}))
    return statuses[-1]


if __name__ == "__main__":
    if sys.argv[1] == "--random":
        sys.exit(main(Path(sys.argv[3]), sys.argv[4:], int(sys.argv[2])))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
