"""Where a data verb writes: nothing that is read or was there before is lost, and a refusal is one sentence."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, load_from_disk

from hf_ext.cli import main
from hf_ext.data.loading import load_rows
from hf_ext.guards.runs import claimed_file

VERBS = {
    "privatize": "data privatize --epsilon 1 --key-file secret.key",
    "relabel": "data relabel --num-classes 3 --epsilon 2",
    "prune": "data prune --k 5 --column vector",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rows in every form that is read, and links to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    columns = {
        "id": [f"r{i}" for i in range(30)],
        "label": [i % 3 for i in range(30)],
        "pred": [i % 3 for i in range(30)],
    }
    rows = Dataset.from_dict(columns | {"vector": list(rng.normal(1, 1, (30, 4)).astype(np.float32))})
    rows = rows.cast_column("label", ClassLabel(names=list("abc")))
    rows.to_parquet("rows.parquet")
    rows.to_json("rows.jsonl")
    rows.save_to_disk("saved")
    Path("in").mkdir()
    rows.to_parquet("in/rows.parquet")
    os.link("rows.parquet", "hard.parquet")
    os.symlink("rows.parquet", "soft.parquet")
    os.symlink("in", "soft")
    assert main(["data", "privatize", "--make-key", "secret.key"]) == 0
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, or where a link leads."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.parts and (path.is_symlink() or path.is_file())
    }


def refused(arguments: str, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command ends with status 2 and one line that has the words; no file is changed, made or lost."""
    before = contents(Path())
    capsys.readouterr()
    assert main(shlex.split(arguments)) == 2, arguments
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    for word in words:
        assert word in message
    assert contents(Path()) == before


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_read_is_never_written(verb: str, overwrite: str, place: Path, capsys: pytest.CaptureFixture) -> None:
    for dataset, output in (
        ("rows.parquet", "rows.parquet"),
        ("rows.parquet", "./in/../rows.parquet"),
        ("rows.parquet", str(place / "rows.parquet")),
        ("rows.parquet", "hard.parquet"),
        ("rows.parquet", "soft.parquet"),
        ("soft.parquet", "rows.parquet"),
        ("rows.jsonl", "rows.jsonl"),
        ("saved", "saved"),
        ("saved", f"{place}/saved/"),
        ("in/rows.parquet", "in"),
        ("in", "soft"),
    ):
        command = f"{VERBS[verb]} --dataset {dataset} --output {output}{overwrite}"
        refused(command, capsys, "--dataset", "would be lost")
    refused(f"{VERBS[verb]} --dataset in --output in/new.parquet{overwrite}", capsys, "lies in the --dataset 'in'")
    refused(f"{VERBS[verb]} --dataset in --output soft/new.parquet{overwrite}", capsys, "lies in the --dataset 'in'")


@pytest.mark.parametrize("verb", ["relabel", "prune"])
@pytest.mark.parametrize("output", ["new.parquet", "new.jsonl", "new"])
def test_a_result_is_replaced_only_with_overwrite(
    verb: str, output: str, place: Path, capsys: pytest.CaptureFixture
) -> None:
    command = f"{VERBS[verb]} --dataset rows.parquet --output {output}"
    assert main(shlex.split(command)) == 0
    first = load_rows(output).to_list()
    names = {path.name for path in place.iterdir()}
    refused(command, capsys, output, "already", "--overwrite")
    assert main(shlex.split(f"{command} --overwrite --max-rows 20")) == 0
    assert len(load_rows(output)) < len(first) or verb == "prune"
    assert {path.name for path in place.iterdir()} == names


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("secret.key/x.parquet", ["Cannot write secret.key/x.parquet", "a file is in the way"]),
        ("/proc/x.parquet", ["Cannot write /proc/x.parquet"]),
        ("rows.parquet/", ["would be lost"]),
        ("soft.jsonl", ["is a folder"]),
        ("hollow.parquet", ["is there already"]),
        ("plain", ["is a file, and a folder is to be written"]),
        ("foreign", ["something in it"]),
        ("/dev/null", ["is a file"]),
        (".", ["names no file or folder"]),
        ("..", ["names no file or folder"]),
        ("''", ["names no file or folder"]),
        ("x" * 300 + ".parquet", ["name too long"]),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_work(
    output: str, words: list[str], place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("soft.jsonl").mkdir()
    Path("plain").touch()
    os.symlink("nowhere", "hollow.parquet")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").touch()
    monkeypatch.setattr("hf_ext.data.pruning.prune", lambda *_, **__: pytest.fail("the work began"))
    command = f"{VERBS['prune']} --dataset rows.parquet --output {output}"
    refused(command, capsys, *words)
    if output == "foreign":
        refused(f"{command} --overwrite", capsys, *words)


@pytest.mark.parametrize("more", ["--report {0}", "--resume-path {0}", "--cache-dir {0}"])
def test_one_place_is_not_written_twice(more: str, place: Path, capsys: pytest.CaptureFixture) -> None:
    for output in ("new.parquet", "new"):
        refused(f"{VERBS['prune']} --dataset rows.parquet --output {output} {more.format(output)}", capsys, output)
    refused(f"{VERBS['relabel']} --dataset rows.parquet --output r.jsonl --report ./r.jsonl", capsys, "--report")
    refused(f"{VERBS['relabel']} --dataset rows.jsonl --output r.jsonl --report rows.jsonl", capsys, "would be lost")
    refused(f"{VERBS['privatize']} --dataset rows.jsonl --output secret.key", capsys)


def test_a_report_inside_the_folder_of_rows_is_refused_before_the_work(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    for verb, report in (("prune", "r/report"), ("relabel", "r/deep/report.json")):
        refused(f"{VERBS[verb]} --dataset rows.parquet --output r --report {report}", capsys, "lies in the --output")
        assert not (place / "r").exists()


def test_a_report_that_is_there_is_kept(place: Path, capsys: pytest.CaptureFixture) -> None:
    for verb, report in (("prune", "report"), ("relabel", "report.json")):
        command = f"{VERBS[verb]} --dataset rows.parquet --report {report} --output"
        assert main(shlex.split(f"{command} {verb}.parquet")) == 0
        refused(f"{command} {verb}-2.parquet", capsys, "--report", "--overwrite")
        assert main(shlex.split(f"{command} {verb}-2.parquet --overwrite")) == 0


def test_a_pool_is_replaced_only_with_overwrite_and_nothing_else_ever(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    Dataset.from_dict({"query": ["where", "what"], "document": ["here", "that"]}).to_json("pairs.jsonl")
    command = "data exemplars --dataset pairs.jsonl --output"
    assert main(shlex.split(f"{command} pool")) == 0
    refused(f"{command} pool", capsys, "holds a pool already", "--overwrite")
    assert main(shlex.split(f"{command} pool --overwrite --max-rows 1")) == 0
    refused("data exemplars --store pool --output pool --overwrite", capsys, "would be lost")
    refused(f"{command} in --overwrite", capsys, "something in it")


def test_an_output_that_another_process_writes_is_refused_at_once(place: Path, capsys: pytest.CaptureFixture) -> None:
    from tests.forks import forked
    from tests.guards.test_runs import wait_for

    def hold() -> None:
        with claimed_file(place / "new.parquet"):
            Path("held").touch()
            wait_for(lambda: not Path("held").exists())

    number = forked(hold)
    wait_for(Path("held").exists)
    before = contents(place)
    assert main(shlex.split(f"{VERBS['prune']} --dataset rows.parquet --output new.parquet")) == 2
    assert f"new.parquet is being written by process {number} on" in capsys.readouterr().err
    assert contents(place) == before
    Path("held").unlink()
    os.waitpid(number, 0)


def test_a_folder_of_rows_that_is_replaced_stays_until_the_new_one_is_whole(place: Path) -> None:
    from hf_ext.cli.options import write_rows

    class Broken(Dataset):
        """Rows whose disk breaks in the middle."""

        def save_to_disk(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "data.arrow").write_text("half")
            raise OSError("broken")

    rows = load_from_disk("saved")
    broken = Broken(rows.data, rows.info)
    before = contents(place)
    with pytest.raises(OSError, match="broken"):
        write_rows(broken, place / "saved", overwrite=True)
    assert contents(place) == before
    write_rows(rows.select(range(3)), place / "saved", overwrite=True)
    assert len(load_from_disk("saved")) == 3
