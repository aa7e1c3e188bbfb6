"""`hf-ext data dedup|classify|decontaminate`: each is its step under `curate`, with the places it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from hf_ext.cli import main
from hf_ext.data.curation import (
    BloomDeduplication,
    DropLedger,
    ExactDeduplication,
    MinHashDeduplication,
    NGramIndex,
    QualityShare,
    curate,
    load_classifier,
)
from tests.pages import article, pages

BOTH = ["--dataset", "texts.jsonl", "--output", "o"]


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Dataset:
    """The current directory, with `texts.jsonl` (id, text)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_ext.guards.reports.find_spec", lambda name: None)  # no plots: a second each
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write("texts.jsonl", [*pages().values()])
    return load_dataset("json", data_files="texts.jsonl", split="train")


def write(name: str, texts: list[str]) -> None:
    rows = [{"id": f"t{number}", "text": text} for number, text in enumerate(texts)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["--method", "exact"], ExactDeduplication()),
        (["--option", "bands=4", "--option", "rows=2"], MinHashDeduplication(bands=4, rows=2)),
        (["--method", "bloom", "--option", "mode=both"], BloomDeduplication(mode="both")),
    ],
)  # fmt: skip
def test_dedup_keeps_what_its_step_keeps(texts, words, step):
    assert main(["data", "dedup", "--dataset", "texts.jsonl", "--output", "out", "--id-column", "id", *words]) == 0
    expected = curate(texts, [step], show_progress=False)
    assert load_dataset("out", split="train")["text"][:] == expected["text"][:]
    assert {record.id for record in DropLedger.read("out")} == set(texts["id"]) - set(expected["id"])
    assert len(expected) < len(texts)


def test_decontaminate_drops_what_has_a_benchmark_s_row_and_keeps_the_index(texts, capsys):
    write("bench.jsonl", [" ".join(article(7).split()[20:60])])
    command = ["data", "decontaminate", "--dataset", "texts.jsonl", "--id-column", "id"]
    index = ["--benchmark", "bench.jsonl", "--columns", "text", "--save-index", "index.parquet"]
    assert main([*command, *index, "--output", "out"]) == 0
    (record,) = DropLedger.read("out")
    assert record.id == "t7"
    assert record.detail.startswith("bench.jsonl ")
    assert len(NGramIndex.load("index.parquet").records) == 1
    assert main([*command, "--index", "index.parquet", "--mode", "mask_span", "--output", "masked"]) == 0
    lengths = {row["id"]: len(row["text"]) for row in load_dataset("masked", split="train")}
    assert {row["id"] for row in texts if lengths[row["id"]] < len(row["text"])} == {"t7"}
    assert main([*command, *index, "--output", "again"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_classify_trains_keeps_a_share_and_a_file_of_steps_takes_the_classifier(texts, capsys, caplog):
    write("good.jsonl", [article(number) for number in range(100, 110)])
    write("bad.jsonl", [f"Buy {number} of these now and here" for number in range(10)])
    training = ["data", "classify", "--positives", "good.jsonl", "--negatives", "bad.jsonl", "--save", "model"]
    filtering = ["--dataset", "texts.jsonl", "--keep-share", "0.5"]
    assert main([*training, *filtering, "--output", "out"]) == 0
    out, err = capsys.readouterr()
    assert "held-out AUC 1.000; of the length alone" in out
    assert (out + err + caplog.text).count("Only 10 documents of a class") == 1
    expected = curate(texts, [QualityShare(classifier=load_classifier("model"), keep_share=0.5)], show_progress=False)
    assert load_dataset("out", split="train")["text"][:] == expected["text"][:]
    assert main(["data", "classify", "--classifier", "model", *filtering, "--output", "again"]) == 0
    Path("c.yaml").write_text("steps: [{QualityShare: {classifier: model, keep_share: 0.5}}]")
    assert main(["data", "curate", "--config", "c.yaml", "--dataset", "texts.jsonl", "--output", "third"]) == 0
    for folder in ("again", "third"):
        assert load_dataset(folder, split="train")["text"][:] == expected["text"][:]
    assert main(training) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dedup", "--output", "o"], "--dataset is missing"),
        (["dedup", "--dataset", "texts.jsonl"], "--output is missing"),
        (["dedup", *BOTH, "--option", "band=3"], "unknown key 'band'; did you mean"),
        (["dedup", *BOTH, "--option", "bands"], "expected NAME=VALUE"),
        (["dedup", *BOTH, "--option", "bands=0"], "bands must lie in [1, 1000], got 0"),
        (["decontaminate", *BOTH], "give --benchmark with --columns, or --index"),
        (["decontaminate", *BOTH, "--benchmark", "texts.jsonl"], "--columns is missing"),
        (["decontaminate", *BOTH, "--index", "none.parquet"], "none.parquet"),
        (["classify", "--positives", "texts.jsonl"], "--negatives is missing"),
        (["classify", "--dataset", "texts.jsonl"], "give --positives and --negatives"),
        (["classify", "--classifier", "c", "--dataset", "texts.jsonl"], "give one of --keep-share and --threshold"),
        (["classify", "--classifier", "c"], "--dataset is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_status_2_and_named(texts, capsys, words, message):
    assert main(["data", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("o/data").exists()
