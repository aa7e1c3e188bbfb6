"""Scores on disk: they come back as they were, and a changed fact gives another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.original_cache import cache_file, load_scores, rows_hash, save_scores

FACTS = {"model": "a" * 64, "dtype": "torch.float32", "autocast": "no", "rows": "b" * 64}
document = st.tuples(st.floats(0, 1e6), st.integers(0, 10_000))
packed_row = st.lists(document, min_size=1, max_size=5)


@given(st.lists(packed_row, min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_scores_come_back_bit_for_bit(tmp_path_factory: Any, rows: list) -> None:
    scores = [([s for s, _ in row], [n for _, n in row]) for row in rows]
    path = cache_file(tmp_path_factory.mktemp("cache") / "deep" / "folder", FACTS)
    save_scores(path, scores, FACTS)
    assert load_scores(path) == scores
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize("fact", FACTS)
def test_each_fact_has_a_say_in_the_name(fact: str, tmp_path: Path) -> None:
    assert cache_file(tmp_path, FACTS | {fact: "other"}) != cache_file(tmp_path, FACTS)
    assert cache_file(tmp_path, dict(reversed(FACTS.items()))) == cache_file(tmp_path, FACTS)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "header"])
def test_a_damaged_file_is_named_with_what_to_do(damage: str, tmp_path: Path) -> None:
    path = cache_file(tmp_path, FACTS)
    save_scores(path, [([1.0, 2.0], [3, 4])], FACTS)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-9], "empty": b"", "noise": b"\x00" * 200, "header": content[8:]}[damage])
    with pytest.raises(ValueError, match="damaged") as found:
        load_scores(path)
    assert str(path) in str(found.value)
    assert "Delete the file" in str(found.value)


def test_scores_of_another_shape_are_damaged_too(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    save_file({"nll_sum": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="damaged"):
        load_scores(path)


BASE = {"input_ids": [[1, 2, 3], [4, 5]], "labels": [[-100, 2, 3], [-100, 5]]}
CHANGED = {
    "an id": BASE | {"input_ids": [[1, 2, 3], [4, 6]]},
    "a mask": BASE | {"labels": [[-100, -100, 3], [-100, 5]]},
    "the order": {name: column[::-1] for name, column in BASE.items()},
    "a row less": {name: column[:1] for name, column in BASE.items()},
    "where rows end": {"input_ids": [[1, 2], [3, 4, 5]], "labels": [[-100, 2], [3, -100, 5]]},
    "document borders": BASE | {"seq_lengths": [[1, 2], [2]]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_the_hash_of_rows_moves_with(what: str) -> None:
    assert rows_hash(Dataset.from_dict(CHANGED[what])) != rows_hash(Dataset.from_dict(BASE))


def test_the_hash_of_rows_ignores_what_is_not_scored() -> None:
    rows = Dataset.from_dict(BASE)
    expected = rows_hash(rows)
    assert rows_hash(rows.add_column("__hf_ext_row__", [7, 9])) == expected
    assert rows_hash(rows.with_format("torch")) == expected
    assert (
        rows_hash(Dataset.from_dict({name: column[::-1] for name, column in BASE.items()}).select([1, 0])) == expected
    )
