"""What a manifest may name: a file, in the folder. A pipe would be waited for, a link read from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_ext.guards.inside import file_in, read_json, require_file, require_links_inside

OUTSIDE = [
    "../rows",
    "a/../../rows",
    "/etc/hosts",
    "C:\\rows",
    "..\\rows",
    "\\\\host\\rows",
    "",
    " ",
    ".",
    "a\0b",
    None,
    3,
    ["a"],
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "rows").write_text("secret")
    (tmp_path / "store").mkdir()
    with pytest.raises(ValueError, match=r"manifest\.json names .* which is no path inside its folder"):
        file_in(tmp_path / "store", name, "manifest.json")


def test_a_file_of_the_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "..rows").write_text("x")
    (tmp_path / "link").symlink_to("a/..rows")
    assert file_in(tmp_path, "a/..rows", "m").read_text() == "x"
    assert file_in(tmp_path, "link", "m").read_text() == "x"
    with pytest.raises(FileNotFoundError, match=r"b is missing\.$"):
        file_in(tmp_path, "b", "m")


def test_a_link_out_of_the_folder_is_refused_but_not_one_of_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1234", tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot / "sub", blobs, tmp_path / "store"):
        folder.mkdir(parents=True)
    (blobs / "5678").write_text("blob")
    (snapshot / "sub" / "file").symlink_to("../../../blobs/5678")
    (snapshot / "bad").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "bad").symlink_to(tmp_path / "secret")
    assert file_in(snapshot, "sub/file", "m").read_text() == "blob"
    assert file_in(snapshot / "sub", "file", "m").read_text() == "blob"
    require_links_inside(snapshot / "sub")
    for folder in (snapshot, tmp_path / "store"):
        with pytest.raises(ValueError, match=r"bad is a link that leads out of"):
            file_in(folder, "bad", "m")
        with pytest.raises(ValueError, match=r"bad is a link that leads out of"):
            require_links_inside(folder)


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, kind in (
        (tmp_path / "pipe", "is a named pipe"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=kind):
            require_file(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[1]", "must be a JSON object, found list"),
        (b"{", "is no JSON: Expecting"),
        (b"", "is no JSON: Expecting"),
        (b"\xff\xfe", "is no JSON: .*codec"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_json_of_another_shape_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{problem}"):
        read_json(tmp_path / "a.json")


def test_json_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(10**12)  # of holes
    with pytest.raises(ValueError, match=r"a\.json has 1,000,000,000,000 bytes"):
        read_json(tmp_path / "a.json")
