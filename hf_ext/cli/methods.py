"""`hf-ext methods`: everything that hf-ext can do, from the methods' records."""

from __future__ import annotations

import argparse
import json

from hf_ext.method import known_methods


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext methods`."""
    parser = subparsers.add_parser("methods", help="list what hf-ext can do, with the command and the paper of each")
    parser.add_argument("--json", action="store_true", help="a JSON list: name, summary, commands, title and arXiv id")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print name and summary of every method, and below them its commands and its paper."""
    methods = known_methods()
    commands = {method.name: [f"hf-ext {command}" for command in method.commands] for method in methods}
    if options.json:
        entries = [
            {
                "name": method.name,
                "summary": method.summary,
                "commands": commands[method.name],
                "paper": None if method.paper is None else {"title": method.paper.title, "id": method.paper.id},
            }
            for method in methods
        ]
        print(json.dumps(entries, indent=2))
        return 0
    width = max(len(method.name) for method in methods)
    for method in methods:
        source = "" if method.paper is None else f" (arXiv {method.paper.id})"
        print(f"{method.name:<{width}}  {method.summary}")
        print(f"{'':<{width}}  {', '.join(commands[method.name])}{source}")
    return 0
