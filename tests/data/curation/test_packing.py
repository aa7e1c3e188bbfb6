"""Packed sequences: against documents joined in Python, after kills, and as a trainer reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset, load_dataset

from hf_ext.data.curation import packing
from hf_ext.data.curation.packing import pack
from hf_ext.guards.disk import DiskFullError
from hf_ext.guards.locks import InUseError
from hf_ext.guards.rows import RowError
from hf_ext.guards.runs import claimed_folder
from tests.tiny import tiny_sentences, tiny_tokenizer

TEXTS = [*tiny_sentences(60, seed=1), "", "Text with <|im_end|> and <s> in it. \U0001f600", "\n"]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def joined(tokenizer, texts=TEXTS):
    """All tokens, by the backend itself, which knows no special tokens in a text once told so."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    tokens = []
    for text in texts:
        tokens += [*backend.encode(text, add_special_tokens=False).ids, tokenizer.eos_token_id]
    return tokens


def test_the_sequences_are_the_joined_documents_cut_and_shuffled(tokenizer, tmp_path):
    rows = Dataset.from_dict({"text": TEXTS})
    packed = pack(rows, tokenizer, tmp_path / "out", sequence_length=16, sequences_per_shard=20)
    tokens = joined(tokenizer)
    count = len(tokens) // 17
    expected = [tuple(tokens[start : start + 17]) for start in range(0, count * 17, 17)]
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    sequences = [tuple(ids) for ids in rows["input_ids"]]
    assert sorted(sequences) == sorted(expected)
    assert sequences != expected
    assert (packed.num_sequences, packed.remainder_tokens) == (count, len(tokens) - count * 17)
    assert (packed.num_documents, packed.num_tokens) == (len(TEXTS), len(tokens))
    names = sorted(file.name for file in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{number:05d}-of-{packed.num_shards:05d}.parquet" for number in range(-(-count // 20))]
    sizes = [pq.read_metadata(tmp_path / "out" / "data" / name).num_rows for name in names]
    assert sizes == [20] * (count // 20) + [count % 20] * (count % 20 > 0)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "data",
        "packed.json",
        "packing.json",
        "tokenizer",
    ]
    assert json.loads((tmp_path / "out" / "packed.json").read_text())["num_sequences"] == count


def test_streams_and_batches_make_no_difference_and_the_seed_does(tokenizer, tmp_path, monkeypatch):
    stream = IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    pack(Dataset.from_dict({"text": TEXTS}), tokenizer, tmp_path / "a", sequence_length=16)
    monkeypatch.setattr(packing, "_BATCH_CHARS", 50)
    pack(stream, tokenizer, tmp_path / "b", sequence_length=16)
    pack(stream, tokenizer, tmp_path / "c", sequence_length=16, seed=1)
    contents = [next((tmp_path / name / "data").iterdir()).read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_the_order_is_any_order(tokenizer, tmp_path):
    # 400 sequences of one repeated document, told apart by their first token: ranks are not kept
    texts = [f"{number:04d}" for number in range(2000)]
    pack(Dataset.from_dict({"text": texts}), tokenizer, tmp_path / "out", sequence_length=9)
    table = pq.read_table(next((tmp_path / "out" / "data").iterdir()))
    tokens = joined(tokenizer, texts)
    place = {tuple(tokens[start : start + 10]): start for start in range(0, len(tokens) - 9, 10)}
    places = [place[tuple(ids)] for ids in table["input_ids"].to_pylist()]
    # the standard deviation of a rank correlation of n numbers is 1/sqrt(n - 1)
    assert abs(np.corrcoef(places, range(len(places)))[0, 1]) < 4 / len(places) ** 0.5


CHILD = """
import sys, time
from datasets import Dataset
from hf_ext.data.curation import packing
from tests.data.curation.test_packing import TEXTS
from tests.tiny import tiny_tokenizer

def marking(function):
    def mark(*values, **named):
        function(*values, **named)
        print("mark", flush=True)
        time.sleep(0.05)
    return mark

packing._BATCH_CHARS = 100
packing.write_whole = marking(packing.write_whole)
packing.pq.write_table = marking(packing.pq.write_table)
rows = Dataset.from_dict({"text": TEXTS})
packing.pack(rows, tiny_tokenizer(), sys.argv[1], sequence_length=16, sequences_per_shard=30)
"""


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]  # starts Python four times


@pytest.mark.parametrize("marks", [[6], pytest.param([3, 9, 15, 2], marks=SLOW)])
def test_a_killed_run_goes_on_to_the_same_shards(tokenizer, tmp_path, marks):
    rows = Dataset.from_dict({"text": TEXTS})
    pack(rows, tokenizer, tmp_path / "whole", sequence_length=16, sequences_per_shard=30)
    for num_marks in marks:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
        )
        for number, line in enumerate(child.stdout):
            if number + 1 == num_marks:
                assert line == "mark\n"
                time.sleep(0.01)
                os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "data").exists()
    pack(rows, tokenizer, tmp_path / "killed", sequence_length=16, sequences_per_shard=30)
    for file in (tmp_path / "whole" / "data").iterdir():
        assert (tmp_path / "killed" / "data" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "killed" / ".packing").exists()


class Stop(Exception):
    """Ends a run in the middle."""


def interrupted(tokenizer, folder, monkeypatch, texts=TEXTS):
    """A run that ended after its first mark."""

    def write_and_stop(path, content):
        real(path, content)
        if path.name == "progress.json":
            raise Stop

    real = packing.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_whole", write_and_stop)
        patch.setattr(packing, "_BATCH_CHARS", 500)
        with pytest.raises(Stop):
            pack(Dataset.from_dict({"text": texts}), tokenizer, folder, sequence_length=16)


@pytest.mark.parametrize("change", ["first", "fewer"])
def test_a_run_of_other_documents_does_not_go_on(tokenizer, tmp_path, monkeypatch, change):
    interrupted(tokenizer, tmp_path, monkeypatch)
    texts = ["Other.", *TEXTS[1:]] if change == "first" else TEXTS[:1]
    with pytest.raises(ValueError, match="was begun with other documents"):
        pack(Dataset.from_dict({"text": texts}), tokenizer, tmp_path, sequence_length=16)
    pack(Dataset.from_dict({"text": TEXTS}), tokenizer, tmp_path, sequence_length=16)


def test_a_run_of_other_settings_does_not_go_on(tokenizer, tmp_path, monkeypatch):
    interrupted(tokenizer, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="sequence_length was 16, is 32"):
        pack(Dataset.from_dict({"text": TEXTS}), tokenizer, tmp_path, sequence_length=32)


def test_tokens_lost_after_a_mark_are_made_again(tokenizer, tmp_path, monkeypatch):
    pack(Dataset.from_dict({"text": TEXTS}), tokenizer, tmp_path / "whole", sequence_length=16)
    for damage in ("longer", "gone"):
        folder = tmp_path / damage
        interrupted(tokenizer, folder, monkeypatch)
        tokens = folder / ".packing" / "tokens.bin"
        tokens.write_bytes(tokens.read_bytes() + b"abc" if damage == "longer" else b"")
        pack(Dataset.from_dict({"text": TEXTS}), tokenizer, folder, sequence_length=16)
        name = next((folder / "data").iterdir()).name
        assert (folder / "data" / name).read_bytes() == (tmp_path / "whole" / "data" / name).read_bytes()


def test_a_finished_folder_and_one_in_use_are_refused(tokenizer, tmp_path):
    rows = Dataset.from_dict({"text": TEXTS})
    with ThreadPoolExecutor(1) as other:  # a claim is a thread's, as it is a process's
        claim = claimed_folder(tmp_path / "a")
        other.submit(claim.__enter__).result()
        with pytest.raises(InUseError, match="choose another output"):
            pack(rows, tokenizer, tmp_path / "a", sequence_length=16)
        other.submit(claim.__exit__, None, None, None).result()
    pack(rows, tokenizer, tmp_path / "b", sequence_length=16)
    with pytest.raises(ValueError, match="holds finished shards"):
        pack(rows, tokenizer, tmp_path / "b", sequence_length=16)


def test_a_full_disk_is_said_and_the_run_goes_on(tokenizer, tmp_path, monkeypatch):
    rows = Dataset.from_dict({"text": TEXTS})

    def full(*values, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.pq, "write_table", full)
        with pytest.raises(DiskFullError, match=r"No room to write the packed sequences.*goes on where it was"):
            pack(rows, tokenizer, tmp_path, sequence_length=16)
    assert not (tmp_path / "data").exists()
    assert pack(rows, tokenizer, tmp_path, sequence_length=16).num_documents == len(TEXTS)


def test_a_tokenizer_without_an_end_and_a_set_without_a_sequence_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="The set has 1 tokens, not one sequence of 2,049"):
        pack(Dataset.from_dict({"text": [""]}), tokenizer, tmp_path / "a")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end token.*Set tokenizer.eos_token"):
        pack(Dataset.from_dict({"text": TEXTS}), tokenizer, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_row_that_is_no_document_is_named_and_numbers_are_checked(tokenizer, tmp_path):
    with pytest.raises(RowError, match="row 1 of the dataset, column 'text': expected a string, found None"):
        pack(Dataset.from_dict({"text": ["a", None]}), tokenizer, tmp_path / "a")
    with pytest.raises(ValueError, match="sequence_length must be a whole number"):
        pack(Dataset.from_dict({"text": ["a"]}), tokenizer, tmp_path / "a", sequence_length=0)


def test_a_lone_surrogate_is_packed_as_a_question_mark(tokenizer, tmp_path):
    stream = IterableDataset.from_generator(lambda: ({"text": text} for text in ["a\ud800b\0", "c" * 20]))
    packed = pack(stream, tokenizer, tmp_path / "out", sequence_length=3)
    assert packed.num_tokens == len(joined(tokenizer, ["a?b\0", "c" * 20]))
