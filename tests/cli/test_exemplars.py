"""`hf-ext data exemplars` and `hf-ext eval retrieval`: a pool on disk, and the evaluator's numbers."""

from __future__ import annotations

import json
import shlex

import pytest

pytest.importorskip("bm25s")

from hf_ext import ExemplarStore
from hf_ext.cli import main
from hf_ext.evaluation.retrieval import RareInformationRetrievalEvaluator
from tests.trainers.retrieval import encoder, pairs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: an encoder, pairs in a file, and a BEIR folder of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = pairs(24)
    rows.to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "numbers.jsonl").write_text('{"n": 1, "a": "x", "b": "y"}\n')
    encoder().save(str(tmp_path / "encoder"))
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)

    def lines(name, texts):
        (beir / name).write_text("".join(json.dumps({"_id": i, "text": text}) + "\n" for i, text in texts))

    lines("queries.jsonl", zip(rows["id"][:], rows["query"][:], strict=True))
    lines("corpus.jsonl", ((f"d{i}", text) for i, text in enumerate(rows["positive"][:])))
    for split, numbers in (("train", range(8, 24)), ("test", range(8))):
        judged = "".join(f"q{i}\td{i}\t1\n" for i in numbers)
        (beir / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return tmp_path


def run(command: str) -> int:
    return main(shlex.split(command))


def test_a_pool_of_a_file_is_the_store_of_its_rows(folder, capsys):
    command = "data exemplars --dataset pairs.jsonl --output pool --license mit --query 'where is the grim kite' --k 2"
    assert run(command) == 0
    written, expected = ExemplarStore.load("pool"), ExemplarStore.from_dataset(pairs(24))
    assert written.queries == expected.queries
    assert written.column("document") == expected.column("document")
    assert written.column("id") == expected.column("id")
    assert json.loads((folder / "pool" / "rare_config.json").read_text())["rare"]["provenance"] == {"license": "mit"}
    out = capsys.readouterr().out
    assert "24 exemplars written to pool (text in clear)" in out
    hits = expected.search(["where is the grim kite"], 2)[0]
    assert all(hit.query in out and hit.document in out for hit in hits)
    assert run("data exemplars --store pool --query zzz") == 0
    assert "nothing: the query shares no word" in capsys.readouterr().out


def test_a_pool_of_a_beir_folder_holds_one_split(folder):
    assert run("data exemplars --beir beir --output pool --retriever fixed") == 0
    pool = ExemplarStore.load("pool")
    assert pool.column("id") == [f"q{i}" for i in range(8, 24)]
    assert type(pool.retriever).__name__ == "FixedRetriever"
    assert type(ExemplarStore.load("pool").retriever).__name__ == "FixedRetriever"


def test_the_numbers_are_the_evaluators(folder, capsys):
    command = "eval retrieval --model encoder --beir beir --pool-split train --k 2 --device cpu --output out.json"
    assert run(command + " --json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "out.json").read_text())
    assert (printed["queries"], printed["documents"], printed["exemplars"], printed["k"]) == (8, 24, 16, 2)
    rows = pairs(24)
    evaluator = RareInformationRetrievalEvaluator(
        {f"q{i}": rows["query"][i] for i in range(8)},
        {f"d{i}": text for i, text in enumerate(rows["positive"][:])},
        {f"q{i}": {f"d{i}"} for i in range(8)},
        write_csv=False,
    )
    plain = evaluator(encoder())
    assert printed["metrics"]["cosine_plain_ndcg@10"] == pytest.approx(plain["cosine_ndcg@10"])
    assert printed["metrics"]["cosine_leaked_share"] == 0
    assert printed["metrics"]["cosine_ndcg@10"] == printed["metrics"]["cosine_clean_ndcg@10"]
    assert run("eval retrieval --model encoder --beir beir --device cpu --max-queries 3") == 0
    out = capsys.readouterr().out
    assert "queries  3" in out
    assert "cosine_ndcg@10" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("data exemplars --dataset pairs.jsonl", "nothing to do"),
        ("data exemplars --dataset pairs.jsonl --output p --query-column nope", "column 'nope' is missing"),
        ("data exemplars --dataset numbers.jsonl --output p --query-column n", "'n' is not text"),
        ("data exemplars --beir beir --split dev --output p", "splits of beir are"),
        ("eval retrieval --model encoder --beir beir --pool-split test", "shown its own answer"),
        ("eval retrieval --model encoder --beir beir --exemplars nowhere", "neither a folder with exemplars"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder, command, message, capsys):
    assert run(command + (" --device cpu" if command.startswith("eval") else "")) != 0
    assert message in capsys.readouterr().err
