"""
The `hf-ext` command: one module a verb, imported only when that verb is used.

A verb's module `hf_ext/cli/<verb>.py` offers `add_parser(subparsers)`, which adds its parser and sets the default
`run` to a function from the parsed arguments to an exit status. Heavy imports stay inside that function, so that help
answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import NoReturn

from hf_ext.guards.exits import ended_by_sigterm
from hf_ext.guards.streams import printing

# The verbs in the order `hf-ext --help` shows them.
VERBS = {
    "demo": "fine-tune the embedded model four ways and show what each forgot",
    "train": "train with a method (hf-ext methods names them)",
    "data": "curate, weight, sample, prune, privatize or relabel rows (curate, flow-weights, prune ...)",
    "eval": "measure what a model learned, forgot (forgetting), prefers (preference) and knows (core)",
    "methods": "list what hf-ext can do, with the command and the paper of each",
    "recipes": "list, show or copy the recipes that come with the package",
    "card": "write the model card of a saved folder again (render)",
    "doctor": "look at versions, devices and launch, and say what is wrong",
}


class _Version(argparse.Action):
    """Print the version; looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from hf_ext import __version__

        print(f"hf-ext {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose messages are one line, without the usage, and repeat what was typed, but no key."""

    def error(self, message: str) -> NoReturn:
        from hf_ext.guards.exits import without_keys

        self.exit(2, f"{self.prog}: error: {without_keys(message)}\n")


def make_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """
    Build the parser of `hf-ext`.

    Args:
        verb (`str`, *optional*):
            The verb about to run. Only its module is imported; the others are one line of help each.

    Returns:
        `argparse.ArgumentParser`: its result has `run`, a function of the parsed arguments, where a verb was given.
    """
    parser = _Parser(
        prog="hf-ext", description="Post-training for Hugging Face models that keeps what a model already knows."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    for name, line in VERBS.items():
        if name == verb:
            import_module(f"hf_ext.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the `hf-ext` command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; those of the process if not given.

    Returns:
        `int`: exit status; 2 where no verb was given, 130 after Ctrl-C, 141 where the reader of the output has left.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return printing(lambda: _run(arguments), "hf-ext")


def _run(arguments: list[str]) -> int:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser = make_parser(verb)
        options = parser.parse_args(arguments)
        if options.verb is None:
            parser.print_help(sys.stderr)
            return 2
        with nullcontext() if options.verb == "train" else ended_by_sigterm():  # trainers and launchers have their own
            return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
