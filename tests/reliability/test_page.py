"""docs/reliability.md names tests that exist, and every promise once."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| R\d+ \|", line)]


def test_every_promise_stands_there_once_with_a_figure() -> None:
    assert [int(row.split("|")[1].strip()[1:]) for row in ROWS] == list(range(1, 29))
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5
        assert all(cells), row
    assert "@" not in PAGE


def test_every_test_it_names_exists() -> None:
    file, targets = "", (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests/|::|make )[^`]+)`", PAGE):
        if name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in targets, name
            continue
        path, _, test = name.partition("::")
        file = path or file
        assert (ROOT / file).exists(), name
        if test:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), name
