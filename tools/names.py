"""
Count variables whose name says nothing of what they hold: a bare participle, pronoun, adverb or adjective.

    python tools/names.py                       the library: hf_ext, trainers, recipes
    python tools/names.py hf_ext/guards         some of its files or folders

`found`, `kept` or `one` make a reader look for the definition; `checkpoint_name` does not. A variable counts once a
scope: what an assignment, a loop, a `with`, a comprehension or `:=` binds, parameters, and attributes. `self`, `_` and
names like `__all__` do not count. The share and the places are printed; more than 0.5 % is an error.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hf_ext", "trainers", "recipes")
MOST_VAGUE = 0.005  # share of all variables; other libraries of this field have under 0.001
NO_VARIABLES = {"self", "cls"}

PARTICIPLES = (
    "asked", "called", "carried", "counted", "done", "drawn", "dropped", "found", "given", "gone", "got", "held",
    "kept", "known", "left", "listed", "lost", "made", "named", "needed", "numbered", "picked", "read", "recorded",
    "said", "saved", "seen", "shown", "spent", "taken", "told", "tried", "used", "wanted", "written",
)  # fmt: skip
PRONOUNS = (
    "another", "both", "he", "her", "him", "his", "how", "it", "its", "mine", "one", "ones", "ours", "she", "some",
    "such", "that", "their", "theirs", "them", "there", "these", "they", "this", "those", "we", "what", "where",
    "which", "who", "whose", "why",
)  # fmt: skip
ADJECTIVES = ("after", "alike", "before", "fresh", "here", "new", "now", "old", "own", "same", "then", "whole")
VAGUE = {*PARTICIPLES, *PRONOUNS, *ADJECTIVES}


class Variable(NamedTuple):
    """A variable where its scope binds it first."""

    name: str
    line: int


class _Bindings(ast.NodeVisitor):
    """Collects the variables of a file, each once a scope."""

    def __init__(self) -> None:
        self.variables: list[Variable] = []
        self._scopes: list[set[str]] = [set()]

    def _bind(self, name: str, line: int) -> None:
        is_special = name in NO_VARIABLES or not name.strip("_") or (name.startswith("__") and name.endswith("__"))
        if not is_special and name not in self._scopes[-1]:
            self._scopes[-1].add(name)
            self.variables.append(Variable(name, line))

    def _visit_scope(self, node: ast.AST) -> None:
        self._scopes.append(set())
        self.generic_visit(node)
        self._scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _visit_scope
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_scope

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id, node.lineno)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.attr, node.lineno)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self._bind(node.arg, node.lineno)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._bind(node.name, node.lineno)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self._bind(node.name, node.lineno)
        self.generic_visit(node)


def variables_of(source: str) -> list[Variable]:
    """
    The variables of a file.

    Args:
        source (`str`): Python.

    Returns:
        `list[Variable]`: each once a scope, with the line that binds it first.
    """
    bindings = _Bindings()
    bindings.visit(ast.parse(source))
    return bindings.variables


def is_vague(name: str) -> bool:
    """Whether a name, but for underscores around it, is one of the words that say nothing."""
    return name.strip("_").lower() in VAGUE


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The Python files at or below some paths, in order."""
    for path in paths:
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def main(arguments: list[str] | None = None) -> int:
    """Print the share and the places; 1 where the share is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / folder for folder in FOLDERS], metavar="PATH")
    num_variables = 0
    places: list[str] = []
    for path in python_files(parser.parse_args(arguments).paths):
        variables = variables_of(path.read_text(encoding="utf-8"))
        num_variables += len(variables)
        shown_path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        places += [f"{shown_path}:{line}: {name}" for name, line in variables if is_vague(name)]
    share = len(places) / max(num_variables, 1)
    for place in places:
        print(place)
    print(f"{len(places):,} of {num_variables:,} variables ({share:.2%}) have a name that says nothing.")
    return int(share > MOST_VAGUE)


if __name__ == "__main__":
    sys.exit(main())
