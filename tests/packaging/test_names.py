"""Names of variables say what they hold: the tool that counts those that do not, and the share that it allows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = runpy.run_path(str(ROOT / "tools" / "names.py"))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("found = 1; found = 2", ["found"]),
        ("kept: int = 0", ["kept"]),
        ("for one, path in pairs: pass", ["one", "path"]),
        ("def load(self, given, *paths, own=1, **kept): pass", ["given", "paths", "own", "kept"]),
        ("with open(path) as _file: pass", ["_file"]),
        ("[what for what in range(3) if (old := what)]", ["what", "old"]),
        ("lambda which: which", ["which"]),
        ("try: pass\nexcept OSError as before: pass", ["before"]),
        ("match value:\n  case [known]: pass", ["known"]),
        ("reader.wanted = reader.wanted_rows", ["wanted"]),
        ("done = 1\ndef run():\n  done = 2", ["done", "done"]),
        ("__all__ = []; _, rest = pair", ["rest"]),
    ],
)
def test_a_variable_is_counted_once_where_its_scope_binds_it(source, names):
    assert [variable.name for variable in NAMES["variables_of"](source)] == names


def test_only_a_bare_word_says_nothing():
    names = ("found", "_found", "new_", "FOUND", "found_rows", "finding", "path")
    assert [name for name in names if NAMES["is_vague"](name)] == ["found", "_found", "new_", "FOUND"]


def test_a_file_of_vague_names_is_an_error_that_says_where(tmp_path, capsys):
    path = tmp_path / "rows.py"
    path.write_text("rows = []\nkept = rows\n")
    assert NAMES["main"]([str(path)]) == 1
    assert capsys.readouterr().out == f"{path}:2: kept\n1 of 2 variables (50.00%) have a name that says nothing.\n"
    path.write_text("rows = []\n")
    assert NAMES["main"]([str(path)]) == 0


def test_at_most_one_variable_of_the_library_in_two_hundred_has_a_name_that_says_nothing(capsys):
    status = NAMES["main"]([])
    assert status == 0, capsys.readouterr().out
