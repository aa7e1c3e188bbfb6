"""Randomised labels on the Hub: never beside clean ones, whatever their name, and with their cost in the card."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets, load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from hf_ext.data.relabeling import (
    HashColumn,
    KeyRef,
    LabelLeakError,
    RandomizedResponse,
    RRChannel,
    carry_ledger,
    privatize,
    relabel,
)
from hf_ext.hub.labels import check_label_privacy, label_privacy_facts
from hf_ext.hub.push import push_dataset, push_folder
from tests.hub.fake_hub import FakeHub

SECRET = hashlib.sha256(b"pushes").hexdigest()
os.environ["HF_EXT_HUB_TEST_LABEL_KEY"] = SECRET
KEY = KeyRef(env="HF_EXT_HUB_TEST_LABEL_KEY")
N, K = 3000, 7
TRUE = np.random.default_rng(0).integers(0, K, N)
NAMES = [f"kind {i}" for i in range(K)]


def private(n: int = N) -> Dataset:
    rng = np.random.default_rng(1)
    columns = {"id": [f"r{i}" for i in range(n)], "text": [f"text {i}" for i in range(n)], "x": rng.normal(size=n)}
    rows = Dataset.from_dict(columns | {"label": TRUE[:n].tolist()})
    return rows.cast_column("label", ClassLabel(names=NAMES))


@pytest.fixture(scope="module")
def released() -> Dataset:
    return privatize(private(), RandomizedResponse(1.0, K, KEY))


CLEAN = {
    "label_true": TRUE.tolist(),
    "Gold": TRUE.tolist(),
    "category": TRUE.tolist(),
    "label_text": [NAMES[y] for y in TRUE],
    "code": [f"{y}-{i:04d}" for i, y in enumerate(TRUE)],
    "note": [f"note {i}: this is kind {y}, see there" for i, y in enumerate(TRUE)],
    "true_class": ["a"] * N,
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_label_beside_a_ledger_stops_a_push_before_anything_is_written(
    hub: FakeHub, released: Dataset, tmp_path: Path, name: str
) -> None:
    rows = released.add_column(name, CLEAN[name])
    for dataset in (rows, DatasetDict({"train": rows})):
        with pytest.raises(LabelLeakError, match=f"split 'train', column '{name}'") as caught:
            push_dataset(dataset, "me/labels", folder=tmp_path / "out")
        assert f"remove_columns(['{name}'])" in str(caught.value)
        assert f"public_columns=['{name}']" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not hub.repos


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_predictions_features_and_hashed_ids_may_stand_beside_a_ledger(epsilon: float) -> None:
    rng = np.random.default_rng(2)
    rows = privatize(private(), RandomizedResponse(epsilon, K, KEY))
    rows = rows.add_column("pred", np.where(rng.random(N) < 0.99, TRUE, 0).tolist())
    rows = rows.add_column("guess", np.where(rng.random(N) < 0.6, TRUE, rng.integers(0, K, N)).tolist())
    rows = rows.add_column("source", rng.integers(0, 5, N).tolist()).add_column("half", [int(y > 3) for y in TRUE])
    check_label_privacy({"train": rows.map(HashColumn("id", KEY), batched=True)}, public_columns=["pred"])
    with pytest.raises(LabelLeakError, match="'category'"):
        check_label_privacy({"train": rows.add_column("category", TRUE.tolist())})


def test_rows_without_a_ledger_and_columns_said_to_be_public_are_pushed(
    hub: FakeHub, released: Dataset, tmp_path: Path
) -> None:
    check_label_privacy({"train": private().add_column("label_true", TRUE.tolist())})
    rows = released.add_column("category", TRUE.tolist())
    push_dataset(rows, "me/labels", folder=tmp_path / "out", public_columns=["category"])
    assert "columns said to be public anyway | `category`" in (tmp_path / "out" / "README.md").read_text()


def test_true_labels_that_carry_a_ledger_are_not_pushed(released: Dataset) -> None:
    with pytest.raises(LabelLeakError, match="column 'label': the ledger says 'true-label'"):
        check_label_privacy({"train": carry_ledger(private(), released)})


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "arrow"])
def test_a_folder_of_files_is_looked_through(hub: FakeHub, released: Dataset, tmp_path: Path, kind: str) -> None:
    def write(rows: Dataset, folder: Path) -> None:
        folder.mkdir()
        if kind == "parquet":
            rows.to_parquet(folder / "rows.parquet")
        elif kind == "jsonl":
            rows.to_json(folder / "rows.jsonl")
        else:
            rows.save_to_disk(folder)

    leaking = released.add_column("category", TRUE.tolist())
    write(leaking, tmp_path / "bad")
    for push in (push_dataset, lambda *args, **kwargs: push_folder(*args, repo_type="dataset", **kwargs)):
        with pytest.raises(LabelLeakError, match="'category'"):
            push(tmp_path / "bad", "me/labels")
    assert not hub.repos
    push_dataset(tmp_path / "bad", "me/public", public_columns=["category"])
    write(released, tmp_path / "good")
    push_dataset(tmp_path / "good", "me/labels")
    assert hub.files("me/labels", "dataset")


def test_rows_ledger_and_card_arrive_as_one_commit_under_faults(
    hub: FakeHub, released: Dataset, tmp_path: Path
) -> None:
    hub.fail("create", 503)
    hub.fail("preupload", 500, 2)
    hub.fail("commit", "lost")
    push_dataset(released, "me/labels", folder=tmp_path / "out", license="mit")
    assert len(hub.titles("me/labels", "dataset")) == 1
    got = Path(snapshot_download("me/labels", repo_type="dataset", local_dir=tmp_path / "got"))
    back = load_dataset(str(got), cache_dir=str(tmp_path / "cache"))["train"]
    assert back[:] == released[:]
    assert back.features["label"] == released.features["label"]
    card = DatasetCard.load(got / "README.md")
    assert card.data.tags == ["hf-ext", "label-differential-privacy"]
    assert card.data.task_categories is None
    for words in (
        "**Features are not protected**",
        "| epsilon | 1 nats |",
        "| classes | 7 |",
        "| mechanism | randomised response |",
        "| rows with randomised labels | 3,000 |",
        released["label_dp_channel"][0],
    ):
        assert words in card.text
    assert KEY.key_id not in card.content
    assert SECRET[:16] not in card.content


def test_a_card_tells_mixed_and_relabelled_rows_apart(released: Dataset) -> None:
    other = privatize(private(200), RandomizedResponse(2.5, K, KEY, salt="b")).map(lambda row: {"id": row["id"] + "b"})
    degraded = privatize(released.select(range(100)), RandomizedResponse(1.0, K, KEY, after=RRChannel(1.0, K)))
    predicted = relabel(released.add_column("pred", released["label"][:]), "full").remove_columns("pred")
    facts = dict(label_privacy_facts({"train": concatenate_datasets([released, other]), "dev": private(50)}))
    assert facts["epsilon"] == "1 to 2.5 nats, by row"
    assert facts["rows with randomised labels"] == "3,200"
    assert facts["rows whose labels are not randomised"] == "50"
    assert "twice in a row" in dict(label_privacy_facts({"train": degraded}))["mechanism"]
    assert "then relabelled" in dict(label_privacy_facts({"train": predicted}))["mechanism"]
    assert label_privacy_facts({"train": private(50)}) == []


@pytest.mark.parametrize("text", ["", "no json\n", "[1, 2]\n"])
def test_files_that_are_not_rows_are_let_through(hub: FakeHub, tmp_path: Path, text: str) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.jsonl", "b.parquet", "c.arrow", "d.txt"):
        (tmp_path / "d" / name).write_text(text or "x")
    push_folder(tmp_path / "d", "me/files", repo_type="dataset")
    assert len(hub.files("me/files", "dataset")) >= 4
