"""A full disk is one sentence, and what was there before is as it was."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_ext.guards.disk import DiskFullError, append_whole, free_bytes, is_disk_full, replacing, write_whole, writing
from hf_ext.guards.exits import exit_status
from tests.recipes.work import SMALL, make_work_folder

posix = pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
ROOT = Path(__file__).parents[2]
CASES = (
    *("store", "cache", "bad_rows", "jsonl", "parquet", "vectors", "folder", "pool", "torch", "text", "run"),
    *("index", "classifier", "report"),  # of curation
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Everything that is written beside training, without room and then with: one process under a real limit."""
    command = [sys.executable, "-m", "tests.guards.full_disk", str(tmp_path_factory.mktemp("full"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@posix
@pytest.mark.parametrize("name", CASES)
def test_without_room_the_files_are_as_before_and_with_room_the_call_succeeds(name: str, cases: dict) -> None:
    found = cases[name]
    assert found["is_disk_full"], found
    # A store says at once that it is no longer complete, and keeps its temporary for the next attempt, unread.
    passing = {"manifest.json", *(file for file in found["left"] if name == "store" and file.startswith("."))}
    before, left = ({f: found[when][f] for f in found[when] if f not in passing} for when in ("before", "left"))
    assert left == before
    assert found["again"] != found["before"]
    assert not [file for file in found["again"] if file.endswith(".tmp")]


@posix
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cache", ("losses under the original model", "x.safetensors", "25.9 kB needed", "original_cache_dir")),
        ("bad_rows", ("dropped rows", "bad_rows.jsonl", "bad_rows_path")),
        ("jsonl", ("the rows", "rows.jsonl")),
        ("parquet", ("the rows", "rows.parquet")),
        ("vectors", ("the rows", "rows.parquet")),
        ("folder", ("the rows", "folder/rows")),
        ("index", ("the index", "x.parquet")),
        ("classifier", ("the classifier", "classifier/model")),
        ("report", ("the report",)),
        ("pool", ("the exemplars", "former store is as it was")),
        ("torch", ("the states", "states.pt")),
        ("run", ("the record of a run", "round-1/round.json", "marked as done stays so")),
        ("store", ("the context-free rows", "store", "Whole shards are intact")),
    ],
)
def test_the_sentence_says_what_where_how_much_and_what_to_do(name: str, words: tuple[str, ...], cases: dict) -> None:
    assert cases[name]["error"] == "DiskFullError"
    message = cases[name]["message"]
    assert "\n" not in message
    for word in ("No room", "free", *words):
        assert word in message, message
    assert "run again" in message or "repeat the call" in message


@posix
def test_a_store_that_met_a_full_disk_has_the_rows_of_an_unbroken_one(cases: dict) -> None:
    assert cases["store"]["rows"] == cases["store"]["whole"]


@posix
@pytest.mark.timeout(600)
def test_a_training_command_out_of_disk_is_status_1_and_no_traceback(tmp_path: Path) -> None:
    import resource

    make_work_folder(tmp_path)
    arguments = [*SMALL, "--dataset_name", "train.jsonl", "--output_dir", "out", "--report_to", "none"]
    room = 100_000
    done = subprocess.run(
        [sys.executable, "-m", "hf_ext.cli", "train", "weighted_sft", *arguments, "--save_strategy", "steps"],
        cwd=tmp_path, env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}, capture_output=True,
        text=True, timeout=500, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hf-ext train weighted_sft: error: No room to write a checkpoint to out/checkpoint-2")
    assert not (tmp_path / "out" / "checkpoint-2").exists()


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_real_errors_of_every_writer_are_known() -> None:
    writers = {
        "python": lambda: Path("/dev/full").write_bytes(b"x" * 100_000),
        "torch": lambda: torch.save(torch.zeros(100_000), "/dev/full"),
        "torch, to a file": lambda: _torch_to_a_file(),
    }
    for name, write in writers.items():
        with pytest.raises(Exception) as said:  # noqa: PT011  each library has a class of its own
            write()
        assert is_disk_full(said.value), f"{name}: {said.value!r}"


def _torch_to_a_file() -> None:
    with open("/dev/full", "wb") as file:
        torch.save(torch.zeros(100_000), file)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("CUDA out of memory"), ValueError("x")):
        assert not is_disk_full(error)
        with pytest.raises(type(error)) as said, writing("x", tmp_path):
            raise error
        assert said.value is error
    with pytest.raises(Exception) as refused:  # noqa: PT011  a class of safetensors
        save_file({"a": torch.zeros(2)}, tmp_path / "nowhere" / "x.safetensors")
    assert not is_disk_full(refused.value)


def test_the_reason_may_lie_behind_another_error(tmp_path: Path) -> None:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(error)


def test_the_message_has_sizes_and_free_bytes_are_read_before_cleaning_up(tmp_path: Path) -> None:
    order: list[str] = []
    with (
        pytest.raises(
            DiskFullError, match=r"write the thing to .*/a/b \([\d.,]+ .?B free, about 1,000,000\.0 GB needed\)\. Do"
        ),
        writing("the thing", tmp_path / "a" / "b", num_bytes=10**15, advice="Do.", clean_up=lambda: order.append("")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert order == [""]
    assert free_bytes(tmp_path / "not" / "there") > 0


def test_an_error_inside_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.json") as temporary:
        assert temporary.write_text("half of the n") / 0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]
    append_whole(tmp_path / "a.json", [b", and", b" more"])
    assert (tmp_path / "a.json").read_text() == "old, and more"


def test_where_a_piece_cannot_be_had_nothing_is_appended(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        append_whole(tmp_path / "a", pieces())
    append_whole(tmp_path / "b", [])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with replacing(tmp_path / "rows") as temporary:
        temporary.mkdir()
        (temporary / "data").write_text("x")
    assert (tmp_path / "rows" / "data").read_text() == "x"
    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "rows") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), DiskFullError("No room to ...")])
def test_a_full_disk_is_status_1_in_one_line(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert exit_status(command, "hf-ext x") == 1
    message = capsys.readouterr().err
    assert message.startswith("hf-ext x: error: ")
    assert message.count("\n") == 1
    assert str(error) in message
    assert "Free some space" in message or isinstance(error, DiskFullError)
