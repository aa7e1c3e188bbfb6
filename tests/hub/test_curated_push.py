"""A folder that `curate` wrote on the Hub: rows, report and card, and nothing of what was dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from hf_ext.data.curation.pipeline import curate
from hf_ext.data.curation.report import CurationReport, DropExample
from hf_ext.hub.push import push_dataset
from tests.data.curation.chain import CHAIN, documents, plainly
from tests.hub.fake_hub import FakeHub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A curated folder, and in `texts` what it was made of."""
    rows = Dataset.from_dict({"key": [f"secret-id-{i}" for i in range(80)], "text": documents(80)})
    curate(rows, CHAIN, output=tmp_path / "curated", id_column="key", show_progress=False)
    return tmp_path / "curated"


def all_text(folder: Path) -> str:
    return "".join(path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file())


def test_rows_report_and_card_arrive_as_one_commit_under_faults(hub: FakeHub, tmp_path: Path, folder: Path) -> None:
    hub.fail("create", 503)
    hub.fail("preupload", 500, 2)
    hub.fail("commit", "lost")
    push_dataset(folder, "me/curated", license="mit", private=True)
    assert len(hub.titles("me/curated", "dataset")) == 1
    got = Path(snapshot_download("me/curated", repo_type="dataset", local_dir=tmp_path / "got"))
    names = {
        path.relative_to(got).as_posix() for path in got.rglob("*") if path.is_file() and ".cache" not in path.parts
    }
    report = {f"report/curation.{suffix}" for suffix in ("json", "md", "html", "svg", "png")}
    assert names == {"README.md", ".gitattributes", "data/train-00000-of-00001.parquet"} | report
    left, gone = plainly(documents(80))
    back = load_dataset(str(got), cache_dir=str(tmp_path / "cache"))["train"]
    assert back["text"][:] == [left[row] for row in sorted(left)]
    assert CurationReport.load(got / "report").counts.rows_kept == len(left)
    assert gone
    public = all_text(got / "report") + (got / "README.md").read_text()
    assert not [row for row in gone if f"secret-id-{row}" in public]
    assert str(tmp_path) not in public
    card = DatasetCard.load(got / "README.md")
    assert card.data.tags == ["hf-ext", "curated"]
    assert "Documents to train a language model on" in card.text
    assert "fine-tuning" not in card.text
    assert f"| documents kept | {len(left)} " in card.text
    assert "(report/curation.png)" in card.text
    assert "2406.11794" not in card.text  # none of the paper's rules were among these steps


def test_a_second_push_changes_nothing_and_one_of_other_rows_replaces_them(
    hub: FakeHub, tmp_path: Path, folder: Path
) -> None:
    push_dataset(folder, "me/curated")
    push_dataset(folder, "me/curated", ignore="data/none")
    assert len(hub.titles("me/curated", "dataset")) == 1
    curate(Dataset.from_dict({"text": documents(30, 1)}), CHAIN, output=folder, show_progress=False)
    push_dataset(folder, "me/curated")
    got = Path(snapshot_download("me/curated", repo_type="dataset", local_dir=tmp_path / "again"))
    rows_kept = CurationReport.of_folder(folder).counts.rows_kept
    assert len(load_dataset(str(got), cache_dir=str(tmp_path / "cache"))["train"]) == rows_kept
    assert f"| `train` | {rows_kept} |" in (got / "README.md").read_text()


def test_examples_of_a_report_are_not_pushed_with_rows_or_a_folder(hub: FakeHub, tmp_path: Path, folder: Path) -> None:
    counts = CurationReport.of_folder(folder).counts
    report = CurationReport(counts, [DropExample("secret-id-1", "words", "few", 1.0, 2.0, "a dropped text")])
    push_dataset(folder, "me/folder", report=report)
    rows = Dataset.from_dict({"text": ["one of the rows"]})
    push_dataset(rows, "me/rows", folder=tmp_path / "rows", report=report)
    push_dataset(rows, "me/rows", folder=tmp_path / "rows", report=report)
    for name in ("folder", "rows"):
        got = Path(snapshot_download(f"me/{name}", repo_type="dataset", local_dir=tmp_path / f"got-{name}"))
        assert (got / "report/curation.html").is_file()
        assert "a dropped text" not in all_text(got)
        assert "secret-id-1" not in all_text(got / "report")
        assert "## Curation" in (got / "README.md").read_text()
    with pytest.raises(TypeError, match="CurationReport"):
        push_dataset(folder, "me/folder", report="report")


def test_a_curation_that_did_not_come_to_its_end_is_refused(hub: FakeHub, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    for name in ("counts.json", "drops/drops-00000.parquet"):
        (folder / name).unlink()
        with pytest.raises(ValueError, match="curated holds a curation that did not come to its end: run it again"):
            push_dataset(folder, "me/curated")
    assert hub.repos == {}
