"""`hf-ext recipes list|show|copy`: the YAML files that come with the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_ext.guards.disk import write_whole, writing
from hf_ext.guards.exits import exit_status
from hf_ext.guards.near_names import did_you_mean
from hf_ext.recipes.files import method_of, recipe_files


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext recipes`."""
    parser = subparsers.add_parser("recipes", help="list, show or copy the recipes that come with the package")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="name every recipe and accelerate config")
    listing.add_argument("--json", action="store_true", help="a JSON list of objects with 'name' and 'about'")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("name", help="a name from the list, such as flow/gsm8k.yaml")
    show.add_argument("--path", action="store_true", help="print where the file is instead of what is in it")
    show.set_defaults(run=lambda options: exit_status(lambda: run_show(options), "hf-ext recipes show"))
    copy = actions.add_parser("copy", help="copy a recipe to edit it")
    copy.add_argument("name", help="a name from the list, such as flow/gsm8k.yaml")
    copy.add_argument("destination", nargs="?", default=".", help="a file or a folder (default: the current folder)")
    copy.add_argument("--force", action="store_true", help="overwrite a file that is there")
    copy.set_defaults(run=lambda options: exit_status(lambda: run_copy(options), "hf-ext recipes copy"))


def run_list(options: argparse.Namespace) -> int:
    """Print each name with the first comment line of its file."""
    headers = {
        name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, path in recipe_files().items()
    }
    if options.json:
        print(json.dumps([{"name": name, "about": line} for name, line in headers.items()], indent=2))
        return 0
    width = max(map(len, headers))
    for name, line in headers.items():
        print(f"{name:<{width}}  {line}")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """
    Print a recipe or its path.

    Raises:
        ValueError: if there is no such recipe; the message has close names.
    """
    path = _packaged(options.name)
    print(path if options.path else path.read_text(encoding="utf-8"), end="\n" if options.path else "")
    return 0


def run_copy(options: argparse.Namespace) -> int:
    """
    Copy a recipe and print the command that runs the copy.

    Raises:
        ValueError: if there is no such recipe; the message has close names.
        FileExistsError: if there is a file of that name, and no `--force`.
    """
    path = _packaged(options.name)
    destination = Path(options.destination)
    if destination.is_dir() or options.destination.endswith(("/", "\\")):
        destination = destination / path.name
    if destination.exists() and not options.force:
        raise FileExistsError(f"{destination} is there already; --force overwrites it")
    with writing("the recipe", destination):
        write_whole(destination, path.read_bytes())
    copy_name = destination.as_posix()
    copy_name = f"./{copy_name}" if copy_name in recipe_files() else copy_name  # else the package's own would be taken
    method = method_of(f"{path.parent.name}/{path.name}")
    print(f"copied to {destination}; run it with")
    if method is None:
        print(f"  hf-ext train METHOD --accelerate_config {copy_name}")
    else:
        print(f"  hf-ext {method.commands[0]} --config {copy_name}")
    return 0


def _packaged(name: str) -> Path:
    paths = recipe_files()
    path = paths.get(name, paths.get(f"{name}.yaml"))
    if path is None:
        raise ValueError(f"no recipe {name!r}{did_you_mean(name, paths)} ('hf-ext recipes list')")
    return path
