"""A pruned dataset on the Hub: under faults, with its card and report, and the arguments passed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from hf_ext.data.pruning import PruneReport, prune
from hf_ext.hub.push import PushError, push_dataset
from tests.hub.fake_hub import FOR_EVER, TOKEN, FakeHub


@pytest.fixture
def pruned() -> tuple[Dataset, PruneReport]:
    rng = np.random.default_rng(0)
    columns = {
        "embedding": list(rng.normal(1, 1, (60, 4)).astype(np.float32)),
        "text": [f"row {i}" for i in range(60)],
    }
    rows = Dataset.from_dict(columns | {"label": ["a", "b", "b"] * 20})
    return prune(rows, 12, by="label", return_report=True)


def test_rows_report_and_card_arrive_as_one_commit_under_faults(hub: FakeHub, tmp_path: Path, pruned: tuple) -> None:
    rows, report = pruned
    hub.fail("create", 503)
    hub.fail("preupload", 500, 2)
    hub.fail("commit", "lost")
    push_dataset(rows, "me/kept", folder=tmp_path / "kept", report=report, license="mit", private=True)
    assert hub.repo("me/kept", "dataset").private
    assert len(hub.titles("me/kept", "dataset")) == 1
    got = Path(snapshot_download("me/kept", repo_type="dataset", local_dir=tmp_path / "got"))
    back = load_dataset(str(got), cache_dir=str(tmp_path / "cache"))["train"]
    assert back["text"][:] == rows["text"][:]
    assert back["prune_rank"][:] == rows["prune_rank"][:]
    assert PruneReport.load(got / "report") == report.without_dropped_rows()
    card = DatasetCard.load(got / "README.md")
    assert card.data.tags == ["hf-ext", "pruned"]
    assert card.data.task_categories is None
    assert "| rows kept | 12 of 60 (20.0%) |" in card.text
    assert "The rows of each `label` were picked on their own." in card.text
    assert "(report/pruning.png)" in card.text
    assert "2504.00564" in card.text
    assert str(tmp_path) not in card.content
    dropped = set(range(60)) - {int(text.split()[1]) for text in rows["text"]}
    assert not [i for i in dropped if f"'row {i}'" in (got / "report" / "pruning.md").read_text()]


@pytest.mark.parametrize("kwargs", [{"revision": "small"}, {"create_pr": True}])
def test_revision_pull_request_and_token_are_passed_on(
    hub: FakeHub, tmp_path: Path, pruned: tuple, kwargs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, report = pruned
    monkeypatch.delenv("HF_TOKEN")
    hub.make_repo("me/kept", "dataset")
    hub.fail("commit", 503)
    push_dataset(rows, "me/kept", folder=tmp_path / "kept", report=report, token=TOKEN, **kwargs)
    where = kwargs.get("revision", "refs/pr/1")
    assert "report/pruning.json" in hub.files("me/kept", "dataset", where)
    assert "data/train-00000-of-00001.parquet" in hub.files("me/kept", "dataset", where)
    assert "data/train-00000-of-00001.parquet" not in hub.files("me/kept", "dataset")


def test_a_wrong_token_is_said_and_the_rows_stay_here(hub: FakeHub, tmp_path: Path, pruned: tuple) -> None:
    rows, report = pruned
    with pytest.raises(PushError, match="dataset me/kept was not pushed"):
        push_dataset(rows, "me/kept", folder=tmp_path / "kept", report=report, token="hf_wrong")
    assert (tmp_path / "kept" / "report" / "pruning.json").is_file()
    hub.fail("commit", 500, FOR_EVER)
    with pytest.raises(PushError):
        push_dataset(tmp_path / "kept", "me/kept")
    hub.faults.clear()
    push_dataset(tmp_path / "kept", "me/kept")
    assert "report/pruning.md" in hub.files("me/kept", "dataset")


def test_another_method_s_card_names_no_paper(tmp_path: Path, hub: FakeHub, pruned: tuple) -> None:
    rows, report = prune(pruned[0], 5, method="random", return_report=True)
    push_dataset(rows, "me/kept", folder=tmp_path / "kept", report=report)
    text = (tmp_path / "kept" / "README.md").read_text()
    assert "2504.00564" not in text
    assert "| method | random |" in text
