"""Pickles are known by what is in a file, whatever it is called; what trainers rightly save is not taken for one."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save as save_safetensors

from hf_ext.hub.pickles import is_pickle
from tests.tiny import tiny_model, tiny_tokenizer

VALUE = {"weights": [1.5, 2.5], "path": Path("x"), "text": "a" * 300}


def _torch(**kwargs: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer, **kwargs)
    return buffer.getvalue()


def _numpy(save: object, *arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays)  # type: ignore[operator]
    return buffer.getvalue()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


OBJECTS = np.array([{}, 1], dtype=object)
PICKLED = {
    **{f"protocol {n}": pickle.dumps(VALUE, protocol=n) for n in range(6)},
    **{f"call, protocol {n}": pickle.dumps(Path("x"), protocol=n) for n in range(6)},
    "short": pickle.dumps(None),
    "followed by data": pickle.dumps(VALUE) + bytes(5000),
    "torch zip": _torch(),
    "torch legacy": _torch(_use_new_zipfile_serialization=False),
    "npy of objects": _numpy(np.save, OBJECTS),
    "npz of objects": _numpy(np.savez, np.ones(2), OBJECTS),
    "zip with a pickle": _zip(readme=b"hello", innocent=pickle.dumps(VALUE)),
    "zip in a zip": _zip(inner=_torch()),
    "damaged zip": _torch()[:-40],
}
HARMLESS = {
    "empty": b"",
    "json": json.dumps({"a": [1, 2]}).encode(),
    "dots": b"....",
    "opcodes without a stack": b"a.",
    "markdown": b"---\nlicense: mit\n---\n# Card.\n",
    "npy": _numpy(np.save, np.ones(3)),
    "npz": _numpy(np.savez, np.ones(3), np.arange(4)),
    "zip": _zip(readme=b"hello", data=bytes(range(256))),
}


@pytest.mark.parametrize("kind", PICKLED)
def test_a_pickle_under_an_innocent_name_is_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(PICKLED[kind])
    assert is_pickle(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_no_pickle_is_let_through(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(HARMLESS[kind])
    assert not is_pickle(tmp_path / "file")


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "a.PKL",
        "b.pickle",
        "c.ckpt",
        "d.pkl.gz",
        "e.joblib",
        "f.pt.zip",
    ],
)
def test_a_name_that_promises_a_pickle_is_enough(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("harmless")
    assert is_pickle(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["train.pt.jsonl", "wiki.pt.parquet", "opus.en-pt.pt.txt", "common.PT.json", "a.bin.csv", "rows.pt.jsonl.gz"],
)
def test_a_text_or_table_in_portuguese_is_no_pickle_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("olá")
    assert not is_pickle(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    assert is_pickle(tmp_path / name)


def test_what_is_saved_with_a_model_is_let_through(tmp_path: Path) -> None:
    tiny_model(64).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "m" / "rows.parquet")
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "m" / "rows")
    assert not [path for path in (tmp_path / "m").rglob("*") if path.is_file() and is_pickle(path)]


def test_no_length_of_a_safetensors_header_looks_like_a_pickle(tmp_path: Path) -> None:
    # The first byte of the file is the low byte of the header's length, and can be a pickle's mark.
    marks = set()
    for length in range(1, 300):
        content = save_safetensors({"a" * length: torch.ones(2)})
        marks.add(content[0])
        (tmp_path / "file").write_bytes(content)
        assert not is_pickle(tmp_path / "file"), length
    assert 0x80 in marks


def test_random_bytes_after_a_pickles_mark_are_hardly_ever_a_pickle(tmp_path: Path) -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(500):
        (tmp_path / "file").write_bytes(bytes([0x80, rng.choice([2, 3, 4, 5])]) + rng.randbytes(2000))
        hits += is_pickle(tmp_path / "file")
    assert hits <= 5
