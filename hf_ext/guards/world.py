"""
Compare the number of processes that was promised with the number that train together.

Two launches go wrong silently. `accelerate launch` with `distributed_type: MULTI_CPU` and two processes starts
one. And `torchrun` on a machine without a GPU starts two that, without `use_cpu`, train apart and write one directory.
"""

from __future__ import annotations

import os

from accelerate import PartialState

PROMISE_VARIABLE = "HF_EXT_NUM_PROCESSES"
# in the order in which accelerate reads them
LAUNCHER_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_world_size(expected: int | None = None) -> int:
    """
    Check that as many processes train together as were asked for.

    Call it after the training arguments exist: they decide, by `use_cpu`, whether the processes join. Called earlier,
    it joins them as accelerate does by default.

    Args:
        expected (`int`, *optional*):
            Number of processes promised. By default it is read from the environment: `HF_EXT_NUM_PROCESSES`, which a
            user or a job script may set; else the size that torchrun or MPI announces. `accelerate launch` for one
            machine's CPU leaves no number, but it sets `MASTER_ADDR` only when it was asked for more than one process,
            and that is noticed.

    Returns:
        `int`: the number of processes that train together.

    Raises:
        RuntimeError: if it is not the number promised.
        ValueError: if the promise is not a positive number.
    """
    promised, source = _promise(expected)
    actual = int(
        PartialState(cpu=_flag("ACCELERATE_USE_CPU")).num_processes
    )  # its arguments count only at the first call
    if promised is None and actual == 1 and _simple_launch_of_many():
        raise RuntimeError(
            "accelerate launch was asked for more than one process (it set MASTER_ADDR), but this process trains "
            "alone: on CPU it starts only one. "
            + _remedy(2)
            + f" If one process is what you want, set {PROMISE_VARIABLE}=1."
        )
    if promised is not None and promised != actual:
        apart = ""
        if actual == 1 and promised > 1 and _announced() == promised:
            apart = " The launcher did start them, so each trains apart, on all rows, and writes the same directory."
        raise RuntimeError(
            f"{source} promises {promised} process{'es' if promised > 1 else ''}, but {actual} "
            f"train{'s' if actual == 1 else ''} together.{apart} {_remedy(promised)}"
        )
    return actual


def _promise(expected: int | None) -> tuple[int | None, str]:
    """The number promised and who promised it."""
    if expected is not None:
        if expected < 1:
            raise ValueError(f"expected must be at least 1 process, got {expected}.")
        return expected, "The caller"
    text = os.environ.get(PROMISE_VARIABLE)
    if text is not None:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{PROMISE_VARIABLE} must be a number of processes >= 1, got {text!r}.")
        return int(text), PROMISE_VARIABLE
    return _announced(), "The launcher's environment"


def _announced() -> int | None:
    sizes = (os.environ.get(name, "") for name in LAUNCHER_VARIABLES)
    return next((int(size) for size in sizes if size.isdecimal() and int(size) > 0), None)


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def _simple_launch_of_many() -> bool:
    # accelerate's launcher of a single process is the only one to set ACCELERATE_USE_CPU, and it sets MASTER_ADDR only
    # for num_processes > 1 or num_machines > 1 (accelerate 1.15, utils/launch.py, prepare_simple_launcher_cmd_env)
    return "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ


def _remedy(promised: int) -> str:
    return f"On CPU start them with `torchrun --nproc_per_node {promised}` and set use_cpu=True in its arguments."
