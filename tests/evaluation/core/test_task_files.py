"""Folders of task files: DCLM's bundle, lists of labels, and files that are damaged or hostile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hf_ext.evaluation.core.task_files import load_tasks, task_files
from hf_ext.evaluation.core.tasks import CORE_TASKS, TASKS
from hf_ext.guards.row_errors import RowError
from tests.evaluation.core.small_tasks import small_rows, write_tasks


def write_bundle(folder: Path, labels: list[str], count: int = 3) -> None:
    for label in labels:
        rows = [row | {"category": f"c{i % 2}"} for i, row in enumerate(small_rows(label, count))]
        path = folder / TASKS[label].file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("inner", ["", "eval_data", "local_data"])
def test_dclms_bundle_is_read_by_its_folders(tmp_path, inner):
    write_bundle(tmp_path / inner, ["hellaswag", "jeopardy", "winograd", "mmlu_fewshot", "boolq"])
    assert [t.task.label for t in load_tasks(tmp_path)] == [
        "hellaswag_zeroshot", "jeopardy", "hellaswag", "winograd", "boolq",
    ]  # fmt: skip
    everything = {t.task.label: t for t in load_tasks(tmp_path, "all")}
    assert set(everything) == {
        "hellaswag_zeroshot", "jeopardy", "hellaswag", "winograd", "boolq", "mmlu_zeroshot", "mmlu_fewshot",
    }  # fmt: skip
    assert everything["mmlu_zeroshot"].rows == everything["mmlu_fewshot"].rows
    assert [row.category for row in everything["jeopardy"].rows] == ["c0", "c1", "c0"]


def test_a_whole_bundle_has_all_22(tmp_path):
    write_bundle(tmp_path, list(CORE_TASKS), count=2)
    assert [t.task.label for t in load_tasks(tmp_path, "core")] == list(CORE_TASKS)


def test_packed_and_plain_files_are_one(tmp_path):
    rows = small_rows("copa", 3)
    write_tasks(tmp_path / "plain", {"copa": rows})
    packed = write_tasks(tmp_path / "packed", {"copa": rows}, file="copa.jsonl.gz")
    with gzip.open(packed / "copa.jsonl.gz", "wt") as file:
        file.write((tmp_path / "plain" / "copa.jsonl").read_text())
    ((plain,), (of_gzip,)) = load_tasks(tmp_path / "plain"), load_tasks(packed)
    assert plain == of_gzip


def test_a_task_of_another_benchmark_in_the_list_is_left_alone(tmp_path):
    write_tasks(tmp_path, {"copa": small_rows("copa", 3)})
    manifest = json.loads((tmp_path / "tasks.json").read_text())
    manifest["riddles"] = {"file": "riddles.jsonl", "type": "riddle", "dclm_labels": [{"label": "riddles"}]}
    (tmp_path / "tasks.json").write_text(json.dumps(manifest))
    manifest["lists"] = manifest["riddles"] | {"dclm_labels": [{"label": ["copa"]}]}
    (tmp_path / "tasks.json").write_text(json.dumps(manifest))
    assert list(task_files(tmp_path)) == ["copa"]
    (tmp_path / "tasks.json").write_text(json.dumps(manifest | {"again": manifest["copa"]}))
    with pytest.raises(ValueError, match="'copa' is there twice, the second time under 'again'"):
        task_files(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "it is no JSON"),
        (b"[1]", "expected an object"),
        (b"\xff\xfe", "it is no JSON"),
        (b'{"query": "\\ud800", "choices": ["a", "b"], "gold": 0}', "half of a character"),
        (b'{"query": "a", "choices": ["a", "\\udfff"], "gold": 0}', "half of a character"),
        (b'{"query": "a", "choices": "ab", "gold": 0}', "expected a list of strings"),
        (b'{"query": "a", "choices": ["a", "b"], "gold": 1.0}', "an integer, found float 1.0"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write_tasks(tmp_path, {"copa": small_rows("copa", 2)})
    with (tmp_path / "copa.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(RowError, match="task 'copa', row 2") as caught:
        load_tasks(tmp_path)
    assert message in str(caught.value)


def test_a_category_that_is_needed_and_missing_is_named(tmp_path):
    write_tasks(tmp_path, {"jeopardy": small_rows("jeopardy", 2)})
    with pytest.raises(RowError, match="task 'jeopardy', row 0, field 'category': expected a string"):
        load_tasks(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    write_tasks(tmp_path, {"copa": small_rows("copa", 2)}, file="copa.jsonl.gz")
    (tmp_path / "copa.jsonl.gz").write_bytes(gzip.compress((tmp_path / "copa.jsonl").read_bytes())[:-20])
    with pytest.raises(ValueError, match=r"copa\.jsonl\.gz cannot be read"):
        load_tasks(tmp_path)
    (tmp_path / "copa.jsonl.gz").unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_tasks(tmp_path)
    (tmp_path / "tasks.json").write_text('{"copa": {"file": "copa.jsonl"}}')
    with pytest.raises(ValueError, match="'copa' lacks file, type or dclm_labels"):
        load_tasks(tmp_path)
    (tmp_path / "tasks.json").write_text("[")
    with pytest.raises(ValueError, match=r"tasks\.json is not a list of tasks"):
        load_tasks(tmp_path)
