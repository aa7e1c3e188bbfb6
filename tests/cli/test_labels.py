"""`hf-ext data privatize` and `relabel`: they write what the library computes, and print what it cost."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List, Value

from hf_ext.cli import main
from hf_ext.data.loading import load_rows
from hf_ext.data.relabeling import HashColumn, KeyRef, RandomizedResponse, RRChannel, carry_ledger, privatize, relabel

N, K = 200, 4
RUN = "data privatize --dataset rows.parquet --epsilon 1.5 --key-file secret.key --output"


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The current directory, with `rows.parquet` and a key made by the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    columns = {"id": [f"r{i}" for i in range(N)], "label": rng.integers(0, K, N).tolist(), "x": rng.normal(size=N)}
    dataset = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=list("abcd")))
    dataset.to_parquet(tmp_path / "rows.parquet")
    assert main(["data", "privatize", "--make-key", "secret.key"]) == 0
    return dataset


def key() -> KeyRef:
    return KeyRef(file="secret.key")


def test_a_key_is_made_once_and_not_printed(rows, capsys, tmp_path):
    assert main(["data", "privatize", "--make-key", "other.key"]) == 0
    out = capsys.readouterr().out
    secret = (tmp_path / "other.key").read_text().strip()
    assert len(bytes.fromhex(secret)) == 32
    assert secret not in out
    assert KeyRef(file="other.key").key_id in out
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "other.key").stat().st_mode) == 0o600
    assert main(["data", "privatize", "--make-key", "other.key"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "other.key").read_text().strip() == secret


@pytest.mark.parametrize("output", ["noisy.parquet", "noisy.jsonl", "noisy"])
def test_it_writes_what_privatize_computes(rows, output, capsys):
    assert main([*shlex.split(RUN), output]) == 0
    expected = privatize(rows, RandomizedResponse(1.5, K, key()))
    written = load_rows(output)
    for name in ("id", "label", "label_dp_epsilon", "label_dp_channel"):
        assert written[name][:] == expected[name][:]
    out = capsys.readouterr().out
    assert f"channel {expected['label_dp_channel'][0]}: epsilon 1.5 a label, 1.5 nats" in out
    assert f"probability {RRChannel(1.5, K).p:.4f}" in out
    assert "200 rows written" in out
    assert "the true labels are still in rows.parquet" in out


def test_a_key_in_the_environment_a_salt_and_other_columns_are_taken(rows, monkeypatch, tmp_path):
    secret = (tmp_path / "secret.key").read_text().strip()
    monkeypatch.setenv("HF_EXT_LABEL_KEY", secret)
    monkeypatch.setenv("OTHER", secret)
    renamed = rows.rename_columns({"label": "topic", "id": "name"})
    renamed.to_parquet("renamed.parquet")
    base = "data privatize --dataset renamed.parquet --epsilon 1.5 --label topic --id_column name --salt b --output"
    assert main([*shlex.split(base), "a.jsonl"]) == 0
    assert main([*shlex.split(base), "b.jsonl", "--key-env", "OTHER"]) == 0
    expected = privatize(renamed, RandomizedResponse(1.5, K, key(), label="topic", id_column="name", salt="b"))
    for output in ("a.jsonl", "b.jsonl"):
        assert load_rows(output)["topic"][:] == expected["topic"][:]


def test_leaks_are_refused_dropped_hashed_or_said_to_be_public(rows, capsys):
    leaking = rows.add_column("name", [f"class-{'abcd'[y]}" for y in rows["label"]])
    leaking = leaking.remove_columns("id").add_column("id", [f"x-{y}-{i}" for i, y in enumerate(rows["label"])])
    leaking.to_parquet("rows.parquet")
    assert main([*shlex.split(RUN), "a.jsonl"]) == 2
    err = capsys.readouterr().err
    assert "'name'" in err
    assert "'id'" in err
    assert "public_columns" in err
    assert main([*shlex.split(RUN), "a.jsonl", "--drop-columns", "name", "--hash-columns", "id"]) == 0
    hashed = leaking.map(HashColumn("id", key()), batched=True).remove_columns("name")
    assert load_rows("a.jsonl")["label"][:] == privatize(hashed, RandomizedResponse(1.5, K, key()))["label"][:]
    assert main([*shlex.split(RUN), "b.jsonl", "--public-columns", "name", "id"]) == 0
    assert "name" in load_rows("b.jsonl").column_names


def test_rows_without_ids_are_numbered_under_a_salt_of_their_own(rows, capsys):
    rows.remove_columns("id").to_parquet("rows.parquet")
    assert main([*shlex.split(RUN), "a.jsonl", "--number-rows"]) == 2
    assert "--number-rows needs --salt" in capsys.readouterr().err
    assert main([*shlex.split(RUN), "a.jsonl", "--number-rows", "--salt", "train"]) == 0
    numbered = rows.remove_columns("id").add_column("id", list(range(N)))
    expected = privatize(numbered, RandomizedResponse(1.5, K, key(), salt="train"))
    assert load_rows("a.jsonl")["label"][:] == expected["label"][:]


def test_two_files_that_are_numbered_alike_are_released_under_two_salts_with_independent_noise(rows, capsys):
    rng = np.random.default_rng(5)
    true = {}
    for name in ("train", "test"):
        true[name] = rng.integers(0, K, 4000)
        part = Dataset.from_dict({"x": rng.normal(size=4000), "label": true[name]})
        part.cast_column("label", ClassLabel(names=list("abcd"))).to_parquet(f"{name}.parquet")
        command = f"data privatize --dataset {name}.parquet --epsilon 1.5 --key-file secret.key --number-rows"
        assert main([*shlex.split(command), "--salt", name, "--output", f"{name}.jsonl"]) == 0
    train, test = (np.array(load_rows(f"{name}.jsonl")["label"][:]) == true[name] for name in true)
    p = RRChannel(1.5, K).p
    assert abs(train[test].mean() - p) < 5 * (p * (1 - p) / test.sum()) ** 0.5
    command = "data privatize --dataset test.parquet --epsilon 1.5 --key-file secret.key --number-rows --salt train"
    assert main([*shlex.split(command), "--output", "again.jsonl"]) == 2
    assert "would get the same noise" in capsys.readouterr().err


def test_the_record_beside_the_key_refuses_a_silent_second_release_and_adds_up_a_stated_one(rows, capsys):
    assert main([*shlex.split(RUN), "a.jsonl"]) == 0
    assert "recorded in" in capsys.readouterr().out
    assert main([*shlex.split(RUN), "b.jsonl"]) == 0, "the same release again"
    assert load_rows("a.jsonl")[:] == load_rows("b.jsonl")[:]
    second = [*shlex.split(RUN.replace("1.5", "0.5")), "c.jsonl", "--salt", "second"]
    assert main(second) == 2
    err = capsys.readouterr().err
    assert "holds epsilon 1.5" in err
    assert "adds up to 2" in err
    assert "--compose" in err
    assert not os.path.exists("c.jsonl")
    assert main([*second, "--compose"]) == 0
    assert set(load_rows("c.jsonl")["label_dp_epsilon"]) == {2.0}
    record = Path("secret.key.releases.jsonl").read_text()
    assert main([*shlex.split(RUN), "secret.key.releases.jsonl", "--overwrite"]) == 2
    assert "is the record of what was released" in capsys.readouterr().err
    assert Path("secret.key.releases.jsonl").read_text() == record


def test_a_second_draw_is_refused_composed_or_degraded(rows, capsys):
    assert main([*shlex.split(RUN), "first.parquet"]) == 0
    again = "data privatize --dataset first.parquet --epsilon 1 --key-file secret.key --output"
    assert main([*shlex.split(again), "a.jsonl"]) == 2
    assert "epsilon 1.5 was spent" in capsys.readouterr().err
    assert main([*shlex.split(again), "a.jsonl", "--after", "1.5"]) == 0
    assert load_rows("a.jsonl")["label_dp_epsilon"][0] < 1
    carry_ledger(rows, load_rows("first.parquet")).to_parquet("private.parquet")
    second = again.replace("first", "private")
    assert main([*shlex.split(second), "b.jsonl", "--compose", "--salt", "2"]) == 0
    assert set(load_rows("b.jsonl")["label_dp_epsilon"]) == {2.5}


def test_priors_are_read(rows, capsys):
    rows.add_column("prior", [[0.7, 0.1, 0.1, 0.1]] * N).to_parquet("rows.parquet")
    assert main([*shlex.split(RUN), "a.jsonl", "--prior-column", "prior"]) == 0
    assert load_rows("a.jsonl")["label_dp_channel"][0].startswith("rr-prior-4-")
    assert "stays as it is" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--epsilon", "1", "--output", "x.jsonl", "--key-env", "NO_SUCH_KEY"],
            ["NO_SUCH_KEY is not set", "--make-key"],
        ),
        (["--epsilon", "1", "--key-file", "secret.key"], ["--output is missing"]),
        (["--output", "x.jsonl", "--key-file", "secret.key"], ["--epsilon is missing"]),
        (["--epsilon", "1", "--output", "x.txt", "--key-file", "secret.key"], ["x.txt"]),
        (["--epsilon", "1", "--output", "x.jsonl", "--key-file", "secret.key", "--label", "x"], ["--num-classes"]),
        (["--epsilon", "1", "--output", "x.jsonl", "--key-file", "secret.key", "--drop-columns", "y"], ["column 'y'"]),
        (
            ["--epsilon", "1", "--output", "x.jsonl", "--key-file", "secret.key", "--number-rows", "--salt", "a"],
            ["already"],
        ),
        (["--epsilon", "1", "--output", "x.jsonl", "--key-file", "secret.key", "--num-classes", "3"], ["0 to 2"]),
    ],
)
def test_a_mistake_is_status_2_and_named(rows, capsys, arguments, words):
    assert main(["data", "privatize", "--dataset", "rows.parquet", *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext data privatize: error:") :]
    assert all(word in message for word in words), message


# --- relabel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def predicted(rows):
    """`predicted.parquet`: noisy labels with predictions."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(N, K)) + 2 * np.eye(K)[rows["label"][:]]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    noisy = privatize(rows, RandomizedResponse(1.5, K, key())).add_column("pred", probs.argmax(axis=1))
    noisy = noisy.add_column("probs", probs.tolist(), feature=List(Value("float32"), length=K))
    noisy = noisy.add_column("pred_is_out_of_fold", [True] * N)
    noisy.to_parquet("predicted.parquet")
    return noisy


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("", {}),
        ("--mode full --min-prob 0.6", {"mode": "full", "min_prob": 0.6}),
        ("--mode bayes --epsilon 1.5", {"mode": "bayes", "channel": RRChannel(1.5, K)}),
        ("--mode bayes_soft --epsilon 1.5", {"mode": "bayes_soft", "channel": RRChannel(1.5, K)}),
    ],
)
def test_it_writes_what_relabel_computes(predicted, capsys, tmp_path, extra, arguments):
    command = "data relabel --dataset predicted.parquet --output out.parquet --report report.json"
    assert main([*shlex.split(command), *shlex.split(extra)]) == 0
    expected, report = relabel(predicted, return_report=True, **arguments)
    written = load_rows("out.parquet")
    assert written["id"][:] == expected["id"][:]
    assert written["label"][:] == expected["label"][:]
    if "weight" in expected.column_names:
        np.testing.assert_allclose(written["weight"][:], expected["weight"][:], rtol=1e-6)
    out = capsys.readouterr().out
    assert f"{len(expected):,} rows written" in out
    assert f"predictions that are the given label: {report.agreement:.1%} of 200" in out
    assert ("accuracy of the predictions" in out) == ("channel" in arguments)
    assert json.loads((tmp_path / "report.json").read_text())["rows_kept"] == len(expected)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--mode bayes", "--mode bayes needs --epsilon"),
        (f"--num-classes {K - 1}", f"expected a class from 0 to {K - 2}, found {K - 1}"),
        ("--prediction guess", "no column 'guess'"),
        ("--min-prob 1", "leaves no label"),
    ],
)
def test_a_mistake_in_relabel_is_status_2_and_named(predicted, capsys, extra, words):
    command = "data relabel --dataset predicted.parquet --output out.parquet"
    assert main([*shlex.split(command), *shlex.split(extra)]) == 2
    assert words in capsys.readouterr().err


def test_labels_outside_their_classes_end_with_status_2_and_predictions_of_another_order_are_translated(rows, capsys):
    def write(name, column, numbers, names):
        given = rows.remove_columns([column]) if column in rows.column_names else rows
        given.add_column(column, numbers).cast_column(column, ClassLabel(names=names)).to_parquet(name)

    labels = rows["label"][:]
    write("bad.parquet", "label", [*labels[:2], 7, *labels[3:]], list("abcd"))  # a cast lets any number in
    for command in (shlex.split(RUN), shlex.split("data relabel --dataset bad.parquet --prediction id --output")):
        command[command.index("--dataset") + 1] = "bad.parquet"
        assert main([*command, "out.parquet"]) == 2
        assert "row 2, column 'label': expected a class from 0 to 3, found 7" in capsys.readouterr().err
        assert not os.path.exists("out.parquet")
    assert main([*shlex.split(RUN), "out.parquet", "--num-classes", "5"]) == 2
    assert "the mechanism has 5 classes, but column 'label' is a ClassLabel of 4" in capsys.readouterr().err
    write("turned.parquet", "pred", [3 - label for label in labels], list("dcba"))
    command = shlex.split("data relabel --dataset turned.parquet --output out.parquet --overwrite")
    assert main([*command, "--mode", "consensus"]) == 0
    assert load_rows("out.parquet")["label"][:] == labels, "by name every prediction is the label"
    write("other.parquet", "pred", labels, list("wxyz"))
    assert main(shlex.split("data relabel --dataset other.parquet --mode full --output other-out.parquet")) == 2
    assert "0 'w', 1 'x', 2 'y', 3 'z'; column 'label': 0 'a', 1 'b'" in capsys.readouterr().err
