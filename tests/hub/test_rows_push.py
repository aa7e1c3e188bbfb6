"""Rows from memory on the Hub: nothing beside them goes along, nobody's card is lost, pictures arrive as pictures."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
    List,
    Value,
    load_dataset,
)
from huggingface_hub import snapshot_download
from PIL import Image as Picture

from hf_ext.data.context_free import generate_context_free
from hf_ext.data.pruning import prune
from hf_ext.hub.push import PushError, push_dataset
from tests.hub.fake_hub import FOR_EVER, FakeHub
from tests.tiny import tiny_model, tiny_tokenizer

MINE = "---\nlicense: cc-by-4.0\nlanguage:\n- de\n---\n# Mine\n"


def rows(n: int = 3, seed: int = 0) -> Dataset:
    return Dataset.from_dict({"text": [f"row {seed} {i}" for i in range(n)]})


def files(hub: FakeHub, name: str) -> set[str]:
    return set(hub.files(name, "dataset"))


# --- a folder of their own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["raw.csv", "sub/raw.jsonl", "data.csv", "report/notes.md", "raw.bin.gz"])
def test_files_beside_the_rows_stop_the_push_and_stay_as_they_are(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / beside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / beside).write_text("id,label\n1,true\n")
    with pytest.raises(FileExistsError, match=f"would be pushed along with the rows.* The files: {beside}"):
        push_dataset(rows(), "me/mine")
    assert not hub.repos
    assert {path.name for path in (tmp_path / "mine").rglob("*")} == set(Path(beside).parts)
    push_dataset(rows(), "me/mine", folder="new")
    assert files(hub, "me/mine") == {"README.md", "data/train-00000-of-00001.parquet"}


def test_what_no_push_takes_along_may_lie_there(hub: FakeHub, tmp_path: Path) -> None:
    for name in (".git/HEAD", ".DS_Store", "bad_rows.jsonl", "_data/half.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    push_dataset(rows(), "me/rows", folder=tmp_path)
    assert files(hub, "me/rows") == {"README.md", "data/train-00000-of-00001.parquet"}
    assert (tmp_path / ".git" / "HEAD").read_text() == "x"


def test_other_rows_do_not_replace_those_that_are_there(hub: FakeHub, tmp_path: Path) -> None:
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    written = (tmp_path / "rows" / "data" / "train-00000-of-00001.parquet").read_bytes()
    for others in (rows(seed=1), DatasetDict({"train": rows(), "test": rows()})):
        with pytest.raises(FileExistsError, match="holds a dataset already: push that one"):
            push_dataset(others, "me/rows", folder=tmp_path / "rows")
        assert (tmp_path / "rows" / "data" / "train-00000-of-00001.parquet").read_bytes() == written
        assert not (tmp_path / "rows" / "_data").exists()
    assert len(hub.titles("me/rows", "dataset")) == 1


@pytest.mark.parametrize("kind", ["create", "commit"])
def test_the_same_call_after_a_failed_push_goes_through(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    hub.fail(kind, 403, FOR_EVER)
    for _ in range(2):
        with pytest.raises(PushError, match="HTTP 403"):
            push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    hub.faults.clear()
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    assert len(hub.titles("me/rows", "dataset")) == 1


def test_the_same_call_after_a_kill_at_any_step_goes_through(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    steps = 0
    for number in range(1, 30):
        calls = 0

        def at_step(original: Any, number: int = number) -> Any:
            def step(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    raise Killed
                return original(*args, **kwargs)

            return step

        folder = tmp_path / f"rows-{number}"
        with monkeypatch.context() as patch:
            patch.setattr("hf_ext.hub.rows.shutil.rmtree", lambda *args, **kwargs: None)  # a kill cleans nothing up
            for owner in ("rename", "replace", "mkdir", "write_text"):
                patch.setattr(Path, owner, at_step(getattr(Path, owner)))
            try:
                push_dataset(rows(), f"me/rows-{number}", folder=folder)
            except Killed:
                steps += 1
        push_dataset(rows(), f"me/rows-{number}", folder=folder)
        assert files(hub, f"me/rows-{number}") == {"README.md", "data/train-00000-of-00001.parquet"}
        if calls < number:
            break
    assert 5 <= steps < 29


def _push_slowly(folder: Path) -> None:
    from hf_ext.hub import rows as module

    write = module.write_parquet

    def slowly(*args: Any) -> None:
        write(*args)
        (folder.parent / "begun").touch()
        time.sleep(60)

    module.write_parquet = slowly
    push_dataset(rows(), "me/rows", folder=folder)


def test_a_real_kill_while_rows_are_written_and_a_second_process_meanwhile(hub: FakeHub, tmp_path: Path) -> None:
    first = multiprocessing.get_context("fork").Process(target=_push_slowly, args=(tmp_path / "rows",))
    first.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline, "the first process does not write"
        time.sleep(0.01)
    with pytest.raises(ValueError, match=r"is being written by .*or pass folder= another one"):
        push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    os.kill(first.pid, signal.SIGKILL)  # type: ignore[arg-type]
    first.join()
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    assert files(hub, "me/rows") == {"README.md", "data/train-00000-of-00001.parquet"}
    assert not list((tmp_path / "rows").glob("_*"))


# --- cards -----------------------------------------------------------------------------------------------------------


def card_of(hub: FakeHub, name: str) -> str:
    return hub.files(name, "dataset")["README.md"].decode()


def put_card(hub: FakeHub, name: str, text: str) -> None:
    """Somebody edits the card in the browser."""
    repo = hub.repo(name, "dataset")
    head = repo.find("main")
    repo.commit("main", "somebody", head.files | {"README.md": text.encode()}, head)  # type: ignore[union-attr]


def test_a_card_here_that_somebody_wrote_stops_the_push_and_stays(hub: FakeHub, tmp_path: Path) -> None:
    card = tmp_path / "rows" / "README.md"
    card.parent.mkdir()
    card.write_text(MINE)
    with pytest.raises(FileExistsError, match=r"or overwritten;.*Pass folder=.*overwrite_card=True.*README\.md"):
        push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    assert card.read_text() == MINE
    assert not hub.repos
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows", overwrite_card=True)
    assert "# Mine" not in card_of(hub, "me/rows")


def test_what_somebody_added_to_a_card_of_ours_here_stays(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail("commit", 403)
    with pytest.raises(PushError):
        push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    card = tmp_path / "rows" / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: mit") + "\n## My notes\n\nRead them.\n")
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    assert "license: mit" in card_of(hub, "me/rows")
    assert "## My notes\n\nRead them." in card_of(hub, "me/rows")


@pytest.mark.parametrize("fault", [None, "lost", "reset", "race"])
def test_a_card_on_the_hub_that_somebody_wrote_is_kept_and_completed_once(
    hub: FakeHub, tmp_path: Path, fault: str | None
) -> None:
    hub.make_repo("me/rows", "dataset")
    put_card(hub, "me/rows", MINE)
    if fault is not None:
        hub.fail("commit", fault)
    for _ in range(2):
        push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    text = card_of(hub, "me/rows")
    assert "license: cc-by-4.0\nlanguage:\n- de\n" in text
    assert "# Mine" in text
    assert "path: data/train-*.parquet" in text
    assert hub.titles("me/rows", "dataset").count("Upload dataset with hf-ext") == 1
    push_dataset(rows(seed=1), "me/rows", folder=tmp_path / "other", license="mit")
    assert "license: mit\nlanguage:\n- de\n" in card_of(hub, "me/rows")
    assert card_of(hub, "me/rows").count("| `train` | 3 |") == 1
    push_dataset(rows(seed=1), "me/rows", folder=tmp_path / "other", overwrite_card=True)
    assert "# Mine" not in card_of(hub, "me/rows")


def test_what_somebody_changed_in_a_card_of_ours_on_the_hub_stays(hub: FakeHub, tmp_path: Path) -> None:
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    changed = card_of(hub, "me/rows").replace("license: unknown", "license: mit") + "\n## My notes\n\nRead them.\n"
    put_card(hub, "me/rows", changed)
    push_dataset(rows(4, seed=1), "me/rows", folder=tmp_path / "other")
    text = card_of(hub, "me/rows")
    assert "license: mit" in text
    assert "## My notes" in text
    assert "| `train` | 4 |" in text
    assert "| `train` | 3 |" not in text


def test_a_card_on_the_hub_that_cannot_be_read_is_not_replaced(hub: FakeHub, tmp_path: Path) -> None:
    hub.make_repo("me/rows", "dataset")
    broken = "---\na: [1\n---\n# Mine\n"
    put_card(hub, "me/rows", broken)
    with pytest.raises(PushError, match="Mend the card on the Hub"):
        push_dataset(rows(), "me/rows", folder=tmp_path / "rows")
    push_dataset(rows(), "me/rows", folder=tmp_path / "rows", ignore="README.md")
    assert card_of(hub, "me/rows") == broken
    assert len(files(hub, "me/rows")) == 2


def test_a_card_of_a_folder_of_files_is_pushed_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    hub.make_repo("me/rows", "dataset")
    put_card(hub, "me/rows", MINE)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Newer\n")
    push_dataset(tmp_path, "me/rows")
    assert card_of(hub, "me/rows") == "---\nlicense: mit\n---\n# Newer\n"


def test_a_card_that_somebody_wrote_into_a_stores_folder_is_kept_and_completed(hub: FakeHub, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    store = generate_context_free(
        tiny_model(tokenizer), tokenizer, 20, output_dir=tmp_path / "store", max_new_tokens=8, show_progress=False
    )
    (tmp_path / "store" / "README.md").write_text(MINE)
    push_dataset(str(store.path), "me/samples")
    push_dataset(store, "me/samples")
    assert "# Mine" in card_of(hub, "me/samples")
    assert "memorised: personal data" in card_of(hub, "me/samples")
    assert len(hub.titles("me/samples", "dataset")) == 1
    push_dataset(store, "me/samples", overwrite_card=True)
    assert "# Mine" not in card_of(hub, "me/samples")


# --- what `load_dataset` cannot read back ----------------------------------------------------------------------------


SPLITS = {
    "train-1/x": ({"train-1/x": rows()}, "split 'train-1/x': load_dataset takes letters"),
    "dash": ({"train-1": rows()}, "split 'train-1'"),
    "empty name": ({"": rows()}, "split ''"),
    "dot": ({".hidden": rows()}, r"split '\.hidden'"),
    "up": ({"../x": rows()}, r"split '\.\./x'"),
    "all": ({"all": rows()}, "split 'all'"),
    "number": ({1: rows()}, "split 1"),
    "case": ({"Train": rows(), "train": rows()}, "splits 'Train' and 'train' are one file"),
    "none": ({}, "no split"),
    "no rows": ({"train": rows(), "test": rows(0)}, "split 'test' has no rows"),
    "missing": ({"train": rows(), "test": rows().add_column("x", [1, 2, 3])}, "split 'test', column 'x'.*missing"),
    "fewer": ({"train": rows().add_column("x", [1, 2, 3]), "test": rows()}, "split 'test', column 'x': it is missing"),
    "type": (
        {"train": Dataset.from_dict({"text": [1]}), "test": rows()},
        "split 'test', column 'text'.*string.*int64",
    ),
    "classes": (
        {name: Dataset.from_dict({"y": [0]}, Features({"y": ClassLabel(names=[name])})) for name in ("a", "b")},
        "split 'b', column 'y'",
    ),
}


@pytest.mark.parametrize("case", SPLITS)
def test_splits_that_could_not_be_read_back_are_refused_before_anything_is_written(
    hub: FakeHub, tmp_path: Path, case: str
) -> None:
    splits, message = SPLITS[case]
    for dataset in [splits, DatasetDict(splits)] if case != "number" else [splits]:
        with pytest.raises(ValueError, match=message):
            push_dataset(dataset, "me/rows", folder=tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    assert not hub.requests


@pytest.mark.parametrize("name", ["train", "a.b", "_x", "10", "Ä", "default", "train_1.5"])
def test_split_names_that_are_taken_come_back(hub: FakeHub, tmp_path: Path, name: str) -> None:
    push_dataset({name: rows(), "other": rows(2, 1)}, "me/rows", folder=tmp_path / "rows")
    got = Path(snapshot_download("me/rows", repo_type="dataset", local_dir=tmp_path / "got"))
    back = load_dataset(str(got), cache_dir=str(tmp_path / "cache"))
    assert {split: part["text"][:] for split, part in back.items()} == {
        name: rows()["text"][:],
        "other": rows(2, 1)["text"][:],
    }


@pytest.mark.parametrize("kind", ["stream", "streams", "generator", "list", "table"])
def test_rows_that_are_not_at_hand_get_a_sentence(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    dataset: Any = {
        "stream": rows().to_iterable_dataset(),
        "streams": IterableDatasetDict({"train": rows().to_iterable_dataset()}),
        "generator": iter([{"text": "a"}]),
        "list": [{"text": "a"}],
        "table": rows().data.table,
    }[kind]
    remedy = "IterableDataset.*from_generator" if kind.startswith("stream") else "from_list"
    with pytest.raises(TypeError, match=remedy):
        push_dataset(dataset, "me/rows", folder=tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    assert not hub.requests


def test_few_rows_chosen_from_many_are_written_into_files_that_all_hold_rows(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_ext.hub.rows.SHARD_BYTES", 2000)
    push_dataset(rows(5000).select([7, 4000]), "me/two", folder=tmp_path / "two")
    assert [n for n in sorted(files(hub, "me/two")) if n != "README.md"] == ["data/train-00000-of-00001.parquet"]
    monkeypatch.setattr("hf_ext.hub.rows.SHARD_BYTES", 1)
    push_dataset(rows(3), "me/three", folder=tmp_path / "three")
    parts = [content for name, content in hub.files("me/three", "dataset").items() if name != "README.md"]
    assert [pq.read_table(io.BytesIO(part)).num_rows for part in parts] == [1, 1, 1]


def test_the_same_call_with_a_report_makes_one_commit(hub: FakeHub, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32).tolist()
    source = Dataset.from_dict({"embedding": vectors, "text": [f"row {i}" for i in range(40)]})
    kept, report = prune(source, 8, return_report=True, show_progress=False)
    for _ in range(2):
        push_dataset(kept, "me/kept", folder=tmp_path / "kept", report=report)
    assert len(hub.titles("me/kept", "dataset")) == 1
    with pytest.raises(FileExistsError, match=r"report/pruning\.json"):  # it would be pushed along
        push_dataset(kept, "me/kept", folder=tmp_path / "kept")


def test_a_column_of_paths_of_this_machine_is_warned_of(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.flac").touch()
    columns = {"file": [None, str(tmp_path / "a.flac")], "text": ["/no/such/file", "a"], "x": [1, 2]}
    push_dataset(Dataset.from_dict(columns), "me/rows", folder=tmp_path / "rows")
    assert "column 'file' holds paths of this machine" in caplog.text
    assert "column 'text'" not in caplog.text


# --- pictures and sound ----------------------------------------------------------------------------------------------


@pytest.fixture
def media(tmp_path: Path) -> tuple[Dataset, list[bytes]]:
    """Rows whose pictures and sounds lie in files, also in lists and structs; and the files' bytes."""
    folder = tmp_path / "secret-place"
    folder.mkdir()
    contents = []
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (5, 4, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / f"{i}.png")
        contents.append((folder / f"{i}.png").read_bytes())
    paths = [str(folder / f"{i}.png") for i in range(4)]
    features = Features(
        {"image": Image(), "raw": Image(decode=False), "album": List(Image()), "sound": Value("string")}
        | {"page": {"scan": Image(), "text": Value("string")}}
    )
    columns = {"image": paths, "raw": paths, "album": [[p, p] for p in paths], "sound": paths}
    columns["page"] = [{"scan": p, "text": "a"} for p in paths]
    columns["image"] = [paths[0], None, *paths[2:]]
    dataset = Dataset.from_dict(columns, features=features)
    return dataset.cast_column("sound", Audio(decode=False)), contents  # encoding sound would need torchcodec


def test_pictures_and_sound_arrive_and_no_path_of_this_machine_does(
    hub: FakeHub, tmp_path: Path, media: tuple[Dataset, list[bytes]]
) -> None:
    with_files, contents = media
    push_dataset(with_files.select([3, 1, 0]), "me/media", folder=tmp_path / "rows")
    pushed = hub.files("me/media", "dataset")
    assert not [name for name, content in pushed.items() if b"secret-place" in content]
    table = pq.read_table(io.BytesIO(pushed["data/train-00000-of-00001.parquet"])).to_pylist()
    for row, index in zip(table, (3, 1, 0), strict=True):
        whole = {"bytes": contents[index], "path": f"{index}.png"}
        assert row["image"] == (None if index == 1 else whole)
        assert row["raw"] == row["sound"] == row["page"]["scan"] == whole
        assert row["album"] == [whole, whole]
    (tmp_path / "secret-place").rename(tmp_path / "gone")
    got = Path(snapshot_download("me/media", repo_type="dataset", local_dir=tmp_path / "got"))
    back = load_dataset(str(got), cache_dir=str(tmp_path / "cache"), split="train")
    assert back.features == with_files.features
    np.testing.assert_array_equal(np.asarray(back[0]["image"]), np.asarray(Picture.open(tmp_path / "gone" / "3.png")))


def test_pictures_of_many_rows_are_shared_out_to_files_by_their_bytes(
    hub: FakeHub, tmp_path: Path, media: tuple[Dataset, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_files, contents = media
    monkeypatch.setattr("hf_ext.hub.rows.SHARD_BYTES", sum(map(len, contents)))
    push_dataset(with_files, "me/media", folder=tmp_path / "rows")
    assert len(files(hub, "me/media")) > 3


def test_a_picture_that_is_gone_is_named_and_nothing_is_pushed(
    hub: FakeHub, tmp_path: Path, media: tuple[Dataset, list[bytes]]
) -> None:
    (tmp_path / "secret-place" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"row 2, column 'image': its file .*2\.png' is not there"):
        push_dataset(media[0], "me/media", folder=tmp_path / "rows")
    assert not hub.repos
    assert not list((tmp_path / "rows").rglob("*"))
