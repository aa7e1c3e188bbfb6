"""A bad row that a command reads: told of by the option that named it, with what the command's user can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_ext.cli import main

COMMANDS = {
    "select": ["eval", "select", "--candidate", "original", "--items"],
    "forgetting": ["eval", "forgetting", "--original", "original", "--new", "original", "--output", "out", "--target"],
    "wise-ft": ["eval", "wise-ft", "--original", "original", "--new", "original", "--output", "out", "--target"],
    "flow-weights": ["data", "flow-weights", "--model", "original", "--output", "out.jsonl", "--dataset"],
    "preference": ["eval", "preference", "--model", "original", "--reference", "original", "--dataset"],
}
ROW = {"prompt": "Ada counts", "completion": " 7 apples.", "chosen": " 7 apples.", "rejected": " no."}


def refusal(name: str, changes: dict[str, Any], capsys: pytest.CaptureFixture, *options: str) -> tuple[str, str]:
    """Whether rows are refused of which the third is changed: the option that names them, and the message."""
    columns = ("prompt", "chosen", "rejected") if name == "preference" else ("prompt", "completion")
    rows = [{column: ROW[column] for column in columns} for _ in range(4)]
    rows[2] |= changes
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*COMMANDS[name], "rows.jsonl", *options]) == 2
    message = capsys.readouterr().err
    return COMMANDS[name][-1], message[message.index("error: ") + len("error: ") :]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_row_is_named_by_option_with_a_remedy_that_the_command_has(work, capsys, name):
    column = "chosen" if name == "preference" else "completion"
    option, message = refusal(name, {column: None}, capsys)
    assert message.startswith(f"{option} row 2, column {column!r}: expected a non-empty string, found None.\n")
    assert message.endswith(f"\n  Fix the row, or take it out of what {option} names.\n")
    assert "on_bad_row" not in message


def test_a_row_of_which_nothing_is_left_asks_for_a_greater_length(work, capsys):
    _, message = refusal("select", {"prompt": "Ada counts " * 40}, capsys, "--max-length", "64")
    assert message.startswith("--items row 2, column 'labels': no supervised token is left")
    assert message.endswith("\n  Raise --max-length, or take it out of what --items names.\n")


@pytest.mark.parametrize("name", ["select", "forgetting"])
def test_columns_of_other_names_are_named_by_options(work, capsys, name):
    assert main([*COMMANDS[name], "gsm8k.jsonl"]) == 2
    message = capsys.readouterr().err
    assert "this column is missing. The columns are 'question', 'answer'" in message
    assert message.endswith("\n  Name yours with --prompt-column and --completion-column, or rename them.\n")
