"""Randomised rows elsewhere in a push: another split, or a file of any kind, may not say what their labels were."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets
from pyarrow import feather

from hf_ext.data.relabeling import HashColumn, KeyRef, LabelLeakError, RandomizedResponse, privatize
from hf_ext.hub.labels import check_label_privacy, check_label_privacy_of_files
from hf_ext.hub.push import push_dataset, push_folder
from hf_ext.hub.tables import read_batches, tables_in
from tests.hub.fake_hub import FakeHub

os.environ["HF_EXT_SAME_ROWS_TEST_KEY"] = hashlib.sha256(b"a key for tests of same rows").hexdigest()
KEY = KeyRef(env="HF_EXT_SAME_ROWS_TEST_KEY")
N, K = 120, 4
NAMES = ["apple", "berry", "cherry", "date"]
TRUE = np.random.default_rng(5).integers(0, K, N)


def clean(first: int = 0, last: int = N) -> Dataset:
    columns = {"id": [f"r{i}" for i in range(first, last)], "text": [f"words of {i}" for i in range(first, last)]}
    columns["label"] = TRUE[np.arange(first, last) % N].tolist()
    return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=NAMES))


@pytest.fixture(scope="module")
def released() -> Dataset:
    return privatize(clean(), RandomizedResponse(1.0, K, KEY))


@pytest.fixture(scope="module")
def released_file(released: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "noisy.parquet"
    released.to_parquet(path)
    return path


def renamed(rows: Dataset) -> Dataset:
    return rows.rename_columns({"id": "uid", "label": "intent"})


def as_names(rows: Dataset) -> Dataset:
    return Dataset.from_dict({"uid": rows["id"], "kind": [NAMES[y] for y in rows["label"]]})


def in_json(rows: Dataset) -> Dataset:
    return Dataset.from_dict({"id": rows["id"], "meta": [json.dumps({"n": {"topic": y}}) for y in rows["label"]]})


ELSEWHERE: dict[str, Callable[[Dataset], Dataset]] = {
    "all rows": lambda rows: rows,
    "nine rows": lambda rows: rows.select(range(9)),
    "one row": lambda rows: rows.select([3]),
    "no text": lambda rows: rows.remove_columns("text"),
    "no id": lambda rows: rows.remove_columns("id"),
    "ids hashed": lambda rows: rows.map(HashColumn("id", KEY), batched=True),
    "other names": renamed,
    "names of classes": as_names,
    "inside JSON": in_json,
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "among others": lambda rows: concatenate_datasets([clean(N, 4 * N), rows.select(range(2))]),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_true_labels_of_randomised_rows_in_another_split_stop_a_push(
    hub: FakeHub, released: Dataset, tmp_path: Path, name: str
) -> None:
    splits = DatasetDict({"train": released, "other": ELSEWHERE[name](clean())})
    with pytest.raises(LabelLeakError, match=r"split 'other', column '\w+': .* randomised in split 'train'") as caught:
        push_dataset(splits, "me/labels", folder=tmp_path / "out")
    assert f"public_columns=['{caught.value.column}']" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not hub.repos
    check_label_privacy(splits, public_columns=[caught.value.column])


def numbered(rows: Dataset) -> Dataset:
    return rows.remove_columns("id").add_column("id", list(range(len(rows))))


def test_other_rows_keep_their_clean_labels_beside_randomised_ones(released: Dataset) -> None:
    others = clean(N, 3 * N)
    features = clean().remove_columns("label").add_column("length", [3 + i % 29 for i in range(N)])
    for rows in (others, features, features.remove_columns("id"), features.remove_columns("text")):
        check_label_privacy({"train": released, "other": rows})
    # Two sets that are numbered alike are told apart by their texts; without texts nobody can.
    check_label_privacy({"train": numbered(released), "other": numbered(others)})
    with pytest.raises(LabelLeakError, match="'other'"):
        check_label_privacy({"train": numbered(released), "other": numbered(others).remove_columns("text")})


def test_rows_without_a_ledger_among_those_with_one_are_looked_up_too(released: Dataset) -> None:
    check_label_privacy({"train": concatenate_datasets([released, clean(N, 2 * N)])})
    with pytest.raises(LabelLeakError, match="1 of its rows, such as 'r5', have no ledger"):
        check_label_privacy({"train": concatenate_datasets([released, clean(5, 6)])})


def test_a_copy_of_the_noisy_labels_may_stand_elsewhere(released: Dataset) -> None:
    copy = released.select_columns(["id", "label"])
    check_label_privacy({"train": released, "copy": copy})
    with pytest.raises(LabelLeakError, match="keep their ledger"):  # four equal labels may be chance
        check_label_privacy({"train": released, "copy": copy.select(range(4))})


def test_splits_that_privatize_left_alone_are_judged_by_their_rows() -> None:
    mechanism = RandomizedResponse(1.0, K, KEY)
    check_label_privacy(privatize(DatasetDict({"validation": clean(N, 2 * N), "train": clean()}), mechanism))
    with pytest.raises(LabelLeakError, match=r"split 'validation', .* 25 of its rows.* randomised in split 'train'"):
        check_label_privacy(privatize(DatasetDict({"validation": clean(5, 30), "train": clean()}), mechanism))


def test_labels_of_tokens_are_looked_for_beside_and_elsewhere() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 5, rng.integers(3, 9)).tolist() for _ in range(400)]
    words = [[f"w{rng.integers(99)}" for _ in row] for row in labels]
    numbers = [rng.integers(50, 99, len(row)).tolist() for row in labels]
    columns = {"id": [f"s{i}" for i in range(400)], "words": words, "sizes": numbers, "label": labels}
    true = Dataset.from_dict(columns)
    noisy = privatize(true, RandomizedResponse(1.0, 5, KEY))
    check_label_privacy({"train": noisy, "features": true.remove_columns("label")})
    leaking = (
        {"train": noisy.add_column("tags2", labels)},
        {"train": noisy, "other": true},
        {"train": noisy, "other": true.rename_column("label", "kinds")},
    )
    for splits, column in zip(leaking, ("tags2", "label", "kinds"), strict=True):
        with pytest.raises(LabelLeakError, match=f"column '{column}'"):
            check_label_privacy(splits)


def test_pictures_are_not_read_and_the_names_of_their_files_are(released: Dataset, tmp_path: Path) -> None:
    def with_pictures(names: list[str]) -> Dataset:
        pictures = [{"bytes": bytes([i]) * 1000, "path": name} for i, name in enumerate(names)]
        return released.add_column("image", pictures, feature=Image(decode=False))

    for names, leaks in (
        ([f"{i}.png" for i in range(N)], False),
        ([f"{NAMES[y]}/{i}.png" for i, y in enumerate(TRUE)], True),
    ):
        with_pictures(names).to_parquet(tmp_path / "rows.parquet")
        (table,) = tables_in("rows.parquet", tmp_path / "rows.parquet")
        assert "image.bytes" not in next(read_batches(table)).column_names
        if leaks:
            with pytest.raises(LabelLeakError, match=r"column 'image\.path'"):
                check_label_privacy_of_files({"rows.parquet": tmp_path / "rows.parquet"})
        else:
            check_label_privacy_of_files({"rows.parquet": tmp_path / "rows.parquet"})


def zipped(files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    write(buffer := io.BytesIO())
    return buffer.getvalue()


def packed(content: bytes, codec: str) -> bytes:
    with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def sqlite(rows: pd.DataFrame) -> bytes:
    connection = sqlite3.connect(":memory:")
    rows.to_sql("rows", connection, index=False)
    return bytes(connection.serialize())


def ipc(rows: pa.Table, new: Callable[..., pa.RecordBatchWriter]) -> bytes:
    with new(buffer := io.BytesIO(), rows.schema) as writer:
        writer.write_table(rows)
    return buffer.getvalue()


def in_formats(rows: pd.DataFrame) -> dict[str, bytes]:
    table = pa.Table.from_pandas(rows)
    csv, lines = rows.to_csv(index=False).encode(), rows.to_json(orient="records", lines=True).encode()
    parquet, document = written(lambda file: pq.write_table(table, file)), rows.to_json(orient="records").encode()
    records = rows.to_dict("records")
    return {
        "a.csv": csv,
        "a.tsv": rows.to_csv(index=False, sep="\t").encode(),
        "semicolons.csv": rows.to_csv(index=False, sep=";").encode(),
        "no_header.csv": rows.to_csv(index=False, header=False).encode(),
        "utf16.csv": rows.to_csv(index=False).encode("utf-16"),
        "no_suffix": csv,
        "a.json": document,
        "indented.json": json.dumps(records, indent=2).encode(),
        **{f"{shape}.json": rows.to_json(orient=shape).encode() for shape in ("columns", "index", "split", "values")},
        "nested.json": json.dumps({"version": 1, "data": {"rows": records}}).encode(),
        "lists.json": json.dumps(rows.to_dict("list")).encode(),
        "a.jsonl": lines,
        "lists.jsonl": "\n".join(json.dumps(list(row.values())) for row in records).encode(),
        "json.txt": lines,
        "table.md": "\n".join(f"| {' | '.join(map(str, row.values()))} |" for row in records).encode(),
        "a.yaml": "\n".join("- {" + ", ".join(f"{k}: {v}" for k, v in row.items()) + "}" for row in records).encode(),
        "a.html": rows.to_html().encode(),
        "a.parquet": parquet,
        "parquet": parquet,
        "stream.arrow": ipc(table, pa.ipc.new_stream),
        "file.arrow": ipc(table, pa.ipc.new_file),
        "a.feather": written(lambda file: feather.write_feather(table, file)),
        "a.csv.gz": gzip.compress(csv),
        "a.jsonl.gz": gzip.compress(lines),
        "gzip": gzip.compress(lines),
        "a.json.bz2": bz2.compress(document),
        "a.csv.xz": lzma.compress(csv),
        "a.jsonl.zst": packed(lines, "zstd"),
        "a.csv.lz4": packed(csv, "lz4"),
        "a.zip": zipped({"d/rows.csv": csv}),
        "inside.zip": zipped({"in.zip": zipped({"r.parquet": parquet})}),
        "a.tar.gz": tarred("rows.jsonl", lines),
        "a.sqlite": sqlite(rows),
    }


CLEAN_FILES = in_formats(clean().to_pandas())


@pytest.mark.parametrize("name", CLEAN_FILES)
def test_true_labels_in_a_file_of_any_kind_are_found(released_file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CLEAN_FILES[name])
    with pytest.raises(LabelLeakError, match=rf"^d/{name}[^:]*(:|, column| may hold)"):
        check_label_privacy_of_files({"noisy.parquet": released_file, f"d/{name}": tmp_path / name})


def test_features_in_files_of_any_kind_are_let_through(released_file: Path, tmp_path: Path) -> None:
    files = {"noisy.parquet": released_file}
    for name, content in in_formats(clean().to_pandas().drop(columns="label")).items():
        if name not in ("a.html", "a.yaml"):  # ids in these are refused: a row may go over several lines
            files[name] = tmp_path / name
            files[name].write_bytes(content)
    check_label_privacy_of_files(files)
    assert len(files) > 30


def test_both_pushes_of_a_folder_stop_and_the_error_names_file_rows_and_remedy(
    hub: FakeHub, released: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "rows" / "sub").mkdir(parents=True)
    released.to_parquet(tmp_path / "rows" / "noisy.parquet")
    (tmp_path / "rows" / "sub" / "raw.csv.gz").write_bytes(CLEAN_FILES["a.csv.gz"])
    for push, settings in ((push_dataset, {}), (push_folder, {"repo_type": "dataset"}), (push_folder, {})):
        with pytest.raises(LabelLeakError) as caught:
            push(tmp_path / "rows", "me/labels", **settings)
        for words in (
            "sub/raw.csv.gz, column 'label'",
            "120 of its rows",
            "'r0'",
            "noisy.parquet",
            "ignore=['sub/raw",
        ):
            assert words in str(caught.value)
        assert not set(NAMES) & set(str(caught.value).split())
    assert not hub.repos
    push_dataset(tmp_path / "rows", "me/labels", ignore=["sub/raw.csv.gz"])
    assert "noisy.parquet" in hub.files("me/labels", "dataset")


@pytest.mark.parametrize(
    "name", ["a.xlsx", "a.h5", "first.feather", "broken.parquet", "broken.csv.gz", "secret.zip", "broken.sqlite"]
)
def test_what_cannot_be_looked_into_is_refused_by_name_beside_a_ledger_alone(
    released_file: Path, tmp_path: Path, name: str
) -> None:
    locked = bytearray(zipped({"rows.csv": CLEAN_FILES["a.csv"]}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + place] |= 1  # says that the member is encrypted
    contents = {
        "first.feather": b"FEA1" + bytes(60),
        "broken.parquet": CLEAN_FILES["a.parquet"][:200],
        "broken.csv.gz": CLEAN_FILES["a.csv.gz"][:200],
        "secret.zip": bytes(locked),
        "broken.sqlite": b"SQLite format 3\x00" + bytes(90),
    }
    (tmp_path / name).write_bytes(contents.get(name, b"\x00\x01 some bytes"))
    check_label_privacy_of_files({name: tmp_path / name})
    with pytest.raises(LabelLeakError, match=rf"{name} may hold .*\n.*ignore=\['{name}'\]"):
        check_label_privacy_of_files({name: tmp_path / name, "noisy.parquet": released_file})


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv", "labels.npy", "labels.json"])
def test_labels_alone_in_the_order_of_the_rows_are_found(tmp_path: Path, name: str) -> None:
    n = 600
    truth = np.random.default_rng(8).integers(0, K, n)
    rows = Dataset.from_dict({"id": [f"r{i}" for i in range(n)], "label": truth.tolist()})
    privatize(rows, RandomizedResponse(2.0, K, KEY)).to_parquet(tmp_path / "noisy.parquet")
    for values, leaks in ((truth, True), (np.random.default_rng(9).integers(0, K, n), False)):
        texts = [str(value) for value in values]
        contents = {
            "labels.txt": "\n".join(texts).encode(),
            "labels.csv": "\n".join(["label", *texts]).encode(),
            "labels.npy": written(lambda file, values=values: np.save(file, values)),
            "labels.json": json.dumps(values.tolist()).encode(),
        }
        (tmp_path / name).write_bytes(contents[name])
        files = {"noisy.parquet": tmp_path / "noisy.parquet", name: tmp_path / name}
        if leaks:
            with pytest.raises(LabelLeakError, match=r"in the order of noisy\.parquet"):
                check_label_privacy_of_files(files)
        else:
            check_label_privacy_of_files(files)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_numbers_in_a_file_are_ids_by_name_alone_and_rows_numbered_alike_are_told_apart_by_texts(
    tmp_path: Path, suffix: str
) -> None:
    def write(rows: pd.DataFrame, path: Path) -> None:
        if suffix == "parquet":
            rows.to_parquet(path)
        elif suffix == "jsonl":
            rows.to_json(path, orient="records", lines=True)
        else:
            rows.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")

    numbered = clean().remove_columns("id").add_column("id", list(range(N)))
    noisy = tmp_path / "noisy.parquet"
    privatize(numbered, RandomizedResponse(1.0, K, KEY, salt="numbered")).to_parquet(noisy)
    other = pd.DataFrame({"id": range(40), "text": [f"other words {i}" for i in range(40)], "label": TRUE[:40]})
    names = pd.DataFrame({"label": range(K), "name": NAMES})
    same = numbered.to_pandas()[:40]
    for name, rows in (("test", other), ("classes", names), ("rows", same), ("ids", same[["id", "label"]])):
        write(rows, tmp_path / f"{name}.{suffix}")
    check_label_privacy_of_files([noisy, tmp_path / f"test.{suffix}", tmp_path / f"classes.{suffix}"])
    for name in ("rows", "ids"):
        with pytest.raises(LabelLeakError, match=f"{name}.{suffix}, column 'label'"):
            check_label_privacy_of_files([noisy, tmp_path / f"{name}.{suffix}"])


def test_every_batch_of_a_long_file_is_read(tmp_path: Path) -> None:
    n = 20_500
    lines = [json.dumps({"id": i, "t": f"text {i}"}) for i in range(n)]
    shapes = {
        "a.jsonl": "\n".join(lines),
        "a.json": f"[{', '.join(lines)}]",
        "a.csv": "id,t\n" + "\n".join(map(str, range(n))),
    }
    for name, text in shapes.items():
        (tmp_path / name).write_text(text)
        (table,) = tables_in(name, tmp_path / name)
        batches = list(read_batches(table))
        assert len(batches) == 3
        ids = [value for batch in batches for value in batch.column("id").to_pylist() if value != "id"]
        assert ids == [str(i) for i in range(n)]
