"""`hf-ext eval forgetting`: the table, the files, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_ext.cli import main

EVAL = shlex.split("eval forgetting --original original --target held_out.jsonl --output report --device cpu")


@pytest.fixture
def tuned(work):
    """Beside the working folder: `same`, a copy of the original, and `uniform`, whose logits are all equal."""
    model = AutoModelForCausalLM.from_pretrained(work / "original")
    model.save_pretrained(work / "same")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    model.save_pretrained(work / "uniform")
    return work


def test_runs_are_measured_and_written(tuned, capsys):
    runs = ["--new", "A=same", "--new", "uniform", "--num-tokens", "200", "--general-text", "general.jsonl"]
    assert main([*EVAL, *runs]) == 0
    report = json.loads((tuned / "report" / "forgetting.json").read_text())
    same, uniform = report["runs"]
    vocabulary = AutoModelForCausalLM.from_pretrained(tuned / "original").config.vocab_size
    assert [same["name"], uniform["name"]] == ["A", "uniform"]
    assert same["kl_original_to_new"]["mean"] == pytest.approx(0, abs=1e-7)
    assert same["target_change"]["mean"] == 0
    assert uniform["target_loss"]["mean"] == pytest.approx(math.log(vocabulary), rel=1e-5)
    assert uniform["general_loss"]["mean"] == pytest.approx(math.log(vocabulary), rel=1e-5)
    assert uniform["kl_original_to_new"]["mean"] > 0.01
    out = capsys.readouterr().out
    assert (tuned / "report" / "forgetting.md").read_text().splitlines()[0] in out
    assert "| A |" in out
    assert {path.suffix for path in (tuned / "report").glob("forgetting.*")} == {".json", ".md", ".svg", ".png"}


def test_a_store_is_taken_in_its_own_dtype(tuned):
    sample = "data context-free --model original --num-tokens 50 --output store --dtype bfloat16 --device cpu"
    assert main(sample.split()) == 0
    assert main([*EVAL, "--new", "same", "--context-free", "store"]) == 0


def test_a_trained_adapter_is_measured_as_a_run(work):
    from tests.recipes.work import SMALL

    more = "--dataset_name train.jsonl --output_dir adapter --use_peft --report_to none --model_name_or_path"
    assert main(["train", "weighted_sft", *SMALL, *more.split(), str(work / "original")]) == 0
    assert main([*EVAL, "--new", "adapter"]) == 0
    report = json.loads((work / "report" / "forgetting.json").read_text())
    assert report["runs"][0]["target_change"]["mean"] < 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--new", "nowhere"], ["model 'nowhere' cannot be loaded"]),
        (["--new", "same", "--output", "train.jsonl"], ["--output 'train.jsonl' is a file"]),
        (["--new", "=same"], ["expected NAME=MODEL"]),
        (["--new", "same", "--new", "x/same"], ["already", "NAME=MODEL"]),
        (["--new", "same", "--context-free", "store", "--num-tokens", "5"], ["not both"]),
        (["--new", "same", "--context-free", "original"], ["no context-free store"]),
        (["--new", "same", "--groups", "hard", "--num-tokens", "5"], ["no column 'hard'"]),
        (["--new", "same", "--general-text", "train.jsonl", "--num-tokens", "5"], ["'text'"]),
        (["--new", "same", "--target", "none.jsonl"], ["none.jsonl", "no such file"]),
    ],
)
def test_wrong_arguments_are_status_2(tuned, capsys, arguments, words):
    assert main([*EVAL, *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext eval forgetting: error:") :]
    assert "context-free rows:" not in err, "sampled before it was refused"
    assert message.count("\n") == 1
    assert all(word in message for word in words)


def test_nothing_to_measure_is_status_2(tuned, capsys):
    assert main(["eval", "forgetting", "--original", "original", "--new", "same", "--output", "report"]) == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_json_is_the_report_that_is_written(tuned, capsys):
    assert main([*EVAL, "--new", "same", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tuned / "report" / "forgetting.json").read_text())


WISE_FT = shlex.split("eval wise-ft --original original --new uniform --device cpu")


def test_wise_ft_measures_the_models_between_and_saves_the_one_within_the_bound(tuned, capsys):
    measures = ["--num-tokens", "200", "--target", "held_out.jsonl", "--output", "report"]
    assert main([*WISE_FT, *measures, "--alpha", "0.9", "0.1", "0.5"]) == 0
    sweep = json.loads((tuned / "report" / "wise_ft.json").read_text())
    kl = [run["kl_original_to_new"]["mean"] for run in sweep["report"]["runs"]]
    assert sweep["alphas"] == [0.1, 0.5, 0.9]
    assert sweep["alpha"] is None
    assert sorted(kl) == kl
    bound = str((kl[1] + kl[2]) / 2)
    assert main([*WISE_FT, *measures, "--alpha", "0.9", "0.1", "0.5", "--max-kl", bound, "--save", "between"]) == 0
    alpha = json.loads((tuned / "report" / "wise_ft.json").read_text())["alpha"]
    assert f"Picked: alpha {alpha:g}" in capsys.readouterr().out
    start, end, between = (
        AutoModelForCausalLM.from_pretrained(tuned / name).model.norm.weight
        for name in ("original", "uniform", "between")
    )
    torch.testing.assert_close(between, (1 - alpha) * start + alpha * end)
    assert main(["eval", "forgetting", "--original", "original", "--new", "between", *measures]) == 0
    again = json.loads((tuned / "report" / "forgetting.json").read_text())["runs"][0]
    picked = json.loads((tuned / "report" / "wise_ft.json").read_text())["report"]["runs"]
    losses = {run["name"]: run["target_loss"]["mean"] for run in picked}
    assert again["target_loss"]["mean"] == pytest.approx(losses[f"alpha {alpha:g}"], abs=1e-6)


def test_wise_ft_saves_one_alpha_without_measuring(tuned, capsys):
    assert main([*WISE_FT, "--alpha", "0.25", "--save", "between"]) == 0
    assert capsys.readouterr().out == "model: between\n"
    assert main([*WISE_FT, "--alpha", "0.25", "--save", "between"]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main([*WISE_FT, "--alpha", "0.5", "--save", "between", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to measure"]),
        (["--target", "held_out.jsonl", "--save", "between"], ["--save writes one model"]),
        (["--target", "held_out.jsonl", "--max-kl", "0.1"], ["--max-kl", "--num-tokens"]),
        (["--num-tokens", "50"], ["--num-tokens needs --output"]),
        (["--alpha", "0.5", "--save", "original"], ["original", "--original"]),
        (["--num-tokens", "50", "--max-kl", "0", "--alpha", "1", "--output", "r", "--save", "b"], ["no alpha keeps"]),
    ],
)
def test_wrong_arguments_of_wise_ft_are_status_2(tuned, capsys, arguments, words):
    assert main([*WISE_FT, *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext eval wise-ft: error:") :]
    assert message.count("\n") == 1
    assert all(word in message for word in words)


GRID = """
train: {dataset: train.jsonl}
seeds: [1]
settings: {max_steps: 1, learning_rate: 1e-2, per_device_train_batch_size: 4, bf16: false, use_cpu: true}
runs:
  SFT:
  half: {learning_rate: 5e-3}
  between: {method: wise_ft, of: SFT, alpha: 0.5}
"""
SAMPLED = """
train: {dataset: train.jsonl}
context_free: {num_tokens: 100}
settings: {bf16: false, use_cpu: true}
runs: {anchored: {method: context_free}}
"""
COMPARE = [*EVAL, "--general-text", "general.jsonl", "--max-rows", "4", "--compare", "grid.yaml"]


@pytest.mark.timeout(1200)  # another process imports everything first, which takes minutes on a busy machine
def test_a_grid_is_compared_killed_and_gone_on_with_and_held_meanwhile(work, capsys):
    (work / "grid.yaml").write_text(GRID)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "hf_ext.cli", *COMPARE], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        records = work / "report" / "runs"
        deadline = time.monotonic() + 300
        while process.poll() is None and not list(records.glob("sft-*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
        assert main(COMPARE) == 2
        assert "is being written by process" in capsys.readouterr().err
        process.kill()
    (record,) = records.glob("sft-*.json")
    changed = record.stat().st_mtime_ns
    assert main(COMPARE) == 0
    assert record.stat().st_mtime_ns == changed
    out = capsys.readouterr().out
    assert all(f"| {name} |" in out for name in ("original", "SFT", "half", "between"))
    report = json.loads((work / "report" / "comparison.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["SFT", "half", "between"]
    assert {path.suffix for path in (work / "report").glob("comparison.*")} == {".json", ".md", ".svg", ".png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--new", "--compare"]),
        (["--compare", "grid.yaml", "--new", "original"], ["not both"]),
        (["--compare", "none.yaml"], ["none.yaml"]),
        (["--compare", "train.jsonl"], ["train.jsonl"]),
        (["--compare", "typo.yaml"], ["typo.yaml", "run 'A'", "'flow'"]),
        (["--compare", "sampled.yaml", "--seed", "0", "--num-tokens", "50"], ["seed 0"]),
    ],
)
def test_wrong_grids_are_status_2(work, capsys, arguments, words):
    (work / "grid.yaml").write_text(GRID)
    (work / "sampled.yaml").write_text(SAMPLED)
    (work / "typo.yaml").write_text("runs: {A: {method: flw}}")
    assert main([*EVAL, *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext eval forgetting: error:") :]
    assert message.count("\n") == 1
    assert all(word in message for word in words)
