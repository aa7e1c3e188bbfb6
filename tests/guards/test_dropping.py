"""Dropped rows are kept on file, and a check by columns finds what a check row by row finds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.guards.rows import RowError, RowProblem, check_sft_rows, handle_bad_rows
from tests.guards.bad_rows import CASES, CHAT, FORMS, INF, NAN, as_dataset, as_stream, bad_rows_of

disable_progress_bars()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# where Arrow gives every row the bad row's type, no row is left to keep
@pytest.mark.parametrize(
    ("case", "form"),
    [
        pytest.param(case, form, id=f"{case.name.replace(' ', '_')}-{form}")
        for case in CASES
        for form in FORMS
        if not (case.wide and form == "dataset")
    ],
)
def test_drop_leaves_out_the_bad_row_and_writes_it(case, form, tmp_path):
    path = tmp_path / "logs" / "bad.jsonl"
    rows = FORMS[form](bad_rows_of(case))
    checked = check_sft_rows(rows, on_bad_row="drop", bad_rows_path=path, **case.options)
    assert [row["__hf_ext_row__"] for row in checked] == [0, 1, 3]
    (line,) = read_lines(path)
    assert (line["row_index"], line["column"]) == (2, case.column)
    assert case.problem in line["problem"]
    assert set(line["row"]) == set(case.base)


def test_drop_logs_the_count_and_the_first_problem(tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    rows = Dataset.from_dict({"text": ["a", "", None, "b"]})
    check_sft_rows(rows, on_bad_row="drop", bad_rows_path=path)
    (record,) = [record for record in caplog.records if record.name.startswith("hf_ext")]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("Dropped 2 bad row(s) of the train dataset and wrote them to ")
    assert "row 1, column 'text': expected a non-empty string, found an empty string" in record.getMessage()


@pytest.mark.parametrize("on_bad_row", ["drop", "raise"])
def test_many_bad_rows_are_read_together_and_not_one_by_one(tmp_path, monkeypatch, on_bad_row):
    reads = []
    read = Dataset.__getitem__

    def counted(dataset: Dataset, key: Any) -> Any:
        reads.append(key)
        return read(dataset, key)

    rows = Dataset.from_dict({"text": ["a"] + [""] * 12_345, "number": list(range(12_346))})
    monkeypatch.setattr(Dataset, "__getitem__", counted)
    path = tmp_path / "bad.jsonl"
    if on_bad_row == "raise":
        with pytest.raises(RowError, match=r"(?s)row 1, column 'text'.*12,344 more bad rows"):
            check_sft_rows(rows, bad_rows_path=path)
    else:
        check_sft_rows(rows, on_bad_row="drop", bad_rows_path=path)
        assert [line["row"]["number"] for line in read_lines(path)] == list(range(1, 12_346))
    blocks = [key for key in reads if key != slice(None)]  # a block that was read is then taken whole, as one
    assert len(blocks) < 20


def test_dropping_every_row_is_refused_after_writing_them(tmp_path):
    path = tmp_path / "bad.jsonl"
    with pytest.raises(ValueError, match="Every one of the 2 rows"):
        check_sft_rows(Dataset.from_dict({"text": ["", None]}), on_bad_row="drop", bad_rows_path=path)
    assert len(read_lines(path)) == 2


def test_only_the_main_process_writes_a_dataset_and_every_process_its_part_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    rows, options = [{"text": "a"}, {"text": ""}], {"on_bad_row": "drop", "bad_rows_path": tmp_path / "bad.jsonl"}
    assert len(check_sft_rows(as_dataset(rows), **options)) == 1
    assert list(tmp_path.iterdir()) == []
    assert len(list(check_sft_rows(as_stream(rows), **options))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.rank1.jsonl"]


def test_dropped_file_is_strict_json_whatever_the_row_holds(tmp_path):
    rows = Dataset.from_dict({"text": ["a", None], "weight": [1.0, NAN], "raw": [b"x", b"\xff"]})
    check_sft_rows(rows, on_bad_row="drop", bad_rows_path=tmp_path / "bad.jsonl")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads((tmp_path / "bad.jsonl").read_text(), parse_constant=refuse)
    assert line["row"] == {"text": None, "weight": "nan", "raw": r"b'\xff'"}


def test_handle_bad_rows_appends_and_raises_for_the_first(tmp_path):
    problems = [
        RowProblem(7, "labels", "no supervised token", "text: 'a'"),
        RowProblem(9, "weight", "short", "text: 'b'"),
    ]
    for _ in range(2):
        handle_bad_rows(problems, lambda index: {"text": str(index)}, "drop", tmp_path / "bad.jsonl", "train")
    assert [(line["row_index"], line["row"]["text"]) for line in read_lines(tmp_path / "bad.jsonl")] == [
        (7, "7"),
        (9, "9"),
    ] * 2
    with pytest.raises(RowError, match=r"(?s)row 7, column 'labels': no supervised token\..*1 more bad row in this"):
        handle_bad_rows(problems, dict, "raise", None, "train")
    handle_bad_rows([], dict, "raise", None, "train")


# properties

DEFECTS = {"good": "words", "blank": " ", "none": None, "empty": ""}
WEIGHTS = {"good": 0.5, "zero": 0.0, "none": None, "nan": NAN, "negative": -1.0, "inf": INF}


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(sorted(DEFECTS)), st.sampled_from(sorted(WEIGHTS))), max_size=12),
    stream=st.booleans(),
)
def test_kept_and_dropped_together_are_the_original_rows_in_order(kinds, stream):
    kinds = [("good", "good"), *kinds]
    rows = [{"text": DEFECTS[t] and f"{DEFECTS[t]} {i}", "weight": WEIGHTS[w]} for i, (t, w) in enumerate(kinds)]
    is_bad = [t in ("none", "empty") or w not in ("good", "zero") for t, w in kinds]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bad.jsonl"
        checked = check_sft_rows((as_stream if stream else as_dataset)(rows), on_bad_row="drop", bad_rows_path=path)
        kept = list(checked)
        dropped = read_lines(path)
    assert [row["__hf_ext_row__"] for row in kept] == [i for i, bad in enumerate(is_bad) if not bad]
    assert [line["row_index"] for line in dropped] == [i for i, bad in enumerate(is_bad) if bad]
    everything = {row["__hf_ext_row__"]: row["text"] for row in kept} | {
        d["row_index"]: d["row"]["text"] for d in dropped
    }
    assert [everything[i] for i in range(len(rows))] == [row["text"] for row in rows]


ENTRIES = st.lists(st.one_of(st.none(), st.integers(-2, 4)), max_size=4) | st.none()
CONTENTS = st.sampled_from(["", "words", None])
MESSAGE = st.none() | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "", None]), "content": CONTENTS}
)
IDS_ROW = st.fixed_dictionaries(
    {
        "input_ids": ENTRIES,
        "labels": st.lists(st.sampled_from([-100, -1, 0, 3, None]), max_size=4) | st.none(),
        "completion_mask": st.lists(st.sampled_from([0, 1, 2, None]), max_size=4) | st.none(),
        "weight": st.lists(st.sampled_from([0.0, 1.0, NAN, -1.0, None]), max_size=4) | st.none(),
    }
)
MESSAGES_ROW = st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3) | st.none()})
GOOD_IDS = {"input_ids": [1, 2], "labels": [1, 2], "completion_mask": [0, 1], "weight": [1.0, 1.0]}


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(IDS_ROW, max_size=8) | st.lists(MESSAGES_ROW, max_size=8), picks=st.data())
def test_column_wise_check_finds_what_the_row_by_row_check_finds(rows, picks):
    rows = [GOOD_IDS if rows and "input_ids" in rows[0] else CHAT, *rows]
    order = [0, *picks.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))]  # an indices mapping, with repeats
    with tempfile.TemporaryDirectory() as folder:
        options = {"assistant_only_loss": True, "on_bad_row": "drop", "bad_rows_path": Path(folder) / "bad.jsonl"}
        whole = check_sft_rows(as_dataset(rows).select(order), **options)
        stream = check_sft_rows(as_stream([rows[i] for i in order]), **options)
        assert whole["__hf_ext_row__"][:] == [row["__hf_ext_row__"] for row in stream]
