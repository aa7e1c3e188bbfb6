"""No two files, and no two packages, import each other: inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"hf_ext": "hf_ext", "trainers": "hf_ext.trainers", "recipes": "hf_ext.recipes"}  # their installed names

Graph = dict[str, set[str]]


def module_name(path: Path, root: Path) -> str:
    """The installed name of a source file; a package's is that of its `__init__`."""
    folder, *parts = path.relative_to(root).with_suffix("").parts
    return ".".join([FOLDERS[folder], *parts]).removesuffix(".__init__")


def imports_of(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules of ours that a file names in an import, wherever in the file that stands."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            paths = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {path if path in modules else str(node.module) for path in paths}
    return targets & modules


@cache
def import_graph(root: Path) -> Graph:
    """Every file of the library, with the files it imports."""
    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    files = {module_name(path, root): path for path in paths}
    return {name: imports_of(ast.parse(path.read_text("utf-8")), set(files)) - {name} for name, path in files.items()}


def packages_of(graph: Graph, parent: str) -> Graph:
    """The children of a package, with the siblings that anything below them imports."""

    def child_of(name: str) -> str:
        return name.removeprefix(f"{parent}.").split(".")[0] if name.startswith(f"{parent}.") else ""

    children: Graph = {}
    for name, targets in graph.items():
        if child := child_of(name):
            children.setdefault(child, set()).update(map(child_of, targets))
    return {child: siblings - {child, ""} for child, siblings in children.items()}


def cycle_in(graph: Graph) -> list[str]:
    """The first circle of imports, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])[::-1]  # from the importer to what it imports
    return []


def write(root: Path, **files: str) -> None:
    for name, source in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_no_two_files_import_each_other():
    assert cycle_in(import_graph(ROOT)) == []


def test_no_two_packages_import_each_other():
    graph = import_graph(ROOT)
    packages = {name.rpartition(".")[0] for name in graph} - {""}
    circles = {package: cycle_in(packages_of(graph, package)) for package in packages}
    assert {package: circle for package, circle in circles.items() if circle} == {}


def test_an_import_inside_a_function_or_for_types_closes_a_circle(tmp_path):
    write(
        tmp_path,
        hf_ext__rows="def load():\n    from hf_ext.trainers import flow",
        trainers__flow="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hf_ext.files import Path",
        hf_ext__files="import hf_ext.rows",
        recipes__train="import hf_ext.rows, os",
    )
    circle = cycle_in(import_graph(tmp_path))
    assert set(circle) == {"hf_ext.rows", "hf_ext.trainers.flow", "hf_ext.files"}


def test_packages_whose_files_are_in_no_circle_may_import_each_other_and_are_seen(tmp_path):
    write(
        tmp_path,
        hf_ext__hub__push="import hf_ext.evaluation.report",
        hf_ext__hub__files="",
        hf_ext__evaluation__report="",
        hf_ext__evaluation__rows="import hf_ext.hub.files",
    )
    graph = import_graph(tmp_path)
    assert cycle_in(graph) == []
    assert set(cycle_in(packages_of(graph, "hf_ext"))) == {"hub", "evaluation"}
