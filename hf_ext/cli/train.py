"""`hf-ext train METHOD`: run a recipe here, or through a launcher where several processes or a config ask for one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hf_ext.cli.launching import launch
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import SIZE
from hf_ext.method import Method, method_named, trained_methods
from hf_ext.recipes.files import find_accelerate_config, read_settings, take_config

EPILOG = """
--schema after METHOD prints the JSON schema of the method's YAML file, for editors and checks.

launching (these two go anywhere after METHOD):
  --num_processes N        N processes: one a GPU through accelerate, or on the CPU through torchrun (gloo)
  --accelerate_config C    accelerate launch with this config: single_gpu, multi_gpu, fsdp2, zero2, zero3, or a file

'hf-ext train METHOD --help' shows every option of the method; 'hf-ext recipes list' the configs for --config.
"""


class _TakesTheRest(argparse.ArgumentParser):
    """A parser that leaves its arguments, `--help` too, to the recipe's own parser, which is slow to import."""

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Keep every argument in `arguments`."""
        namespace = argparse.Namespace() if namespace is None else namespace
        namespace.arguments = list(args or [])
        return namespace, []


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext train`."""
    parser = subparsers.add_parser(
        "train",
        help="train with a method",
        description="Train with a method.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    methods = parser.add_subparsers(
        title="methods", dest="method", metavar="METHOD", required=True, parser_class=_TakesTheRest
    )
    for method in trained_methods():
        methods.add_parser(method.name, help=method.summary, add_help=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `hf-ext train`."""
    prog = f"hf-ext train {options.method}"
    # No abbreviations: `--num` would be taken from the recipe, which may have an option that begins so.
    launch = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    launch.add_argument("--accelerate_config", "--accelerate-config")
    launch.add_argument("--num_processes", "--num-processes", type=SIZE)
    launch_options, arguments = launch.parse_known_args(options.arguments)
    method = method_named(options.method)
    if "--schema" in arguments:
        return exit_status(lambda: _print_schema(method.recipe, f"A recipe of {prog}: the file after --config"), prog)
    status = exit_status(lambda: _check_config(arguments), prog) or exit_status(lambda: _import(method), prog)
    if status:
        return status
    wants_launcher = launch_options.accelerate_config is not None or launch_options.num_processes not in (None, 1)
    if not wants_launcher or {"--help", "-h"} & set(arguments):
        return import_module(method.recipe).RECIPE.run(arguments, prog=prog)
    return exit_status(
        lambda: _launch(
            prog, method.recipe, arguments, launch_options.accelerate_config, launch_options.num_processes
        ),
        prog,
    )


def _import(method: Method) -> None:
    """Import what a method needs; a package that is missing is named in a line."""
    import hf_ext

    import_module(method.recipe)
    getattr(hf_ext, method.config)


def _check_config(arguments: Sequence[str]) -> None:
    """Refuse a file that is no YAML now, and not after the seconds that the recipe's imports take."""
    from hf_ext.recipes.schema import ENVIRONMENT, problem_of

    _, name = take_config(arguments)
    if name is None:
        return
    path, settings = read_settings(name)
    problem = problem_of(settings.get("env", {}), ENVIRONMENT)
    if problem:
        raise ValueError(f"{path}: env: {problem}")


def _print_schema(module: str, title: str) -> int:
    import json

    from hf_ext.recipes.schema import config_schema

    print(json.dumps(config_schema(import_module(module).RECIPE.make_parser().dataclass_types, title), indent=2))
    return 0


def _launch(prog: str, module: str, arguments: Sequence[str], config: str | None, processes: int | None) -> int:
    command, promised = launch_command(module, arguments, config, processes)
    import_module(module).make_parser(prog=prog).check_arguments(arguments)  # one line now, not one a process later
    # The recipe compares this promise with the processes that really train together.
    return launch(command, {} if promised is None else {"HF_EXT_NUM_PROCESSES": str(promised)}, prog)


def launch_command(
    module: str,
    arguments: Sequence[str],
    config: str | None = None,
    processes: int | None = None,
    devices: int | None = None,
) -> tuple[list[str], int | None]:
    """
    The command that runs a recipe in several processes.

    On the CPU it is torchrun: `accelerate launch` with a CPU config starts one process whatever it is told.

    Args:
        module (`str`):
            The recipe's module.
        arguments (`Sequence[str]`):
            The recipe's arguments.
        config (`str`, *optional*):
            Name or path of an accelerate config.
        processes (`int`, *optional*):
            Number of processes; by default the config's, else one a device.
        devices (`int`, *optional*):
            Accelerators of this machine; counted if not given.

    Returns:
        `tuple[list[str], int | None]`: the command, and the number of processes where it is known.

    Raises:
        ValueError: if there is no such config, a number is below 1, or the config needs missing accelerators.
    """
    from hf_ext.guards.yaml_file import read_yaml

    if processes is not None and processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {processes}")
    devices = _count_devices() if devices is None else devices
    values: dict[str, Any] = {}
    if config is not None:
        path = find_accelerate_config(config)
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(f"accelerate config {path} must be a YAML mapping, found {type(values).__name__}")
        count = values.get("num_processes", 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"accelerate config {path}: num_processes must be 1 or more, found {count!r:.60}")
    processes = processes if processes is not None else values.get("num_processes", max(devices, 1))
    kind = str(values.get("distributed_type", "NO"))
    on_cpu = devices == 0 if config is None else bool(values.get("use_cpu")) or kind == "MULTI_CPU"
    if config is not None and (kind not in ("NO", "MULTI_CPU") if on_cpu else devices == 0):
        raise ValueError(
            f"accelerate config {config!r} ({kind}) needs accelerators"
            f"{', and says use_cpu' if on_cpu else ' and this machine has none'}; on the CPU use --num_processes alone"
        )
    if on_cpu:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        return [sys.executable, "-m", *launcher, "-m", module, *arguments, "--use_cpu", "true"], processes
    path = find_accelerate_config(config or "multi_gpu")
    launcher = ["accelerate.commands.launch", "--config_file", str(path), "--num_processes", str(processes)]
    return [sys.executable, "-m", *launcher, "-m", module, *arguments], processes


def _count_devices() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
