"""The source as a program can judge it: lint rules, and one home for private names of the host libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"trl", "transformers", "sentence_transformers", "accelerate", "datasets", "peft"}
SOURCES = [p for folder in ("hf_ext", "trainers", "recipes", "model_cards") for p in (ROOT / folder).rglob("*.py")]


def private_host_imports(source: str) -> list[str]:
    """Names imported from a host library, or modules of it, that begin with one underscore."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in HOSTS:
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names if alias.name.split(".")[0] in HOSTS]
        else:
            continue
        found += [path for path in paths if any(p.startswith("_") and p[:2] != "__" for p in path.split("."))]
    return found


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_ground_floor_imports_private_names_of_the_host_libraries(path):
    if path.parent.name != "_upstream":
        assert private_host_imports(path.read_text(encoding="utf-8")) == []


def test_private_imports_are_seen():
    assert private_host_imports("from trl.trainer.sft_trainer import _pack") == ["trl.trainer.sft_trainer._pack"]
    assert private_host_imports("import transformers._x as x") == ["transformers._x"]
    assert private_host_imports("from datasets import Dataset, __version__\nfrom torch import _C") == []
