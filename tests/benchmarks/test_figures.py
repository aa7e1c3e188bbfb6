"""Every measured figure in README, the pages and the trainers' READMEs is what a committed result says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Their numbers are limits of the code, messages, or figures of the tests that they name.
OF_THE_CODE = {"bad_rows", "benchmarks", "cli", "doctor", "hub", "reliability", "resuming"}
TEXTS = [
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.stem not in OF_THE_CODE),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "trainers").glob("*/README.md")),
]


@pytest.fixture(scope="module")
def figures():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import figures

    yield figures
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("figures", "measured"):
        sys.modules.pop(name, None)


@pytest.fixture
def one_page(figures, tmp_path, monkeypatch):
    """A repository with one page, one result and one entry."""
    (tmp_path / "results").mkdir()
    result = {"headline": {"ratio": 1.2345, "share": -0.25}, "date": "2026-01-02", "rows": [{"x": 1}, {"x": 3}]}
    (tmp_path / "results" / "speed.json").write_text(json.dumps(result))
    (tmp_path / "page.md").write_text("It takes 1.23\ntimes as long (2026-01-02), 2.0 on the\nmean and -0.3 of it.\n")
    table = """== page.md: speed
takes {1.23} times as long ({2026-01-02}), {2.0} on the mean and {-0.3} of it
    h["{}"] for ratio
    result["date"]
    mean("x")
    h["share"]
"""
    (tmp_path / "figures.txt").write_text(f"# a comment\n{table}")
    for name, place in {"ROOT": "", "RESULTS": "results", "TABLE": "figures.txt"}.items():
        monkeypatch.setattr(figures, name, tmp_path / place)
    figures._rows_of.cache_clear()
    yield tmp_path
    figures._rows_of.cache_clear()


def test_every_figure_is_what_its_result_says(figures):
    assert list(figures.faults()) == []


@pytest.mark.parametrize("text", TEXTS)
def test_every_figure_of_a_text_has_a_source(text, figures):
    sources = [entry for entry in figures.entries() if entry.text == text]
    assert figures.uncovered((ROOT / text).read_text(encoding="utf-8"), sources) == []


def test_a_figure_without_a_result_says_so_in_its_text(figures):
    from measured import MEASURED

    for entry in figures.entries():
        assert entry.text in TEXTS
        assert entry.figures, entry.snippet
        assert entry.lines, entry.snippet
        if entry.source.startswith("made by "):
            assert (ROOT / entry.source.removeprefix("made by ")).is_file()
        elif entry.source == "not committed" or (entry.source in MEASURED and not entry.result):
            words = " ".join((ROOT / entry.text).read_text(encoding="utf-8").split())
            assert "not committed" in words, entry.text
        else:
            assert entry.source == "no measurement" or entry.result, entry.source


def test_a_text_with_measured_figures_shows_their_day_and_where_to_see_whether_they_are_old(figures):
    for text in TEXTS:
        sources = [entry for entry in figures.entries() if entry.text == text]
        content = (ROOT / text).read_text(encoding="utf-8")
        for name in {entry.result for entry in sources if entry.result}:
            dates = [entry for entry in sources if entry.result == name and 'result["date"]' in entry.expressions]
            assert dates, f"{text} does not show the day of {name}"
            assert "benchmarks.md" in content, text


def test_a_wrong_figure_a_new_one_and_a_lost_snippet_are_found(one_page, figures):
    page = one_page / "page.md"
    good = page.read_text()
    assert list(figures.faults()) == []
    assert figures.uncovered(good, figures.entries()) == []
    for claim in ("It is 3.7 times faster.", "A gain of 12 %.", "Measured 2025-01-01.", "It takes 40 s."):
        assert len(figures.uncovered(f"{good}\n{claim}\n", figures.entries())) == 1, claim
    table = one_page / "figures.txt"
    table.write_text(table.read_text().replace("{1.23}", "{1.24}"))
    page.write_text(good.replace("1.23", "1.24"))
    (fault,) = figures.faults()
    assert "shows 1.24, speed has 1.2345" in fault
    page.write_text(good)
    assert any("does not hold" in fault for fault in figures.faults())
    assert figures.uncovered("Set `x=0.5`.\n\n    run --lr 0.1\n\nSee arXiv 2502.02797.\n", []) == []


def test_figures_are_written_into_text_and_table_as_they_were_written_there(one_page, figures):
    result = {"headline": {"ratio": 1234.567, "share": 0.25}, "date": "2026-03-04", "rows": [{"x": 5}, {"x": 3}]}
    (one_page / "results" / "speed.json").write_text(json.dumps(result))
    figures._rows_of.cache_clear()
    figures.write()
    expected = "It takes 1234.57\ntimes as long (2026-03-04), 4.0 on the\nmean and +0.2 of it.\n"
    assert (one_page / "page.md").read_text() == expected
    assert "{1234.57} times as long ({2026-03-04}), {4.0} on the mean" in (one_page / "figures.txt").read_text()
    assert list(figures.faults()) == []


def test_a_figure_agrees_where_it_is_the_value_rounded(figures):
    for figure, value in {
        "1.3": 1.25,
        "1.2": 1.25,
        "-0.1": -0.13,
        "41": 40.8,
        "100,000": 100_000,
        "0.30": 0.299,
    }.items():
        assert figures.agrees(figure, value), figure
    for figure, value in {"1.3": 1.24, "-0.1": -0.16, "0.13": -0.13, "42": 40.8, "2026-01-01": "2026-01-02"}.items():
        assert not figures.agrees(figure, value), figure
