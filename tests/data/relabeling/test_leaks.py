"""Columns that give the label away are found by what they hold, whatever their name; features are let through."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, load_dataset

from hf_ext.data.relabeling import HashColumn, LabelLeakError, find_leaks, privatize
from hf_ext.data.relabeling.leaks import association
from tests.data.relabeling.oracle import key, response, rows

N = 400
Y = np.array(rows(N)["label"])
rng = np.random.default_rng(1)

GIVES_AWAY = {
    "a copy": Y.tolist(),
    "a renamed copy": [("w", "q", "m", "z")[y] for y in Y],
    "a float": Y.astype(float).tolist(),
    "one-hot": np.eye(4)[Y].tolist(),
    "a finer kind": [f"{y}{rng.integers(3)}" for y in Y],
    "two of a hundred wrong": np.where(rng.random(N) < 0.02, (Y + 1) % 4, Y).tolist(),
    "an id": [f"set-{'abcd'[y]}-{i:05d}" for i, y in enumerate(Y)],
    "a path": [f"images/kind{y}/{i}.png" for i, y in enumerate(Y)],
    "its name in a text": [f"number {i}, filed under Class {y}, shelf {i}" for i, y in enumerate(Y)],
    "its name in an id": [f"{i}_class_{y}" for i, y in enumerate(Y)],
}
IS_A_FEATURE = {
    "a text": [f"some words {i * 7919 % 1000} and a number {i}" for i in range(N)],
    "a few equal texts": [f"text {i % 390}" for i in range(N)],
    "a source": rng.integers(0, 3, N).tolist(),
    "half a label": [int(y > 1) for y in Y],
    "a good prediction": np.where(rng.random(N) < 0.7, Y, rng.integers(0, 4, N)).tolist(),
    "a number": rng.normal(size=N).tolist(),
    "a vector": rng.normal(size=(N, 8)).tolist(),
    "all the same": ["x"] * N,
    "names of all classes": ["class 0, class 1, class 2 or class 3?"] * N,
    "none": [None] * N,
    "words": [["a", str(i)] for i in range(N)],
    "a row number": [f"r-{i:05d}" for i in range(N)],
}


@pytest.mark.parametrize("name", GIVES_AWAY)
def test_a_column_that_gives_the_label_away_is_refused_by_name(name: str) -> None:
    dataset = rows(N).add_column("extra", GIVES_AWAY[name])
    with pytest.raises(LabelLeakError, match="'extra'") as caught:
        privatize(dataset, response(1.0, 4))
    assert caught.value.column == "extra"
    for remedy in ("remove_columns", "HashColumn('extra'", "public_columns=('extra',)"):
        assert remedy in str(caught.value)
    allowed = privatize(dataset, response(1.0, 4, public_columns=("extra",)))
    assert allowed["extra"][:] == dataset["extra"][:]
    privatize(dataset.remove_columns("extra"), response(1.0, 4))


@pytest.mark.parametrize("name", IS_A_FEATURE)
def test_a_feature_is_let_through(name: str) -> None:
    privatize(rows(N).add_column("extra", IS_A_FEATURE[name]), response(1.0, 4))


@pytest.mark.parametrize("name", ["a copy", "an id", "one-hot"])
def test_a_batch_of_a_map_is_checked_too_and_the_error_comes_back_from_workers(name: str) -> None:
    dataset = rows(N).add_column("extra", GIVES_AWAY[name])
    for settings in ({}, {"num_proc": 2}):
        with pytest.raises(LabelLeakError, match="'extra'"):
            dataset.map(response(1.0, 4), batched=True, **settings)
    with pytest.raises(LabelLeakError):
        list(privatize(dataset.to_iterable_dataset(), response(1.0, 4)))


def test_every_leaking_column_is_named_at_once() -> None:
    dataset = rows(N).add_column("one", GIVES_AWAY["a copy"]).add_column("two", GIVES_AWAY["an id"])
    with pytest.raises(LabelLeakError) as caught:
        privatize(dataset, response(1.0, 4))
    assert "So do: 'two'" in str(caught.value)
    assert "public_columns=('one', 'two',)" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.column) == (str(caught.value), "one")


def test_few_rows_prove_nothing() -> None:
    tiny = {"id": ["a", "b", "c"], "label": [0, 0, 1], "kind": ["x", "x", "y"]}
    response(1.0, 4)(tiny)
    one_class = {"id": list(range(50)), "label": [0] * 50, "kind": ["x"] * 50}
    response(1.0, 4)(one_class)


def test_the_path_inside_a_picture_is_looked_at() -> None:
    from datasets import Image

    pictures = [{"bytes": b"...", "path": path} for path in GIVES_AWAY["a path"]]
    with pytest.raises(LabelLeakError, match=r"column 'image\.path' holds the label"):
        privatize(rows(N).add_column("image", pictures, feature=Image(decode=False)), response(1.0, 4))


def test_rows_sorted_by_label_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    privatize(rows(N).sort("label"), response(1.0, 4))
    assert "the order of the rows gives the labels away" in caplog.text
    caplog.clear()
    privatize(rows(N), response(1.0, 4))
    assert "the order of the rows" not in caplog.text


def test_the_association_is_the_share_of_pairs_with_the_same_label() -> None:
    """A double loop over rows, on a small table."""
    values, labels = ["a", "b", "a", "c", "b", "a", "b"], np.array([0, 1, 0, 2, 1, 1, 2])
    shares = []
    for i, value in enumerate(values):
        twins = [j for j, other in enumerate(values) if other == value and j != i]
        if twins:
            shares.append(np.mean([labels[i] == labels[j] for j in twins]))
    pairs = [labels[i] == labels[j] for i in range(7) for j in range(7) if i != j]
    found = association(values, labels)
    assert found.same == pytest.approx(np.mean(shares))
    assert found.chance == pytest.approx(np.mean(pairs))
    assert (found.covered, found.rows) == (6, 7)


def test_a_sample_of_a_large_dataset_is_enough() -> None:
    n = 30_000
    labels = np.random.default_rng(0).integers(0, 3, n)
    columns = {"id": list(range(n)), "label": labels.tolist(), "code": (labels * 7).tolist()}
    with pytest.raises(LabelLeakError, match="'code'"):
        privatize(Dataset.from_dict(columns), response(1.0, 3))


@pytest.mark.real
def test_snips_gives_its_labels_away_in_two_columns_and_banking77_in_one(real_data: Path, tmp_path: Path) -> None:
    def load(name: str) -> Dataset:
        file = str(real_data / name / "train.jsonl.gz")
        return load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path))

    snips = load("intents_snips")
    with pytest.raises(LabelLeakError) as caught:
        privatize(snips, response(1.0, 7))
    assert caught.value.column == "id"
    assert "'label_text'" in str(caught.value)
    safe = snips.remove_columns("label_text").map(HashColumn("id", key()), batched=True)
    assert len(privatize(safe, response(1.0, 7))) == 10_000
    banking = load("intents_banking77")
    assert [leak.column for leak in find_leaks(banking[:], "label", np.array(banking["label"]))] == ["label_text"]
    privatize(banking.remove_columns("label_text"), response(3.0, 77))


@pytest.mark.real
def test_named_classes_do_not_make_texts_a_leak(real_data: Path, tmp_path: Path) -> None:
    import json

    names = json.loads((real_data / "intents_banking77" / "labels.json").read_text())
    file = str(real_data / "intents_banking77" / "train.jsonl.gz")
    banking = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path)).remove_columns(
        "label_text"
    )
    privatize(banking.cast_column("label", ClassLabel(names=names)), response(3.0, 77))
