"""
What `datasets` sees of the row-wise callables: the hash that decides whether a cached result is used again.

It is the hash of a callable's name and fields; the code behind it does not count. `RECORDED` holds it for each entry
of `test_map_functions.CALLABLES`, so that a change that would throw away users' caches, or serve them rows of older
code, is made knowingly.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from datasets.fingerprint import Hasher

from tests.conformance.test_map_functions import CALLABLES, Entry, dataset_of, every_callable, rows_of

ROOT = Path(__file__).resolve().parents[2]

# Entry -> its hash with pickle protocol 4, that of Python 3.8 to 3.13: the same with every datasets from 5.1 to 5.2.
RECORDED = {
    "FlowWeights": "b90892bccf34610d",
    "FlowWeights_packed": "b90892bccf34610d",
    "TruncateRows": "b8c304274db4996e",
    "TruncateRows_end": "96b3df62d9605ed2",
    "CutRows": "90b011013e5781f4",
    "SpreadOverTokens": "0df41bd3e28e9635",
    "SpreadOverTokens_lists": "0df41bd3e28e9635",
    "RowIndexOfDocuments": "4d1b08742c27071d",
    "AddRowIndex": "f0ee467b8d590457",
    "ShiftRowIndex": "c14820387cd841bc",
    "ShiftRowIndex_packed": "c14820387cd841bc",
    "PairsToUnpaired": "9ea1a0313ab0eda5",
    "ExtractPrompt": "22be1376c6a22497",
    "RemovePadding": "afd06be7256ff8c7",
    "AddInContextExamples": "69a46366f92fc6f1",
    "EmbedRows": "903e29a665c3e566",
    "RandomizedResponse": "6107996e39e03221",
    "RandomizedResponse_tokens": "6107996e39e03221",
    "RandomizedResponse_prior": "445083fb528d93ac",
    "RandomizedResponse_again": "2a771f44c61f8270",
    "RandomizedResponse_after": "2548f6c396afaa94",
    "HashColumn": "cededba7d07685a7",
    "GopherQuality": "d29901ecb406ecd2",
    "GopherRepetition": "5cce588fd5b4f661",
    "RemoveUrls": "8793e795475126b7",
    "UrlRules": "1efa4f7dfe5b4193",
    "LanguageFilter": "a38a26657b1d03eb",
    "LineRules": "75e20b2a105a21f7",
    "HtmlToText": "6a6ec46cc5d9216c",
    "MoEPredict": "6ae001d42f8bff94",
    "MoEPredict_labelled": "54194a1ca20beb32",
    "Decontaminate": "95950206025e650e",
    "QualityFilter": "ca64fcd8fa4e119a",
}


@pytest.mark.skipif(pickle.DEFAULT_PROTOCOL != 4, reason="recorded with pickle protocol 4")
def test_hashes_are_those_recorded() -> None:
    assert {entry.name: Hasher.hash(entry.make) for entry in CALLABLES} == RECORDED, (
        "A hash moved: every user's cached result of that callable is lost. If its output changed, `revision` must "
        "change too; then record the new hash here. If not, keep the old name, fields and defaults."
    )


@every_callable
def test_revision_and_each_setting_move_the_hash_and_an_equal_object_does_not(entry: Entry) -> None:
    hashes = [Hasher.hash(entry.make), Hasher.hash(dataclasses.replace(entry.make, revision="another"))]
    hashes += [Hasher.hash(dataclasses.replace(entry.make, **{name: value})) for name, value in entry.other.items()]
    assert len(set(hashes)) == len(hashes)
    assert Hasher.hash(dataclasses.replace(entry.make)) == hashes[0]


CHILD = """
import json
from datasets import disable_progress_bars
from datasets.fingerprint import Hasher
from tests.conformance.test_map_functions import CALLABLES, dataset_of
disable_progress_bars()
found = {}
for entry in CALLABLES:
    workers = [None, 1, 2, 4] if entry.name in ("FlowWeights", "AddRowIndex") else [None]
    maps = [dataset_of(entry).map(entry.make, **entry.kwargs, num_proc=n)._fingerprint for n in workers]
    found[entry.name] = [Hasher.hash(entry.make), *maps]
print(json.dumps(found))
"""


def test_hashes_and_fingerprints_are_the_same_in_another_process_and_with_one_two_and_four_workers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "12345"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    here = {
        entry.name: [Hasher.hash(entry.make), dataset_of(entry).map(entry.make, **entry.kwargs)._fingerprint]
        for entry in CALLABLES
    }
    assert {name: values[:2] for name, values in there.items()} == here
    assert len(there["FlowWeights"]) == len(there["AddRowIndex"]) == 5
    assert [name for name, (_, *maps) in there.items() if len(set(maps)) != 1] == []


def cached_files(folder: Path) -> dict[str, int]:
    """Name and time of writing of every cached result in a dataset's folder."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cache-*.arrow")}


@every_callable
def test_the_cache_is_used_again_until_the_revision_changes(entry: Entry, tmp_path: Path) -> None:
    dataset_of(entry).save_to_disk(tmp_path)

    def mapped(callable_: Any) -> Dataset:
        return load_from_disk(tmp_path).map(callable_, **entry.kwargs)

    first = mapped(entry.make)
    written = cached_files(tmp_path)
    assert len(written) == 1
    again = mapped(pickle.loads(pickle.dumps(entry.make)))
    assert cached_files(tmp_path) == written, "unchanged, it was computed again"
    assert again.cache_files == first.cache_files
    newer = mapped(dataclasses.replace(entry.make, revision="another"))
    more = cached_files(tmp_path)
    assert len(more) == 2, "a new revision was served the old rows"
    assert written.items() <= more.items()
    assert newer.cache_files != first.cache_files
    assert rows_of(newer) == rows_of(first)
