"""Datasets on the Hub: written here first, a card that warns, a download that is the same rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.hub.cards import write_dataset_card
from hf_ext.hub.push import PushError, push_dataset
from tests.hub.fake_hub import FOR_EVER, FakeHub
from tests.tiny import tiny_model, tiny_text_dataset, tiny_tokenizer


@pytest.fixture
def store(tmp_path: Path) -> ContextFreeStore:
    tokenizer = tiny_tokenizer()
    return generate_context_free(
        tiny_model(tokenizer), tokenizer, 60, output_dir=tmp_path / "store", max_new_tokens=8, show_progress=False
    )


def download(name: str, folder: Path) -> Path:
    return Path(snapshot_download(name, repo_type="dataset", local_dir=folder))


def rows_by_the_card(folder: Path, cache: Path) -> DatasetDict:
    """Load as the card's `configs` say, as `load_dataset` does with a repository."""
    return load_dataset(str(folder), cache_dir=str(cache))


def test_rows_arrive_and_come_back_equal(hub: FakeHub, tmp_path: Path) -> None:
    rows = DatasetDict({"train": tiny_text_dataset(9), "test": tiny_text_dataset(4, seed=1)})
    push_dataset(rows, "me/rows", folder=tmp_path / "rows", license="mit")
    assert not hub.repo("me/rows", "dataset").private
    back = rows_by_the_card(download("me/rows", tmp_path / "got"), tmp_path / "cache")
    assert {name: split["text"][:] for name, split in back.items()} == {n: s["text"][:] for n, s in rows.items()}
    card = DatasetCard.load(tmp_path / "rows" / "README.md")
    assert card.data.license == "mit"
    assert "| `train` | 9 |" in card.text
    assert "memorised" not in card.text


def test_a_store_is_private_warns_and_is_a_store_again(hub: FakeHub, tmp_path: Path, store: ContextFreeStore) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.2\nbase_model: org/original\n---\n")
    push_dataset(str(store.path), "me/samples", source_model=base)
    assert hub.repo("me/samples", "dataset").private
    got = download("me/samples", tmp_path / "got")
    assert ContextFreeStore(got).to_dataset().to_list() == store.to_dataset().to_list()
    assert rows_by_the_card(got, tmp_path / "cache")["train"].to_list() == store.to_dataset().to_list()
    card = DatasetCard.load(got / "README.md")
    assert card.data.license == "llama3.2"
    assert "[org/original](https://huggingface.co/org/original)" in card.text
    assert "memorised: personal data" in card.text
    assert "2505.13811" in card.text
    assert str(tmp_path) not in str(card)
    assert len(hub.titles("me/samples", "dataset")) == 1
    push_dataset(store, "me/open", private=False, license="mit")
    assert not hub.repo("me/open", "dataset").private


def seeds_on_the_card(folder: Path) -> tuple[str, list[list[str]]]:
    """The sentence on what the rows are, and the cells of the table of seeds."""
    text = (folder / "README.md").read_text()
    table = text.partition("## Seeds")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    sentence = " ".join(text[text.index("**Context-free rows**") :].split("Trained")[0].split())
    return sentence, [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


HOSTILE = "a <b> | $x$ `c` \n# " + "long " * 60


@pytest.mark.parametrize(
    ("start", "sentence", "seeds"),
    [
        ("bos", "wrote by itself, from a bare start token, at temperature 1, without", [("a bare token", "100.0%")]),
        ("Ada counts", "from the seed below, at temperature 1", [("tokens", "100.0%")]),
        (
            {"bos": 3, "chat": 1},
            "from the 2 seeds below by their shares, at temperature 1",
            [("bos (the beginning token)", "75.0%"), ("chat (the header of a user's turn; the model", "25.0%")],
        ),
        (
            {"bos": 1, HOSTILE: 1},
            "from the 2 seeds below",
            [("bos", "50.0%"), ("long l...", "50.0%")],
        ),
    ],
)
def test_the_card_of_a_store_says_what_the_rows_begin_with_and_how_many_of_each(
    start: Any, sentence: str, seeds: list[tuple[str, str]], hub: FakeHub, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    store = generate_context_free(
        tiny_model(tokenizer), tokenizer, 100, output_dir=tmp_path / "store", max_new_tokens=8, batch_size=16,
        start=start, show_progress=False,
    )  # fmt: skip
    push_dataset(store, "me/samples")
    words, lines = seeds_on_the_card(Path(store.path))
    assert sentence in words
    assert len(lines) == len(seeds)
    rows = store.to_dataset().to_list()
    for (name, ids, share), (known_name, known_share) in zip(lines, seeds, strict=True):
        assert known_name in name
        assert len(name) < 120
        assert share == known_share
        shown = [int(token) for token in ids.removesuffix(" ...").split()]
        of_seed = [row for row in rows if row["input_ids"][: len(shown)] == shown]
        assert len(of_seed) >= 0.9 * float(known_share.rstrip("%")) / 100 * len(rows)
        assert all(row["labels"][len(shown) - 1] == -100 for row in of_seed)


def test_other_rows_replace_what_was_pushed_before(hub: FakeHub, tmp_path: Path) -> None:
    def data_files() -> list[str]:
        return [name for name in hub.files("me/rows", "dataset") if name.startswith("data/")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_ext.hub.rows.SHARD_BYTES", 300)
        push_dataset(tiny_text_dataset(12), "me/rows", folder=tmp_path / "one")
    assert len(data_files()) > 1
    hub.fail("commit", "lost")
    push_dataset(tiny_text_dataset(3, seed=5), "me/rows", folder=tmp_path / "two")
    assert data_files() == ["data/train-00000-of-00001.parquet"]
    assert len(hub.titles("me/rows", "dataset")) == 2


def test_a_failed_push_leaves_the_rows_here(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail("commit", 503, FOR_EVER)
    with pytest.raises(PushError, match="dataset me/rows was not pushed") as error:
        push_dataset(tiny_text_dataset(5), "me/rows", folder=tmp_path / "rows")
    assert str(tmp_path / "rows") in str(error.value)
    assert load_dataset("parquet", data_files=str(tmp_path / "rows" / "data" / "*.parquet"))["train"].num_rows == 5
    with pytest.raises(FileExistsError, match="push that one"):
        push_dataset(tiny_text_dataset(6), "me/rows", folder=tmp_path / "rows")
    hub.faults.clear()
    push_dataset(tmp_path / "rows", "me/rows")
    assert "data/train-00000-of-00001.parquet" in hub.files("me/rows", "dataset")


def test_a_users_own_card_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    push_dataset(tmp_path, "me/rows")
    assert hub.files("me/rows", "dataset")["README.md"].endswith(b"mine\n")
    (tmp_path / "README.md").unlink()
    push_dataset(tmp_path, "me/rows")
    assert b"\nmine\n" in hub.files("me/rows", "dataset")["README.md"]
    assert b"`unknown` means that nobody has stated one" in hub.files("me/rows", "dataset")["README.md"]


def test_rows_that_are_not_there_are_refused(tmp_path: Path, store: ContextFreeStore) -> None:
    with pytest.raises(ValueError, match="has no rows"):
        push_dataset(Dataset.from_dict({"text": []}), "me/rows", folder=tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    next(Path(store.path).glob("shard-*.arrow")).write_bytes(b"cut")
    with pytest.raises(ValueError, match="shard-00000"):
        push_dataset(store, "me/rows")


def test_a_card_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'rows' or 'context_free'"):
        write_dataset_card(tmp_path, dataset_name="me/rows", kind="images")
