"""States of the original model on disk: the rows that were asked for, whole shards, and damage that is named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.data.original_states import OriginalStates
from hf_ext.hub.files import files_to_push

FACTS = {"model": "m", "rows": "r", "dtype": "torch.float32"}
LENGTHS = [3, 5, 2, 7, 1]


def written(folder: Path, lengths: list[int] = LENGTHS, shard_tokens: int = 8) -> tuple[OriginalStates, list[Tensor]]:
    """All shards of random states, and the states of each row."""
    states = OriginalStates(folder, FACTS, lengths, shard_tokens)
    by_row = [torch.randn(length, 4) for length in lengths]
    for shard, rows in enumerate(states.shards):
        states.write(shard, {"hidden": torch.cat([by_row[row] for row in rows])})
    return states, by_row


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_shards_are_whole_rows_in_order_and_no_larger_than_they_must_be(lengths: list[int], most: int) -> None:
    shards = OriginalStates("nowhere", FACTS, lengths, most).shards
    assert [row for shard in shards for row in shard] == list(range(len(lengths)))
    for shard in shards:
        assert len(shard) == 1 or sum(lengths[row] for row in shard) <= most
    for first, second in pairwise(shards):
        assert sum(lengths[row] for row in first) + lengths[second[0]] > most


@pytest.mark.parametrize("rows", [[0], [4, 0, 3], [1, 1], [2, 3, 4, 0, 1]], ids=str)
def test_rows_come_back_in_the_order_they_are_asked_for(rows: list[int], tmp_path: Path) -> None:
    states, by_row = written(tmp_path)
    assert len(states.shards) == 3
    assert torch.equal(states.read(rows)["hidden"], torch.cat([by_row[row] for row in rows]))
    again = OriginalStates(tmp_path, FACTS, LENGTHS, 8)  # another process
    assert again.missing() == []
    assert torch.equal(again.read(rows)["hidden"], torch.cat([by_row[row] for row in rows]))


def test_a_missing_shard_is_known_and_other_facts_are_other_files(tmp_path: Path) -> None:
    states, _ = written(tmp_path)
    states.path(1).unlink()
    again = OriginalStates(tmp_path, FACTS, LENGTHS, 8)
    assert again.missing() == [1]
    with pytest.raises(FileNotFoundError, match="is missing"):
        again.read([2])
    for facts in (FACTS | {"model": "other"}, FACTS | {"rows": "other"}, FACTS | {"dtype": "torch.bfloat16"}):
        assert OriginalStates(tmp_path, facts, LENGTHS, 8).missing() == [0, 1, 2]
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("states-")] == []


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shorter"])
def test_a_damaged_shard_is_named_with_what_to_do(damage: str, tmp_path: Path) -> None:
    states, _ = written(tmp_path)
    path = states.path(0)
    content = path.read_bytes()
    if damage == "shorter":
        states.write(0, {"hidden": torch.zeros(2, 4)})
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "noise": b"\x00" * 200}[damage])
    with pytest.raises(ValueError, match="damaged") as caught:
        OriginalStates(tmp_path, FACTS, LENGTHS, 8).read([0])
    assert str(path) in str(caught.value)
    assert "Delete the file" in str(caught.value)


def test_no_push_of_a_model_takes_states_along(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    written(folder)
    written(folder / "states")
    (folder / "model.safetensors").write_bytes(b"weights")
    names: Any = files_to_push(folder)
    assert list(names) == ["model.safetensors"]
