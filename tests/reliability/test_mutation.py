"""How many small errors planted in the losses their tests notice: the last figures, and the engine that takes them."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ROOT / "hf_ext" / "losses"
NAMES = sorted(path.stem for path in LOSSES.glob("*.py") if path.stem != "__init__")
RECORD = json.loads((ROOT / "tests" / "reliability" / "mutation.json").read_text(encoding="utf-8"))
LEAST = 0.9

spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
assert spec is not None
assert spec.loader is not None
mutate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)


@cache
def planted_in(name: str) -> list[tuple[str, str, str]]:
    """Module, line and change of every mutant."""
    source = (LOSSES / f"{name}.py").read_text(encoding="utf-8")
    return [(name, mutant.text, mutant.change) for mutant in mutate.mutants(source)]


@pytest.mark.parametrize("name", NAMES)
def test_at_least_nine_in_ten_planted_errors_were_noticed(name: str) -> None:
    assert name in RECORD, f"never measured: run `python tools/mutate.py {name}`"
    entry = RECORD[name]
    assert entry["mutants"] == entry["killed"] + len(entry["survivors"])
    assert entry["killed"] >= LEAST * entry["mutants"]
    assert all(mutant["reason"] for mutant in entry["equivalent"])


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_is_of_the_source_as_it_stands(name: str) -> None:
    source = (LOSSES / f"{name}.py").read_text(encoding="utf-8")
    if RECORD.get(name, {}).get("source") != mutate.fingerprint(source):
        pytest.skip(f"{name}.py has changed since it was measured; run `python tools/mutate.py {name}`")
    planted = planted_in(name)
    left_out = [change for change in planted if change in mutate.EQUIVALENT]
    assert len(planted) - len(left_out) == RECORD[name]["mutants"], "the engine has changed since"
    assert len(left_out) == len(RECORD[name]["equivalent"])


def test_every_error_that_is_said_to_be_no_error_can_be_planted() -> None:
    planted = {change for name in NAMES for change in planted_in(name)}
    assert set(mutate.EQUIVALENT) <= planted, "the line has changed since"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_at_least_nine_in_ten_planted_errors_are_noticed(name: str, tmp_path: Path) -> None:
    output = tmp_path / "mutation.json"
    command = [sys.executable, "tools/mutate.py", name, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entry = json.loads(output.read_text(encoding="utf-8"))[name]
    assert entry["killed"] >= LEAST * entry["mutants"], done.stdout


SOURCE = '''"""Words 1 + 1."""
import torch
def f(x: int, y=2):
    """Words 2 + 2."""
    if x < y and not x:
        raise ValueError("words 3 + 3")
    return torch.log(x.abs(), dim=-1)
'''
CHANGES = [
    "2 -> 3",
    "2 -> -2",
    "if x < y and (not x): -> if not (x < y and (not x)):",
    "x < y and (not x) -> x < y or not x",
    "x < y -> x <= y",
    "x < y -> x >= y",
    "not x -> x",
    "raise ValueError('words 3 + 3') -> nothing",
    "return torch.log(x.abs(), dim=-1) -> return None",
    "torch.log(x.abs(), dim=-1) -> torch.log(x.abs())",
    "x.abs() -> x",
    "-1 -> 1",
    "1 -> 2",
]


def test_the_mutants_of_a_small_function() -> None:
    planted = mutate.kept_mutants(SOURCE)
    assert sorted(m.change for m in planted) == sorted(CHANGES)
    programs = {ast.unparse(m.tree) for m in planted}
    assert len(programs) == len(CHANGES), "two mutants are the same program"
    assert ast.unparse(ast.parse(SOURCE)) not in programs
    for program in programs:
        assert '"""Words 2 + 2."""' in program
        compile(program, "mutant", "exec")


def test_the_fingerprint_of_a_source_does_not_see_words() -> None:
    other = SOURCE.replace("Words", "Other words").replace("import torch\n", "import torch  # why\n\n")
    assert mutate.fingerprint(other) == mutate.fingerprint(SOURCE)
    assert mutate.fingerprint(SOURCE.replace("x < y", "x <= y")) != mutate.fingerprint(SOURCE)
