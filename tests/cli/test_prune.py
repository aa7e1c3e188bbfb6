"""`hf-ext data prune`: it writes the rows that `prune` keeps, and says how well they stand for the others."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from datasets import Dataset

from hf_ext.cli import main
from hf_ext.data.loading import load_rows
from hf_ext.data.pruning import PruneReport, prune

FIVE = ["--output", "x.jsonl", "--k", "5", "--column", "vector"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The current directory, with `rows.parquet`: vectors, a text, a label and a score."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    columns = {"vector": list(rng.normal(1, 1, (90, 5)).astype(np.float32)), "text": [f"row {i}" for i in range(90)]}
    dataset = Dataset.from_dict(columns | {"topic": ["a", "b", "b"] * 30, "score": rng.permutation(90).tolist()})
    dataset.to_parquet(tmp_path / "rows.parquet")
    return dataset


@pytest.mark.parametrize("output", ["kept.parquet", "kept.jsonl", "kept"])
def test_it_writes_what_prune_keeps_with_a_report(rows, output, capsys):
    command = "data prune --dataset rows.parquet --column vector --by topic --fraction 0.2 --report report --output"
    assert main([*shlex.split(command), output]) == 0
    expected = prune(rows, fraction=0.2, by="topic", column="vector")
    written = load_rows(output)
    assert written["text"][:] == expected["text"][:]
    assert written["prune_rank"][:] == expected["prune_rank"][:]
    out = capsys.readouterr().out
    assert "rows kept: 18 of 90 (20.0%)" in out
    assert "verdict: matched" in out
    assert "18 rows written" in out
    assert PruneReport.load("report").kept == 18


def test_options_of_the_method_scores_and_underscores_are_taken(rows):
    base = ["data", "prune", "--dataset", "rows.parquet", "--output"]
    assert (
        main([*base, "a.jsonl", "--k", "9", "--method", "score", "--score_column", "score", "--option", "keep=easy"])
        == 0
    )
    assert sorted(load_rows("a.jsonl")["score"]) == list(range(9))
    trimmed = [
        "--k",
        "9",
        "--column",
        "vector",
        "--option",
        "trim=0.3",
        "--option",
        "metric=raw",
        "--resume-path",
        "p.npz",
    ]
    assert main([*base, "b.jsonl", *trimmed]) == 0
    assert load_rows("b.jsonl")["text"][:] == prune(rows, 9, column="vector", trim=0.3, metric="raw")["text"][:]


def test_a_file_of_options_is_read_and_the_command_line_wins(rows, tmp_path):
    settings = {"dataset": "rows.parquet", "column": "vector", "k": 9, "by": "topic", "option": {"budget": "equal"}}
    (tmp_path / "small.yaml").write_text(json.dumps(settings))
    assert main(["data", "prune", "--config", "small.yaml", "--output", "a.jsonl", "--k", "10"]) == 0
    expected = prune(rows, 10, column="vector", by="topic", budget="equal")
    assert load_rows("a.jsonl")["text"][:] == expected["text"][:]
    assert main(["data", "prune", "--config", "small.yaml", "--output", "c.jsonl", "--fraction", "0.5"]) == 0
    assert len(load_rows("c.jsonl")) == 45
    (tmp_path / "small.yaml").write_text("fracton: 0.1")
    assert main(["data", "prune", "--config", "small.yaml", "--output", "b.jsonl"]) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k: [1]", ["k: ", "list"]),
        ("k: many", ["k: ", "many"]),
        ("k: 2.5", ["k: ", "float"]),
        ("k: true", ["k: ", "bool"]),
        ("fraction: {a: 1}", ["fraction: ", "dict"]),
        ("seed: 2024-01-01", ["seed: ", "date"]),
        ("dataset: 5", ["dataset: ", "int"]),
        ("encoder: [a]", ["encoder: ", "list"]),
        ("input_column: [1]", ["input_column: entry 0", "int"]),
        ("option: trim=0.1", ["option: ", "str"]),
        ("option: {trim: [1]}", ["option: trim", "list"]),
        ("batch_size: null", ["batch_size: ", "None"]),
        ("k: 1\nk: 2", ["line 2", "'k' is given twice"]),
        ("5: x", ["key 5"]),
        ("run: x", ["no option 'run'"]),
        ("option: &a [*a]", ["stands inside itself"]),
        ("- k", ["mapping", "list"]),
    ],
)
def test_a_wrong_value_in_a_file_of_options_is_one_line(tmp_path, capsys, text, words):
    (tmp_path / "c.yaml").write_text(text)
    assert main(["data", "prune", "--config", str(tmp_path / "c.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_numbers_in_a_file_of_options_may_be_written_as_on_the_command_line(rows, tmp_path):
    (tmp_path / "c.yaml").write_text("fraction: 2e-1\nseed: '3'\nmethod: random\ncolumn: vector\n")
    assert main(["data", "prune", "--config", "c.yaml", "--dataset", "rows.parquet", "--output", "a.jsonl"]) == 0
    assert (
        load_rows("a.jsonl")["text"][:]
        == prune(rows, fraction=0.2, method="random", column="vector", seed=3)["text"][:]
    )


@pytest.mark.parametrize("value", ["[" * 3000, "&a [*a]", "2024-13-40", "!!int x"])
def test_a_method_s_option_that_is_no_value_is_one_line(rows, capsys, value):
    assert (
        main(
            [
                "data",
                "prune",
                "--dataset",
                "rows.parquet",
                "--k",
                "1",
                "--output",
                "a.jsonl",
                "--option",
                f"trim={value}",
            ]
        )
        == 2
    )
    assert "error: --option trim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("k: 0", "k must be a whole number, at least 1"),
        ("seed: -1", "seed must be a whole number, at least 0"),
        ("fraction: 2", "fraction must be a number above 0 and at most 1"),
    ],
)
def test_a_number_of_the_file_has_the_bounds_of_the_option(rows, tmp_path, capsys, setting, problem):
    (tmp_path / "c.yaml").write_text(f"{setting}\n")
    assert main(["data", "prune", "--dataset", "rows.parquet", "--output", "x.jsonl", "--config", "c.yaml"]) == 2
    assert f"error: --config c.yaml: {problem}" in capsys.readouterr().err


def test_an_option_without_a_point_is_a_number_on_the_command_line_and_in_a_file(rows, tmp_path):
    (tmp_path / "c.yaml").write_text("option: {trim: 3e-1}\n")
    command = ["data", "prune", "--dataset", "rows.parquet", "--column", "vector", "--k", "9", "--output"]
    assert main([*command, "a.jsonl", "--option", "trim=3e-1"]) == 0
    assert main([*command, "b.jsonl", "--config", "c.yaml"]) == 0
    expected = prune(rows, 9, column="vector", trim=0.3)["text"][:]
    assert load_rows("a.jsonl")["text"][:] == load_rows("b.jsonl")["text"][:] == expected


def test_the_recipe_of_the_package_runs_on_rows_and_a_model_of_ones_own(rows, tmp_path):
    from tests.data.vectors.test_embedding import bert

    model, tokenizer = bert()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows.add_column("split", ["train"] * 90).to_json(tmp_path / "own.jsonl")
    own = "--dataset own.jsonl --by topic --encoder bert --cache-dir vectors --output a.jsonl"
    assert main(["data", "prune", "--config", "pruning/banking77.yaml", *shlex.split(own)]) == 0
    assert len(load_rows("a.jsonl")) == 18
    assert PruneReport.load("prune-report").by == "topic"


def test_a_model_makes_the_vectors(rows, tmp_path):
    from tests.data.vectors.test_embedding import bert

    model, tokenizer = bert()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    command = (
        "data prune --dataset rows.parquet --encoder bert --input-column text --k 9 --device cpu --output a.jsonl"
    )
    assert main([*shlex.split(command), "--cache-dir", "vectors"]) == 0
    expected = prune(rows, 9, encoder=(model, tokenizer), input_column="text")
    assert load_rows("a.jsonl")["text"][:] == expected["text"][:]
    assert len(list((tmp_path / "vectors").glob("vectors-*.npy"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "5"], ["--output is missing"]),
        (["--k", "5", "--output", "x.txt"], ["x.txt", ".parquet"]),
        (["--output", "x.jsonl", "--column", "vector"], ["k=None", "fraction=None"]),
        (["--output", "x.jsonl", "--k", "5"], ["no column 'embedding'"]),
        (["--output", "x.jsonl", "--k", "5", "--column", "vector", "--by", "kind"], ["by='kind'"]),
        (["--output", "x.jsonl", "--k", "5", "--column", "vector", "--option", "trim"], ["NAME=VALUE"]),
        (["--output", "x.jsonl", "--k", "5", "--column", "vector", "--method", "best"], ["Unknown method 'best'"]),
        ([*FIVE, "--option", "trimm=0.1"], ["method='gm' has no option 'trimm'. Did you mean 'trim'? It has backend"]),
        ([*FIVE, "--option", "seed=3"], ["method='gm' has no option 'seed'."]),  # the command's own
        ([*FIVE, "--option", "trim=abc"], ["trim must be a number, got 'abc'"]),
        ([*FIVE, "--option", "pool_rows=maybe"], ["pool_rows must be a whole number, got 'maybe'"]),
        (
            [*FIVE, "--option", "partitions=4"],
            ["has no option 'partitions'. It was removed: the rows are matched as one"],
        ),
        ([*FIVE, "--option", "budget=equal"], ["budget shares the rows out among groups", "give by"]),
        ([*FIVE, "--method", "k_center", "--option", "trim=0.1"], ["method='k_center' has no option 'trim'."]),
        (["--output", "x.jsonl", "--k", "5", "--encoder", "nowhere"], ["encoder 'nowhere' cannot be loaded"]),
        (["--output", "x.jsonl", "--config", "none.yaml"], ["none.yaml"]),
    ],
)
def test_a_mistake_is_status_2_and_named(rows, capsys, arguments, words):
    assert main(["data", "prune", "--dataset", "rows.parquet", *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext data prune: error:") :]
    assert all(word in message for word in words), message
