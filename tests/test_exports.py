"""Every public name of hf_ext resolves, to the object its module defines."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import hf_ext


def names_imported_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(hf_ext.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {a.name: node.module for node in imports if node.module.startswith("hf_ext.") for a in node.names}


@pytest.mark.parametrize("name", hf_ext.__all__)
def test_exported_name_is_what_its_module_defines(name):
    value = getattr(hf_ext, name)
    assert value is getattr(import_module(value.__module__), name)
    assert value.__doc__, f"{name} has no docstring"


def test_type_checkers_see_the_names_that_users_get():
    assert names_imported_for_type_checkers() == hf_ext._EXPORTS
    assert sorted(hf_ext._EXPORTS) == hf_ext.__all__


def test_dir_lists_the_public_names():
    assert set(hf_ext.__all__) | {"__version__"} <= set(dir(hf_ext))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_ext' has no attribute 'FlowTrainer'"):
        hf_ext.FlowTrainer  # noqa: B018
