"""torchrun and accelerate's launcher inside this process: what ends `hf-ext train` ends every process of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hf_ext.guards.processes import LAUNCHER_VARIABLE

GRACE = 60  # seconds between the signal and SIGKILL; with enable_jit_checkpoint a checkpoint is saved in them
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")


class _Signalled(BaseException):
    """Raised by the signal's handler, so that the launcher's own `finally` blocks run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def launch(command: Sequence[str], environment: Mapping[str, str], prog: str) -> int:
    """
    Run a launcher's command in this process, and end with its workers.

    SIGTERM and SIGHUP are passed on; Ctrl-C reaches the workers as SIGTERM, so that they print no traceback. Then up
    to `GRACE` seconds are waited, or none after a second signal, and what is left of the run's processes is killed.

    Args:
        command (`Sequence[str]`):
            Interpreter, `-m`, the launcher's module, and its arguments.
        environment (`Mapping[str, str]`):
            Variables to set beside those of this process.
        prog (`str`):
            Name in front of messages.

    Returns:
        `int`: the status of the worker that failed; 128 + N where signal N ended it, or this process.
    """
    import psutil  # comes with accelerate
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    former_children = set(psutil.Process().children())
    variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE), **environment, LAUNCHER_VARIABLE: str(os.getpid())}
    with _variables(variables), _raised_signals():
        try:
            _run(command[2], command[3:])
            return 0
        except ChildFailedError as error:
            return _status_of(error)
        except subprocess.CalledProcessError as error:  # accelerate's, of a single process
            return _shell_status(error.returncode)
        except (SignalException, _Signalled) as error:
            number = int(getattr(error, "sigval", None) or error.args[0])
        except KeyboardInterrupt:
            number = int(signal.SIGINT)
        # torchrun has ended its workers by now, unless a second signal came in between; accelerate alone ends none.
        has_waited = signal.getsignal(signal.SIGTERM) is not _raise
        _end_children(former_children, 0 if has_waited else GRACE)
    name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    print(f"{prog}: {name}; its processes have ended", file=sys.stderr)
    return 128 + number


def _run(module: str, arguments: Sequence[str]) -> None:
    if module == "torch.distributed.run":
        from torch.distributed import run as torchrun

        options: Any = torchrun.parse_args(list(arguments))
        options.signals_to_handle = ",".join(_SIGNALS)  # Ctrl-C then ends the workers by SIGTERM (torch >= 2.9)
        torchrun.run(options)
    else:
        from accelerate.commands.launch import launch_command, launch_command_parser

        launch_command(launch_command_parser().parse_args(list(arguments)))


def _status_of(error: Any) -> int:
    """Of the first worker that failed by itself; the others are ended by torchrun."""
    statuses = [failure.exitcode for failure in error.failures.values()]
    first = error.get_first_failure()[1].exitcode
    return _shell_status(first if first > 0 else next((status for status in statuses if status > 0), first))


def _shell_status(status: int) -> int:
    return status if status >= 0 else 128 - status


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _raised_signals() -> Iterator[None]:
    """Handlers until torchrun sets its own, and for accelerate's launch of one process, which sets none."""
    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    former = {number: signal.signal(number, _raise) for number in numbers}
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)


def _raise(number: int, _frame: Any) -> None:
    raise _Signalled(number)


def _end_children(spared: set[Any], grace: float) -> None:
    """Whatever still lives of what was started here: SIGTERM, `grace` seconds, SIGKILL."""
    import psutil

    direct = [child for child in psutil.Process().children() if child not in spared]
    children = [process for child in direct for process in (child, *child.children(recursive=True))]
    try:
        for child in children if grace else ():
            _send(child, signal.SIGTERM)
        _, survivors = psutil.wait_procs(children, timeout=grace)
    except (_Signalled, KeyboardInterrupt):  # a second signal: no grace
        survivors = children
    for child in survivors:
        _send(child, getattr(signal, "SIGKILL", signal.SIGTERM))
    psutil.wait_procs(survivors, timeout=GRACE)


def _send(child: Any, number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        child.send_signal(number)
