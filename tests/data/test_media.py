"""Rows with pictures and the like as files: the bytes go along, paths of this machine do not."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from PIL import Image as Picture

from hf_ext.cli import main
from hf_ext.cli.options import check_columns, write_rows
from hf_ext.data.media import non_json_columns, write_parquet


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Dataset, list[bytes]]:
    """Rows whose pictures lie in files, and the files' bytes."""
    folder = tmp_path / "secret-place"
    folder.mkdir()
    for i in range(250):
        pixels = np.random.default_rng(i).integers(0, 255, (2, 3, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / f"{i}.png")
    paths = [str(folder / f"{i}.png") for i in range(250)]
    rows = Dataset.from_dict({"image": paths, "label": [i % 2 for i in range(250)]})
    return rows.cast_column("image", Image()), [Path(path).read_bytes() for path in paths]


@pytest.mark.parametrize("output", ["rows.parquet", "rows"])
def test_every_output_holds_the_pictures_and_no_path(
    tmp_path: Path, pictures: tuple[Dataset, list[bytes]], output: str
) -> None:
    rows, contents = pictures
    order = list(np.random.default_rng(0).permutation(250))
    write_rows(rows.select(order), tmp_path / output)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "secret-place" not in str(path)]
    assert files
    assert not [path for path in files if b"secret-place" in path.read_bytes()]
    if output == "rows":
        stored = load_from_disk(str(tmp_path / output)).cast_column("image", Image(decode=False))["image"][:]
    else:
        stored = pq.read_table(tmp_path / output)["image"].to_pylist()
    assert [picture["bytes"] for picture in stored] == [contents[i] for i in order]
    assert [picture["path"] for picture in stored] == [f"{i}.png" for i in order]


def test_rows_without_pictures_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"x": list(range(10)), "y": [["a"]] * 10}).select([3, 1, 2])
    write_parquet(rows, tmp_path / "ours.parquet")
    rows.to_parquet(tmp_path / "theirs.parquet")
    assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "theirs.parquet").read_bytes()


def test_bytes_that_are_in_the_rows_already_stay_and_a_path_beside_them_is_shortened(tmp_path: Path) -> None:
    stored = [{"bytes": b"png", "path": str(tmp_path / "gone" / "a.png")}, {"bytes": b"png", "path": None}, None]
    features = Features({"image": Image(decode=False)})
    write_parquet(Dataset.from_dict({"image": stored}, features=features), tmp_path / "rows.parquet")
    expected = [{"bytes": b"png", "path": "a.png"}, {"bytes": b"png", "path": None}, None]
    assert pq.read_table(tmp_path / "rows.parquet")["image"].to_pylist() == expected


@pytest.mark.parametrize(
    ("feature", "value", "is_json"),
    [
        (Value("string"), "a", True),
        (List({"a": List(Value("float32"))}), [{"a": [0.5]}], True),
        ({"a": Value("bool")}, {"a": None}, True),
        (Value("binary"), b"a", False),
        (List(Value("binary")), [b"a"], False),
        ({"a": {"b": Value("timestamp[s]")}}, {"a": {"b": datetime.datetime(2026, 1, 1)}}, False),
        (Value("date32"), datetime.date(2026, 1, 1), False),
        (Value("duration[s]"), datetime.timedelta(1), False),
    ],
)
def test_columns_that_json_has_no_words_for_are_told_before_any_work(
    tmp_path: Path, feature: Any, value: Any, is_json: bool
) -> None:
    rows = Dataset.from_dict({"x": [value]}, features=Features({"x": feature}))
    assert (non_json_columns(rows) == []) == is_json
    if is_json:
        assert json.loads(json.dumps(rows[0])) == rows[0]
        return
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(rows[0])
    for refused in (check_columns, write_rows):
        with pytest.raises(ValueError, match=r"rows\.jsonl.*JSON cannot hold column 'x'.*\.parquet"):
            refused(rows, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_command_says_so_with_status_2_and_writes_pictures_into_parquet(
    tmp_path: Path, pictures: tuple[Dataset, list[bytes]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures[0].save_to_disk("saved")
    prune = ["data", "prune", "--dataset", "saved", "--k", "3", "--method", "random", "--output"]
    assert main([*prune, "kept.jsonl"]) == 2
    assert "JSON cannot hold column 'image'" in capsys.readouterr().err
    assert main([*prune, "kept.parquet"]) == 0
    assert all(picture["bytes"] for picture in pq.read_table("kept.parquet")["image"].to_pylist())
