"""docs/bad_rows.md says what the row checks and the trainers really do."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

from tests.guards.bad_preference_rows import PREFERENCE_CASES
from tests.guards.bad_rows import CASES
from tests.guards.nothing_to_learn import DEFECTS

ROOT = Path(__file__).resolve().parents[2]
ALL_CASES = [*CASES, *PREFERENCE_CASES]
TOOL = runpy.run_path(str(ROOT / "tools" / "bad_rows.py"))


def table(heading: str) -> list[list[str]]:
    """Cells of the page's table whose header begins so."""
    text = (ROOT / "docs" / "bad_rows.md").read_text(encoding="utf-8")
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines[2:]]


def test_the_page_is_what_the_script_makes():
    """Run `python tools/bad_rows.py` where this fails, and read what changed."""
    assert (ROOT / "docs" / "bad_rows.md").read_text(encoding="utf-8") == TOOL["page"]()


def test_the_page_has_at_least_forty_distinct_cases_over_every_data_type():
    rows = table("| data type |")
    assert len(rows) == len(ALL_CASES)
    assert len({tuple(row[:3]) for row in rows}) == len(rows) >= 40
    chats = {f"{name} (messages)" for name in TOOL["WITH_TURNS"]}
    assert set(TOOL["TYPES"].values()) | chats | {"formatted"} == {row[0] for row in rows}


def test_every_sentence_says_what_was_found():
    for case, (_, column, _, sentence) in zip(ALL_CASES, table("| data type |"), strict=True):
        assert column == f"`{case.column}`"
        assert case.problem.replace("|", "¦") in sentence


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name.replace(" ", "_"))
def test_nothing_to_learn_from_is_an_error_of_ours_or_a_defined_result(defect):
    outcome = defect.outcome()
    assert outcome.split(":")[0] in ("RowError", "ValueError", "trains")
    assert str(os.sep + "tmp") not in outcome
