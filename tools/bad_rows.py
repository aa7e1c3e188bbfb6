"""
Write docs/bad_rows.md: every kind of bad row the tests know, and the sentence it gets.

Run from the checkout: `python tools/bad_rows.py`. A test compares the page with what this script makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad_rows.md"

# Column of the good row -> the data type's name in TRL's words; the first that fits, in this order.
TYPES = {
    "chosen": "preference",
    "label": "unpaired preference",
    "input_ids": "pretokenised",
    "prompt": "prompt-completion",
    "conversations": "conversations",
    "messages": "messages",
    "text": "text",
    "story": "text (named field)",
}
WITH_TURNS = ("preference", "unpaired preference", "prompt-completion")  # their turns are strings, or messages

HEAD = """\
# Errors for bad rows

Rows are checked before anything is tokenised. With `on_bad_row="raise"` (the default) the first bad row stops the run
with the sentence below; before it stands `row 2, column 'text': `, after it an excerpt of the row and the remedy. With
`on_bad_row="drop"` bad rows are left out, counted in the log, and written to `bad_rows.jsonl` with the same sentence.
If the disk is full, none of them is written.
A row that the tokenizer's chat template refuses is a bad row like these, and the sentence quotes the template.
For each case the tests have a good row beside it that passes. If a column's type makes every row bad, the sentence
also names that type.

The page is made by `python tools/bad_rows.py` from `bad_rows.py`, `bad_preference_rows.py` and `nothing_to_learn.py`
in `tests/guards`.
"""

NOTHING_TO_LEARN = """\
## Rows and datasets from which nothing can be learned

Each line was run: one step of a tiny model.

| defect | what happens |
|---|---|
"""


def data_type(columns: dict[str, object], options: dict[str, object]) -> str:
    """Name of a row's data type."""
    if "formatting_func" in options:
        return "formatted"
    name = next(name for column, name in TYPES.items() if column in columns)
    turn = columns.get("completion", columns.get("chosen"))
    chat = name in WITH_TURNS and isinstance(turn, list)
    return f"{name} (messages)" if chat else name


def sentence(case: Any) -> str:
    """What the row check says of a case: the first line of the error, without row and column."""
    from hf_ext.guards.rows import RowError, check_sft_rows
    from tests.guards.bad_preference_rows import PREFERENCE_CASES, check_of
    from tests.guards.bad_rows import as_stream, bad_rows_of

    check = check_of(case) if case in PREFERENCE_CASES else check_sft_rows
    try:  # a stream: a Dataset's sentence may go on with an Arrow type, whose name changes with pyarrow
        list(check(as_stream(bad_rows_of(case)), **case.options))
    except RowError as error:
        return str(error).split("\n")[0].split(": ", 1)[1]
    raise AssertionError(f"the case {case!r} passed")


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Data type, column, defect and sentence of every case."""
    from tests.guards.bad_preference_rows import PREFERENCE_CASES
    from tests.guards.bad_rows import CASES

    for case in [*CASES, *PREFERENCE_CASES]:
        yield data_type(case.base, case.options), case.column, case.name, sentence(case)


def page() -> str:
    """The whole page."""
    from tests.guards.nothing_to_learn import DEFECTS

    lines = [HEAD, "| data type | column | defect | sentence |", "|---|---|---|---|"]
    lines += [f"| {kind} | `{column}` | {name} | {_cell(text)} |" for kind, column, name, text in rows()]
    lines += ["", NOTHING_TO_LEARN + "\n".join(f"| {defect.name} | {_cell(defect.outcome())} |" for defect in DEFECTS)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{sum(1 for _ in rows())} cases written to {PAGE.relative_to(ROOT)}")
