"""Every public name of hf_ext resolves, to the object its module defines."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import hf_ext
import hf_ext.trainers
from tools.exports import stubs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "trainers").glob("*/README.md")]
LAZY = ["hf_ext", *(f"hf_ext.trainers.{path.parent.name}" for path in stubs() if path.parent.name != "hf_ext")]


def names_imported_for_type_checkers(package) -> dict[str, str]:
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "hf_ext.method"]
    return {a.name: node.module for node in imports for a in node.names}


@pytest.mark.parametrize("name", hf_ext.__all__)
def test_exported_name_is_what_its_module_defines(name):
    value = getattr(hf_ext, name)
    assert value is getattr(import_module(value.__module__), name)
    assert value.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", LAZY)
def test_type_checkers_see_the_names_that_users_get(name):
    package = import_module(name)
    homes = names_imported_for_type_checkers(package)
    assert sorted(homes) == package.__all__
    for exported, module in homes.items():
        assert getattr(package, exported) is getattr(import_module(module), exported)


def test_the_files_for_type_checkers_are_what_the_tool_writes():
    assert len(LAZY) > 1
    for path, text in stubs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python tools/exports.py"


def test_a_name_that_is_a_module_of_its_package_is_never_exported():
    """An import of the module would put it in the name's place."""
    for name in LAZY:
        package = import_module(name)
        modules = {path.stem for folder in package.__path__ for path in Path(folder).iterdir()}
        assert not modules & set(package.__all__)


def test_dir_lists_the_public_names():
    assert set(hf_ext.__all__) | {"__version__"} <= set(dir(hf_ext))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_ext' has no attribute 'FlowTrainer'"):
        hf_ext.FlowTrainer  # noqa: B018


def words_in_code(page: Path) -> set[str]:
    """Every word of a page that is set as code, in a line or in a block."""
    text = page.read_text(encoding="utf-8")
    block = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    spans = [*block.findall(text), *re.findall(r"`[^`\n]+`", block.sub("", text))]
    return {word for span in spans for word in re.findall(r"\w+", span)}


def test_every_public_name_is_on_a_page_in_code():
    on_pages = set().union(*map(words_in_code, PAGES))
    assert set(hf_ext.__all__) - on_pages == set(), "document it where its method is described, or do not export it"


@pytest.mark.parametrize("name", hf_ext.UNEXPORTED)
def test_a_name_that_is_exported_no_more_works_with_a_warning_that_names_its_module(name):
    assert name not in hf_ext.__all__
    with pytest.warns(FutureWarning, match=f"from {hf_ext.UNEXPORTED[name]} import {name}"):
        value = getattr(hf_ext, name)
    assert value is getattr(import_module(hf_ext.UNEXPORTED[name]), name)
