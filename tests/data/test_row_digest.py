"""A digest of rows follows what they hold, and nothing of how they came to hold it."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, concatenate_datasets

from hf_ext.data.row_digest import MOST_BLOCKS, _feed, code_digest, rows_change, rows_digest

COLUMNS: dict[str, list[Any]] = {
    "text": ["a", "", None, "bc", "d\0e", "é"],
    "ids": [[1, 2], [], None, [3], [4, None], [5]],
    "number": [1.5, float("nan"), None, -0.0, 2.0, 1e300],
    "flag": [True, None, False, True, True, False],
    "messages": [[{"role": "user", "content": "x"}], [], None, [{"role": None, "content": "y"}], [], []],
    "when": [datetime.datetime(2020, 1, day) for day in range(1, 7)],
    "bytes": [b"\0", b"", None, b"ab", b"c", b"d"],
    "nothing": [None] * 6,
}


def rows_of(columns: dict[str, list[Any]]) -> Dataset:
    return Dataset.from_dict(columns)


def test_history_chunks_and_files_leave_the_digest_alone(tmp_path: Path) -> None:
    rows = rows_of(COLUMNS)
    digest = rows_digest(rows)
    order = [3, 0, 5, 1, 4, 2]
    back = [order.index(i) for i in range(6)]
    rows.save_to_disk(tmp_path / "saved")
    same = {
        "loaded": Dataset.load_from_disk(str(tmp_path / "saved")),
        "shuffled and back": rows.select(order).select(back),
        "in chunks": concatenate_datasets([rows.select([0, 1]), rows.select([2]), rows.select(range(3, 6))]),
        "a slice of more": concatenate_datasets([rows, rows]).select(range(6, 12)),
        "mapped": rows.map(lambda row: row),
        "a torch format": rows.with_format("torch", columns=["ids"]),
        "flattened indices": rows.select(order).flatten_indices().select(back),
    }
    for what, other in same.items():
        assert rows_digest(other) == digest, what


def test_every_changed_cell_is_seen_and_placed() -> None:
    """Each cell replaced by the next value of its column."""
    rows = rows_of(COLUMNS)
    digest = rows_digest(rows)
    for name, values in COLUMNS.items():
        for i, value in enumerate(values):
            other = next((one for one in (*values[i:], *values) if repr(one) != repr(value)), None)
            if other is value:
                continue
            changed = Dataset.from_dict(
                COLUMNS | {name: [*values[:i], other, *values[i + 1 :]]}, features=rows.features
            )
            change = rows_change(digest, rows_digest(changed), changed)
            assert change == f"first in row {i}, column {name!r}", (value, other)


def test_borders_between_rows_and_lists_count() -> None:
    one = rows_of({"ids": [[1, 2], [3]], "text": ["ab", "c"], "nested": [[[1], [2]], []]})
    other = rows_of({"ids": [[1], [2, 3]], "text": ["a", "bc"], "nested": [[[1, 2]], []]})
    digests = rows_digest(one)["columns"], rows_digest(other)["columns"]
    assert all(digests[0][name] != digests[1][name] for name in digests[0])


def test_what_changed_is_said_in_words() -> None:
    rows = rows_of({"a": list(range(5)), "b": list(range(5))})
    digest = rows_digest(rows)

    def change(other: Dataset) -> str | None:
        return rows_change(digest, rows_digest(other), other)

    assert change(rows) is None
    assert change(rows.select([0, 2, 1, 3, 4])) == "first in row 1, columns 'a', 'b'"
    assert change(rows.select(range(3))) == "there were 5, there are 3; first in row 3, columns 'a', 'b'"
    assert change(rows.remove_columns("b")) == "column 'b' is gone"
    assert change(rows.rename_column("b", "c")) == "column 'b' is gone; column 'c' is new"
    assert change(rows.select_columns(["b", "a"])) is None, "columns go by name"
    assert change(rows.with_transform(lambda batch: batch)) == "their transform is another"
    names = [Features({"a": ClassLabel(names=names), "b": Value("int64")}) for names in (list("vwxyz"), list("vwxzy"))]
    one, two = (rows.cast(features) for features in names)
    assert rows_change(rows_digest(one), rows_digest(two), two) is not None, "a class has another name"


def test_a_change_in_large_rows_is_placed_in_its_block() -> None:
    """One row of 50,000, wherever it is."""
    values = np.arange(50_000)
    digest, rng = rows_digest(Dataset.from_dict({"a": values})), random.Random(0)
    assert len(digest["blocks"]) <= MOST_BLOCKS
    for _ in range(2):
        row = rng.randrange(len(values))
        changed = values.copy()
        changed[row] = -1
        rows = Dataset.from_dict({"a": changed})
        words = str(rows_change(digest, rows_digest(rows), rows)).replace(",", "").split()
        assert int(words[3]) <= row <= int(words[5])


def test_pictures_count_by_their_bytes(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")

    def rows(folder: str, shade: int) -> Dataset:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "picture.png"
        pil.new("RGB", (4, 4), (shade, 0, 0)).save(path)
        return Dataset.from_dict({"image": [str(path)]}, features=Features({"image": Image()}))

    digest = rows_digest(rows("a", 7))
    assert rows_digest(rows("b", 7)) == digest
    other = rows("a", 8)  # the same path
    assert rows_change(digest, rows_digest(other), other) == "first in row 0, column 'image'"


def test_a_stream_counts_by_its_first_rows() -> None:
    def digest(last: int, at: int) -> dict[str, Any]:
        def rows() -> Any:
            yield from ({"a": last if i == at else i} for i in range(3000))

        return rows_digest(IterableDataset.from_generator(rows))

    assert digest(5, 5)["count"] is None
    assert digest(5, 5)["columns"] != digest(6, 5)["columns"]
    assert digest(5, 5)["columns"] == digest(7, 2500)["columns"]


def test_arrow_types_beyond_those_of_datasets_are_hashed_by_content() -> None:
    arrays = [
        pa.array(["x", "y", "x", None]).dictionary_encode(),
        pa.array([[1, 2], [3, 4], None, [5, 6]], type=pa.list_(pa.int32(), 2)),
        pa.array(["a", None, "b", "cc"], type=pa.large_string()),
        pa.array([1, 2, None, 4], type=pa.duration("s")),
    ]

    def fed(array: Any) -> list[bytes]:
        parts: list[bytes] = []
        _feed(array, lambda part: parts.append(bytes(part)))  # without a Dataset, which may not take the type
        return parts

    for array in arrays:
        assert fed(pa.concat_arrays([array, array]).slice(4, 4)) == fed(array), array.type
        assert fed(array.take(pa.array([1, 0, 2, 3]))) != fed(array), array.type
    texts = pa.array(["a", None, "b", "a text that is longer than a view holds"], type=pa.large_string())
    assert fed(texts.cast(pa.string_view())) == fed(texts)


def scaled_by(scale: Any) -> dict[str, Any]:
    """Functions of the same code that give other values for another `scale`."""

    def by_default(batch: Any, scale: Any = scale) -> Any:
        return batch, scale

    def by_keyword(batch: Any, *, scale: Any = scale) -> Any:
        return batch, scale

    def by_tuple(batch: Any, _of: Any = None, scales: Any = (1, (scale,))) -> Any:
        return batch, scales

    def closed(batch: Any) -> Any:
        return batch, scale

    def by_function(batch: Any) -> Any:
        return closed(batch)

    def circular(batch: Any, left: int = 1) -> Any:
        return circular(batch, left - 1) if left else closed(batch)

    return {
        function.__name__: function for function in (by_default, by_keyword, by_tuple, closed, by_function, circular)
    }


@pytest.mark.parametrize("name", scaled_by(1))
def test_a_function_counts_with_what_it_was_made_with(name: str) -> None:
    once, again, other = (scaled_by(scale)[name] for scale in (2, 2, 3))
    assert once("x") == again("x") != other("x")
    assert code_digest(once) == code_digest(again) != code_digest(other)


def test_a_function_that_names_what_is_not_there_yet_has_a_digest() -> None:
    def early() -> Any:
        return late

    digest = code_digest(early)
    late = 1
    assert early() == 1
    assert digest.startswith(f"{__name__}.")
