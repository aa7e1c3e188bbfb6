"""`hf-ext eval select`: what it prints and writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_ext.cli import main


@pytest.fixture
def run(work):
    """The working folder with `run/checkpoint-5`, the original, and `run/checkpoint-10`, a spoilt copy."""
    shutil.copytree(work / "original", work / "run" / "checkpoint-5")
    shutil.copytree(work / "original", work / "run" / "checkpoint-10")
    model = AutoModelForCausalLM.from_pretrained(work / "original")
    with torch.no_grad():
        model.model.norm.weight.mul_(-3)
    model.save_pretrained(work / "run" / "checkpoint-10")
    return work


SELECT = ["eval", "select", "--items", "held_out.jsonl", "--device", "cpu"]


def test_the_best_checkpoint_is_printed_and_written(run, capsys):
    pattern = [*SELECT, "--candidate", "run/checkpoint-*", "--confidence", "0.9", "--output", "out"]
    assert main(pattern) == 0
    printed = capsys.readouterr().out
    assert "**checkpoint-5** is the best on these 12 items" in printed
    report = json.loads((run / "out" / "selection.json").read_text())
    assert [result["name"] for result in report["candidates"]] == ["checkpoint-5", "checkpoint-10"]
    assert report["settings"]["confidence"] == 0.9
    assert {path.suffix for path in (run / "out").glob("selection.*")} == {".json", ".md", ".svg", ".png"}
    lines = (run / "out" / "values.jsonl").read_text()
    assert main([*SELECT, "--candidate", "run/checkpoint-5", "run/checkpoint-10", "--output", "out", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["items_spent"] == report["items_spent"]
    assert (run / "out" / "values.jsonl").read_text() == lines, "nothing is measured twice"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--candidate", "run/nothing-*"], "'run/nothing-*' matches nothing"),
        (["--candidate", "original", "original"], "'original' is given twice"),
        (["--candidate", "original", "./original/"], "'./original/' is given twice"),
        (["--candidate", "run"], "'run' is a run and no model: give its checkpoints, 'run/checkpoint-*'"),
        (["--candidate", "original", "--candidate", "nowhere"], "model 'nowhere' cannot be loaded"),
        (["--candidate", "original", "--output", "train.jsonl"], "'train.jsonl' is a file"),
        (["--candidate", "run/checkpoint-5", "original", "--output", "run"], "holds the --candidate"),
        (["--candidate", "run/checkpoint-5", "original", "--budget", "1"], "does not pay one item"),
        (["--candidate", "original", "--device", "none"], "device 'none' cannot be used"),
    ],
)
def test_wrong_arguments_are_status_2(run, capsys, arguments, words):
    assert main([*SELECT, *arguments]) == 2
    error = capsys.readouterr().err
    message = error[error.index("hf-ext eval select: error:") :]
    assert words in message
    assert message.count("\n") == 1


def test_a_confidence_out_of_bounds_is_refused_by_the_parser(run, capsys):
    with pytest.raises(SystemExit):
        main([*SELECT, "--candidate", "original", "--confidence", "1"])
    assert "must be a number above 0 and below 1" in capsys.readouterr().err


def test_checkpoints_that_a_run_left_half_written_are_left_out_with_a_warning(run, capsys, caplog):
    half = run / "run" / "checkpoint-15"
    shutil.copytree(run / "original", half)
    weights = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (run / "run" / "checkpoint-20").mkdir()
    assert main([*SELECT, "--candidate", "run/checkpoint-*"]) == 0
    assert "**checkpoint-5** is the best on these 12 items" in capsys.readouterr().out
    assert "Not among the candidates: " in caplog.text
    assert "checkpoint-20 holds no weights" in caplog.text
    assert main([*SELECT, "--candidate", "run/checkpoint-15", "run/checkpoint-20"]) == 2
    assert "no --candidate is whole" in capsys.readouterr().err
