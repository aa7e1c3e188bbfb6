"""Pickles that would leave a mark if they ran, in every place that hf-ext loads from: no mark, and our sentence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_ext.data.context_free import ContextFreeStore
from hf_ext.data.exemplars import ExemplarStore
from hf_ext.data.loading import load_splits
from hf_ext.data.original_cache import load_scores
from hf_ext.data.pruning._resume import Saved
from hf_ext.evaluation.report import ForgettingReport
from hf_ext.guards.checkpoints import DamagedCheckpointError, require_whole, seal
from hf_ext.guards.models import ModelFilesError, loading_model
from tests.tiny import tiny_model

ONE_ROW: Any = SimpleNamespace(values=np.zeros((1, 1), np.float32))


class Mark:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


def _torch(value: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _arrays(save: Callable[..., None], mark: Mark) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.array([mark], dtype=object))
    return buffer.getvalue()


KINDS: dict[str, Callable[[Mark], bytes]] = {
    **{f"protocol {n}": lambda mark, n=n: pickle.dumps(mark, protocol=n) for n in range(6)},
    **{f"torch, protocol {n}": lambda mark, n=n: _torch({"a": mark}, pickle_protocol=n) for n in (2, 3, 4, 5)},
    "torch, legacy": lambda mark: _torch(mark, _use_new_zipfile_serialization=False),
    "torch, tar": lambda mark: _tar(pickle.dumps(mark, 2)),
    "torch, packed": lambda mark: _zip({"archive/data.pkl": pickle.dumps(mark, 2)}, zipfile.ZIP_DEFLATED),
    "torch, by hand": lambda mark: _zip({"archive/data.pkl": pickle.dumps(mark, 2), "archive/version": b"3"}),
    "npy of objects": lambda mark: _arrays(np.save, mark),
    "npz of objects": lambda mark: _arrays(np.savez, mark),
    "npz, packed": lambda mark: _arrays(np.savez_compressed, mark),
    "zip in a zip": lambda mark: _zip({"inner": _torch(mark)}),
}


def _checkpoint(place: Path, name: str, content: bytes, sealed: bool) -> None:
    checkpoint = place / "checkpoint-1"
    checkpoint.mkdir()
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / file).write_bytes(_torch({"numbers": torch.ones(2), "random": np.random.get_state()}))  # noqa: NPY002 - what the host saves
    (checkpoint / "trainer_state.json").write_text("{}")
    assert require_whole(checkpoint, place)  # as the host saves it, it is taken
    (checkpoint / name).write_bytes(content)
    if sealed:
        seal(checkpoint)
    require_whole(checkpoint, place)


def _exemplars(place: Path, suffix: str, content: bytes) -> None:
    ExemplarStore({"query": ["a"], "document": ["b"]}, retriever="random").save(place / "store")
    config = json.loads((place / "store" / "rare_config.json").read_text())
    name = f"embeddings-0{suffix}"
    (place / "store" / name).write_bytes(content)
    config["store"]["files"].append({"name": name, "sha256": hashlib.sha256(content).hexdigest()})
    (place / "store" / "rare_config.json").write_text(json.dumps(config))
    ExemplarStore.load(place / "store")


def _context_free(place: Path, content: bytes) -> None:
    (place / "shard-00000.arrow").write_bytes(content)
    shard = {"file": "shard-00000.arrow", "sha256": hashlib.sha256(content).hexdigest(), "tokens": 1, "rows": 1}
    manifest = {"format_revision": 2, "complete": True, "shards": [shard]}
    facts = {"model_hash": "x", "tokenizer_hash": "x", "dtype": "float32"}
    (place / "manifest.json").write_text(json.dumps(manifest | facts))
    ContextFreeStore(place).to_dataset()


def _written(place: Path, name: str, content: bytes, load: Callable[[Path], Any]) -> None:
    (place / name).write_bytes(content)
    load(place / name)


PLACES: dict[str, Callable[[Path, bytes], None]] = {
    "optimizer of a checkpoint": lambda p, c: _checkpoint(p, "optimizer.pt", c, False),
    "random state of a sealed checkpoint": lambda p, c: _checkpoint(p, "rng_state.pth", c, True),
    "weights of a sealed checkpoint": lambda p, c: _checkpoint(p, "pytorch_model.bin", c, True),
    "rows of exemplars": lambda p, c: _exemplars(p, ".parquet", c),
    "vectors of exemplars": lambda p, c: _exemplars(p, ".safetensors", c),
    "context-free rows": _context_free,
    "picks of a matching": lambda p, c: _written(p, "picks.npz", c, lambda path: Saved(path, ONE_ROW, {}, 1.0)),
    "losses": lambda p, c: _written(p, "losses.safetensors", c, load_scores),
    "report": lambda p, c: _written(p, "forgetting.json", c, lambda path: ForgettingReport.load(path.parent)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_is_refused_by_the_name_of_its_file_and_runs_nothing(tmp_path: Path, place: str, kind: str) -> None:
    content = KINDS[kind](Mark(tmp_path / "marked"))
    folder = tmp_path / "place"
    folder.mkdir()
    with pytest.raises(ValueError, match=str(folder)):
        PLACES[place](folder, content)
    assert not (tmp_path / "marked").exists()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 4", "npy of objects", "torch, legacy"])
@pytest.mark.parametrize("suffix", [".json", ".parquet", ".jsonl.gz"])
def test_a_pickle_among_rows_is_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / f"rows{suffix}").write_bytes(KINDS[kind](Mark(tmp_path / "marked")))
    with pytest.raises(ValueError, match=r"rows.* cannot be loaded"):
        load_splits(str(tmp_path / f"rows{suffix}"))
    assert not (tmp_path / "marked").exists()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 4", "torch, protocol 2", "torch, legacy", "torch, tar"])
def test_a_pickle_in_place_of_weights_is_refused(tmp_path: Path, kind: str) -> None:
    tiny_model(64).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(KINDS[kind](Mark(tmp_path / "marked")))
    with pytest.raises(ModelFilesError, match=r"^model .*/m' cannot be loaded: "), loading_model(tmp_path / "m"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=False)
    assert not (tmp_path / "marked").exists()


def test_the_pickles_do_leave_their_mark_where_they_run(tmp_path: Path) -> None:
    for number, kind in enumerate(("protocol 0", "protocol 5")):
        pickle.loads(KINDS[kind](Mark(tmp_path / str(number))))
        assert (tmp_path / str(number)).is_dir()
    (tmp_path / "place").mkdir()
    with pytest.raises(DamagedCheckpointError, match=r"calls 'posix\.mkdir'"):
        _checkpoint(tmp_path / "place", "optimizer.pt", KINDS["torch, protocol 2"](Mark(tmp_path / "x")), False)
