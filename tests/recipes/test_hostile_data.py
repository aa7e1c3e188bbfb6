"""Files of rows that come from elsewhere: outside of their folder, no files, or far larger than they look."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hf_ext.data.loading import load_splits
from hf_ext.guards import unpacked

CONFIGS = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"


def refused(path: Path, problem: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=rf"^dataset '{path}' cannot be loaded: .*{problem}") as info:
        load_splits(str(path), **options)
    assert "\n" not in str(info.value)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    return tmp_path / "secret.jsonl"


def test_data_files_outside_of_the_folder_are_refused(secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    assert load_splits(str(folder))["train"]["text"][:] == ["a"]
    for name in ("../secret.jsonl", str(secret), "../*.jsonl"):
        (folder / "README.md").write_text(CONFIGS.format(name))
        refused(folder, "secret")
    (folder / "README.md").unlink()
    (folder / "b.jsonl").symlink_to(secret)
    refused(folder, r"b\.jsonl is a link that leads out of")


def test_an_environment_among_the_rows_is_no_link_out_of_them(secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    (folder / ".venv" / "bin" / "b.jsonl").symlink_to(secret)
    assert load_splits(str(folder))["train"]["text"][:] == ["a"]
    (folder / ".venv" / "lib").symlink_to(tmp_path)  # a search for rows would walk on in there
    refused(folder, r"lib is a link that leads out of")


@pytest.mark.parametrize("name", ["../../secret.arrow", "/etc/hosts", "..", 3, None])
def test_a_saved_set_names_nothing_outside_of_its_folder(tmp_path: Path, name: object) -> None:
    for rows, place in (
        (Dataset.from_dict({"text": ["a"]}), "rows"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}), "splits/train"),
    ):
        folder = tmp_path / Path(place).parts[0]
        rows.save_to_disk(folder)
        assert load_splits(str(folder))["train"]["text"][:] == ["a"]
        state = tmp_path / place / "state.json"
        values = json.loads(state.read_text())
        values["_data_files"][0]["filename"] = name
        state.write_text(json.dumps(values))
        refused(folder, r"state\.json names .* no path inside")
    (tmp_path / "splits" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    refused(tmp_path / "splits", r"dataset_dict\.json names .* no path inside")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    refused(tmp_path / "rows.jsonl", "is a named pipe")
    (tmp_path / "rows.parquet").mkdir()
    refused(tmp_path / "rows.parquet", "")


def _zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", content)


def _parquet(path: Path, content: bytes, nested: bool = False) -> None:
    long = pa.array([content[: len(content) // 1000]])
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), long).cast(pa.string())
    turns = pa.StructArray.from_arrays([text], ["content"])
    messages = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), turns)
    pq.write_table(pa.table({"a": messages if nested else text}), path, compression="zstd")


BOMBS: dict[str, Callable[[Path, bytes], Any]] = {
    "a.jsonl.gz": lambda path, content: path.write_bytes(gzip.compress(content)),
    "b.jsonl": lambda path, content: path.write_bytes(gzip.compress(content)),  # datasets goes by what is in it
    "c.csv": lambda path, content: path.write_bytes(bz2.compress(content)),
    "d.json": lambda path, content: path.write_bytes(lzma.compress(content)),
    "e.txt": _zip,
    "f.parquet": _parquet,
    "g.parquet": lambda path, content: _parquet(path, content, nested=True),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_folder: bool
) -> None:
    monkeypatch.setattr(unpacked, "SMALL", 2**20)
    line = b'{"text": "' + b"x" * 5000 + b'"}\n'
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / name
    BOMBS[name](path, line * 800)
    refused(tmp_path / "rows" if in_folder else path, rf"{name} has [\d,]+ bytes and unpacks to more than")
    monkeypatch.setattr(unpacked, "SMALL", 2**23)
    unpacked.require_modest(path)  # as large as it is, it passes where that much is allowed


DAMAGED: dict[str, bytes] = {
    "no gzip.jsonl.gz": b'{"text": "a"\n',
    "cut gzip.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 10_000)[:60],
    "cut.parquet": b"PAR1" + b"\0" * 100,
    "empty.jsonl": b"",
    "empty.parquet": b"",
    "no object.jsonl": b"[1]\n[2]\n",
    "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "cut line.jsonl": b'{"text": "a"}\n{"text": "b',
    "parquet by name.parquet": b'{"text": "a"}\n',
    "lines by name.jsonl": b"PAR1" + b"\0" * 100 + b"PAR1",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_rows_ends_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    refused(tmp_path / name, "nested deeper than" if name == "deep.jsonl" else "")


def test_marks_line_ends_and_long_lines_are_read_as_they_are(tmp_path: Path) -> None:
    long = "x" * 30_000_000
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b\\u0000"}\r\n')
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": long}) + "\n")
    assert load_splits(str(tmp_path / "a.jsonl"))["train"]["text"][:] == ["a", "b\0"]
    assert load_splits(str(tmp_path / "b.jsonl"))["train"][0]["text"] == long
