"""The store: whole after any kill, the same rows after a resume, and a refusal of everything it was not made for."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from hf_ext.data import context_free
from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from tests.data.symbol_models import symbol_model, symbol_tokenizer
from tests.forks import forked

ROOT = Path(__file__).parents[2]
TOKENS = 900  # three shards of eight batches
SETTINGS = {"max_new_tokens": 12, "batch_size": 4, "seed": 3, "show_progress": False}
CHILD = """
import sys, torch
from hf_ext.data.context_free import generate_context_free
from tests.data.symbol_models import symbol_model, symbol_tokenizer
torch.set_num_threads(1)
{before}
generate_context_free(symbol_model(64), symbol_tokenizer(64), {num_tokens}, output_dir=sys.argv[1],
                      max_new_tokens=12, batch_size=4, seed=3, show_progress=False)
{after}
"""


def generate(folder, num_tokens=TOKENS, model=None, tokenizer=None, **arguments):
    model = symbol_model(64) if model is None else model
    tokenizer = symbol_tokenizer(64) if tokenizer is None else tokenizer
    return generate_context_free(model, tokenizer, num_tokens, output_dir=folder, **(SETTINGS | arguments))


def shard_hashes(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.arrow"))}


def child_environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_manifest_counts_what_the_rows_hold(reference):
    store = reference
    manifest, dataset = store.manifest, store.to_dataset()
    tokens = [sum(label != -100 for label in labels) for labels in dataset["labels"]]
    assert manifest["complete"]
    assert manifest["num_tokens"] == TOKENS <= manifest["tokens"] == sum(tokens)
    assert manifest["rows"] == len(dataset) == 32 * len(manifest["shards"])
    assert [shard["tokens"] for shard in manifest["shards"]] == [
        sum(tokens[i : i + 32]) for i in range(0, len(tokens), 32)
    ]
    assert manifest["tokens"] - manifest["shards"][-1]["tokens"] < TOKENS  # no shard too many
    assert {"model_hash", "tokenizer_hash", "start_ids", "sampling", "versions", "dtype"} <= manifest.keys()
    assert not [file for file in store.path.iterdir() if file.name.startswith(".")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A store that was never interrupted."""
    return generate(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def store(reference, tmp_path):
    """A copy of it, to be spoilt."""
    return ContextFreeStore(shutil.copytree(reference.path, tmp_path / "store"))


class Killed(BaseException):
    """Not an Exception: nothing in the code under test may catch it."""


# Manifest, then three times shard and manifest; what a kill after a renaming leaves is seen once of each.
@pytest.mark.parametrize(("moment", "renamed"), [*((moment, False) for moment in range(7)), (3, True), (4, True)])
def test_stopped_beside_any_write_it_resumes_to_the_same_bytes(tmp_path, monkeypatch, reference, moment, renamed):
    replace, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) > moment:
            if renamed:
                replace(source, target)
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(Killed):
        generate(tmp_path / "store")
    monkeypatch.undo()
    store = generate(tmp_path / "store")
    assert len(calls) == moment + 1
    assert shard_hashes(store.path) == shard_hashes(reference.path)
    assert store.manifest == reference.manifest


def test_killed_process_resumes_to_the_same_bytes(tmp_path):
    num_tokens, folder = 2_000, tmp_path / "store"
    child = forked(lambda: generate(folder, num_tokens))
    try:
        deadline = time.monotonic() + 300
        while not (folder / "shard-00002.arrow").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the child ended before it could be killed"
    killed = ContextFreeStore(folder)
    assert not killed.manifest["complete"]
    with pytest.raises(ValueError, match=r"incomplete.*of 2,000 sampled tokens"):
        killed.to_dataset()
    kept = len(killed.manifest["shards"])
    store = generate(folder, num_tokens)
    reference = generate(tmp_path / "reference", num_tokens)
    assert 2 <= kept < len(reference.manifest["shards"])
    assert shard_hashes(folder) == shard_hashes(reference.path)
    assert store.manifest == reference.manifest


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(tmp_path, reference):
    script = tmp_path / "child.py"
    script.write_text(
        CHILD.format(
            before="torch.distributed.init_process_group('gloo'); assert torch.distributed.get_world_size() == 2",
            num_tokens=TOKENS,
            after="torch.distributed.destroy_process_group()",
        )
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for _ in range(2):  # the second run finds a complete store
        subprocess.run(
            [*torchrun, str(script), str(tmp_path / "two")], check=True, env=child_environment(), timeout=500
        )
        assert shard_hashes(tmp_path / "two") == shard_hashes(reference.path)
        assert ContextFreeStore(tmp_path / "two").manifest == reference.manifest


def test_a_complete_store_comes_back_without_sampling_and_a_larger_call_adds_shards(store, tmp_path, monkeypatch):
    folder = store.path
    first = store.to_dataset()[:]
    before = shard_hashes(folder)
    with monkeypatch.context() as patched:
        patched.setattr(context_free, "sample_rows", None)  # any sampling would now raise
        assert generate(folder).to_dataset()[:] == first
        assert generate(folder, 500).to_dataset()[:] == first
    more = generate(folder, 1_500)
    assert more.manifest["tokens"] >= 1_500
    assert before.items() < shard_hashes(folder).items()
    assert more.to_dataset()[: len(first["input_ids"])] == first
    assert more.manifest == generate(tmp_path / "at_once", 1_500).manifest


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({"seed": 4}, "seed"),
        ({"batch_size": 8}, "batch_size"),
        ({"max_new_tokens": 13}, "max_new_tokens"),
        ({"start": [5]}, "start_ids"),
        ({"autocast_dtype": torch.bfloat16}, "autocast_dtype"),
        ({"tokenizer": symbol_tokenizer(63)}, "tokenizer_hash"),
        ({"model": symbol_model(64, 1)}, "model_hash"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_call_with_another_setting_is_refused_by_name(store, arguments, setting, complete):
    manifest = store.manifest | {"complete": complete}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    before = shard_hashes(store.path)
    with pytest.raises(ValueError, match=f"was begun with other settings: {setting} was"):
        generate(store.path, 5_000, **arguments)
    assert shard_hashes(store.path) == before
    assert store.manifest == manifest


def test_other_weights_and_another_dtype_are_refused(reference):
    model, store = symbol_model(64), reference
    store.check_model(model)
    store.check_model(symbol_model(64))
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-4
    for other in (trained, copy.deepcopy(model).bfloat16()):
        with pytest.raises(ValueError, match="sampled from other weights"):
            store.check_model(other)


def test_another_tokenizer_is_refused_and_another_chat_template_or_end_token_is_not(reference):
    store, tokenizer = reference, symbol_tokenizer(64)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.pad_token = "t5"
    tokenizer.eos_token = "t6"  # no stored id has another meaning
    store.check_tokenizer(tokenizer)
    tokenizer.add_tokens(["more"])
    renamed = symbol_tokenizer(64, bos_token="t7")
    for other in (tokenizer, renamed, symbol_tokenizer(63)):
        with pytest.raises(ValueError, match="made with another tokenizer"):
            store.check_tokenizer(other)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_shard_is_named(store, damage):
    shard = store.path / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    else:
        shard.unlink()
    for use in (store.to_dataset, lambda: generate(store.path, 9_000)):
        with pytest.raises(ValueError, match=r"shard-00001\.arrow of the store .* is (damaged|missing)"):
            use()


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no context-free store.*generate_context_free"):
        ContextFreeStore(tmp_path / "nowhere")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        ContextFreeStore(tmp_path)
    with pytest.raises(ValueError, match=r"not empty and holds no manifest\.json"):
        generate(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_format_revision_is_refused(store):
    (store.path / "manifest.json").write_text(json.dumps(store.manifest | {"format_revision": 99}))
    with pytest.raises(ValueError, match="format revision 99"):
        ContextFreeStore(store.path)


def test_a_store_of_the_first_revision_is_read_and_not_continued(store):
    rows = store.to_dataset()[:]
    manifest = {name: value for name, value in store.manifest.items() if name != "rows_per_shard"}
    (store.path / "manifest.json").write_text(json.dumps(manifest | {"format_revision": 1}))
    assert generate(store.path).to_dataset()[:] == rows
    before = shard_hashes(store.path)
    with pytest.raises(ValueError, match=r"earlier version.*not continued"):
        generate(store.path, 6_000)
    assert shard_hashes(store.path) == before


@pytest.mark.parametrize(("num_tokens", "rows"), [(1, 4), (49, 8), (192, 16), (390, 32)])
def test_a_shard_is_one_to_eight_batches_as_the_tokens_call_for(tmp_path, num_tokens, rows):
    store = generate(tmp_path / "store", num_tokens)
    assert store.manifest["rows_per_shard"] == rows
    assert {shard["rows"] for shard in store.manifest["shards"]} == {rows}


def test_progress_is_shown_in_tokens_and_only_when_asked(tmp_path, capsys):
    generate(tmp_path / "silent", 40)
    assert capsys.readouterr().err == ""
    generate(tmp_path / "shown", 40, show_progress=True)
    assert "tok/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../shard.arrow", "which is no path inside its folder"),
        ("/etc/hosts", "which is no path inside its folder"),
        ("link.arrow", r"link\.arrow is a link that leads out of"),
        ("pipe.arrow", r"pipe\.arrow is a named pipe"),
        ("folder.arrow", r"folder\.arrow is a folder"),
        ("other.arrow", r"other\.arrow holds other columns than context-free rows have: \['a'\]"),
        (3, "is not a manifest that generate_context_free wrote"),
    ],
)
def test_a_store_from_elsewhere_is_held_to_its_folder_and_its_columns(tmp_path, name, problem):
    store = tmp_path / "store"
    (store / "folder.arrow").mkdir(parents=True)
    (tmp_path / "shard.arrow").write_bytes(b"x")
    (store / "link.arrow").symlink_to(tmp_path / "shard.arrow")
    os.mkfifo(store / "pipe.arrow")
    with pa.ipc.new_stream(str(store / "other.arrow"), pa.schema([("a", pa.int64())])) as writer:
        writer.write_table(pa.table({"a": [1]}))
    digest = hashlib.sha256((store / "other.arrow").read_bytes()).hexdigest()
    manifest = {"format_revision": 2, "complete": True, "shards": [{"file": name, "sha256": digest}]}
    facts = {"model_hash": "x", "tokenizer_hash": "x", "dtype": "float32"}
    (store / "manifest.json").write_text(json.dumps(manifest | facts))
    with pytest.raises(ValueError, match=problem):
        ContextFreeStore(store).to_dataset()
