"""`hf-ext recipes list|show`: the YAML files that come with the package."""

from __future__ import annotations

import argparse

from hf_ext.cli.errors import exit_status
from hf_ext.recipes.files import did_you_mean, package_folder, recipe_names


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext recipes`."""
    parser = subparsers.add_parser("recipes", help="list or show the recipes that come with the package")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="name every recipe and accelerate config").set_defaults(run=run_list)
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("name", help="a name from the list, such as flow/gsm8k.yaml")
    show.add_argument("--path", action="store_true", help="print where the file is instead of what is in it")
    show.set_defaults(run=lambda options: exit_status(lambda: run_show(options), "hf-ext recipes show"))


def run_list(options: argparse.Namespace) -> int:
    """Print each name with the first comment line of its file."""
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        first = (package_folder() / name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<{width}}  {first.lstrip('# ')}")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """
    Print a recipe or its path.

    Raises:
        ValueError: no such recipe; the message has close names.
    """
    names = recipe_names()
    name = options.name if options.name in names else f"{options.name}.yaml"
    if name not in names:
        raise ValueError(f"no recipe {options.name!r}{did_you_mean(options.name, names)} ('hf-ext recipes list')")
    path = package_folder() / name
    print(path if options.path else path.read_text(encoding="utf-8"), end="\n" if options.path else "")
    return 0
