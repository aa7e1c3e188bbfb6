"""DCLM's game: a model a treatment and seed, decontaminated, resumed in its place, no winner inside the errors."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from datasets import Dataset, load_dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from hf_ext import PretrainingTrainer
from hf_ext.cli import main
from hf_ext.recipes.dclm.train import RECIPE
from hf_ext.recipes.files import read_settings
from hf_ext.rounds.game_report import GameReport, TreatmentResult
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.pages import article, pages
from tests.tiny import tiny_sentences, tiny_tokenizer
from tests.trainers.pretraining import TINY

# --- the report ------------------------------------------------------------------------------------------------------


def result(name: str, losses: list[list[float]], cores: list[float] | None = None) -> TreatmentResult:
    cores = cores or []
    return TreatmentResult(name, 10, 1000, 1.5, losses, cores, [0.01] * len(cores))


def losses_of(shift: float, spread: float, seed: int) -> list[list[float]]:
    """Three seeds of 40 sequences, whose differences to those of shift 0 spread by seed and by sequence."""
    rng = np.random.default_rng(seed)
    by_sequence = np.random.default_rng(0).normal(3, 1, 40)
    noise = rng.normal(0, spread, (3, 1)) + rng.normal(0, spread, (1, 40))
    return (by_sequence + shift + noise).tolist()


def test_the_error_of_a_difference_is_that_of_seeds_and_of_sequences() -> None:
    first, second = result("a", losses_of(0.1, 0.05, 1)), result("b", losses_of(0, 0.05, 2))
    mean, width = GameReport([first, second], "", {}).difference("loss", first, second)
    differences = np.subtract(first.losses, second.losses)
    seeds, sequences = differences.mean(1), differences.mean(0)
    of_seeds = scipy.stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
    of_sequences = scipy.stats.ttest_1samp(sequences, 0).confidence_interval(0.95)
    expected = math.hypot(*((interval.high - interval.low) / 2 for interval in (of_seeds, of_sequences)))
    assert mean == pytest.approx(differences.mean())
    assert width == pytest.approx(expected)


def test_the_error_of_core_is_that_of_seeds_and_of_rows_and_is_wider_among_more_treatments() -> None:
    cores = [[0.1, 0.12, 0.11], [0.05, 0.08, 0.05], [0.02, 0.02, 0.05]]
    results = [result(name, losses_of(0, 0.1, 3), values) for name, values in zip("abc", cores, strict=True)]
    mean, width = GameReport(results, "core16_v2", {}).difference("core", results[0], results[1])
    differences = np.subtract(cores[0], cores[1])
    level = 1 - 0.05 / 2 / 2  # two-sided, and one of two comparisons
    of_seeds = scipy.stats.t.ppf(level, 2) * stdev(differences) / math.sqrt(3)
    of_rows = scipy.stats.norm.ppf(level) * math.hypot(0.01, 0.01)
    assert (mean, width) == pytest.approx((differences.mean(), math.hypot(of_seeds, of_rows)))


@pytest.mark.parametrize(("shift", "wins"), [(1.0, True), (0.001, False)])
def test_the_best_wins_only_beyond_the_error(shift: float, wins: bool, tmp_path: Path) -> None:
    results = [result("bad", losses_of(shift, 0.03, 1)), result("good", losses_of(0, 0.03, 2))]
    report = GameReport(results, "", {"tokens": "1,000"})
    best, rival = report.winner("loss")
    assert (best, rival) == ("good", None) if wins else rival is not None
    assert ("`good` wins" if wins else "no winner") in report.to_markdown()
    report.save(tmp_path)
    assert GameReport.load(tmp_path) == report
    assert (tmp_path / "game_report.png").is_file()


def test_treatments_of_no_difference_have_a_winner_in_one_game_of_twenty_at_most() -> None:
    games = [
        GameReport([result(name, losses_of(0, 0.05, 10 * i + j)) for j, name in enumerate("abcd")], "", {})
        for i in range(200)
    ]
    assert sum(report.winner("loss")[1] is None for report in games) <= 16


# --- the game --------------------------------------------------------------------------------------------------------

WORDS = [
    *(
        "--sequence_length",
        "32",
        "--per_device_train_batch_size",
        "4",
        "--sequences_per_step",
        "4",
        "--max_steps",
        "3",
    ),
    *("--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true", "--warmup_steps", "1", "--seeds", "2"),
    *("--architecture", json.dumps(TINY), "--save_strategy", "steps", "--save_steps", "1", "--report_to", "none"),
    *("--dataset_name", "web.jsonl", "--eval_dataset_name", "held_out.jsonl", "--tokenizer_name", "tokenizer"),
]
TREATMENTS = {"raw": [], "unique": ["ExactDeduplication"], "mixed": {"mix": {"web.jsonl": 0.5, "wiki.jsonl": 0.5}}}
PAIR = ("--treatments", json.dumps({"raw": [], "unique": ["ExactDeduplication"]}))


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents with a copy of one and a row of a task among them, held-out ones, a tokenizer and tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {label: small_rows(label, 5) for label in ("copa", "lambada_openai")}
    write_tasks(tmp_path / "tasks", rows)
    leak = max((row["query"] for row in rows["copa"]), key=lambda text: len(text.split()))
    assert len(leak.split()) >= 8
    texts = tiny_sentences(60, seed=5)
    Dataset.from_dict({"text": [*texts, texts[7], f"Before. {leak} After."]}).to_json("web.jsonl")
    Dataset.from_dict({"text": tiny_sentences(40, seed=6)}).to_json("wiki.jsonl")
    Dataset.from_dict({"text": tiny_sentences(20, seed=7)}).to_json("held_out.jsonl")
    tiny_tokenizer().save_pretrained("tokenizer")
    return tmp_path


class Stopped(Exception):
    """What stops a game in a test: no error of the input."""


def play(*more: str) -> int:
    try:
        return RECIPE.run(["--config", "dclm/nano", *WORDS, *more])
    except SystemExit as stop:
        return int(stop.code)


def report_in(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "game_report.json").read_text())


def test_a_game_stopped_anywhere_goes_on_in_the_right_treatment_to_the_same_report(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    core = ("--core_data", "tasks", "--core_max_rows", "3", "--treatments", json.dumps(TREATMENTS))
    assert play("--output_dir", "whole", *core) == 0
    printed = capsys.readouterr().out
    whole = report_in("whole")
    assert [entry["name"] for entry in whole["treatments"]] == list(TREATMENTS)
    assert "core2_v2" in printed
    assert re.search("wins|no winner", printed)
    raw, unique, _ = whole["treatments"]
    assert (raw["num_documents"], unique["num_documents"]) == (61, 60)  # without the task's row; without the copy too

    steps, training_step = [0], PretrainingTrainer.training_step

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 9:  # the last step of the first model of the second treatment
            raise Stopped
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PretrainingTrainer, "training_step", stopping)
    with pytest.raises(Stopped):
        play("--output_dir", "cut", *core)
    monkeypatch.setattr(PretrainingTrainer, "training_step", training_step)
    assert not Path("cut/unique-seed-124.json").exists()
    times = {path: path.stat().st_mtime_ns for path in Path("cut").glob("raw-seed-*.json")}
    assert len(times) == 2
    assert play("--output_dir", "cut", *core) == 0
    assert report_in("cut") == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times

    held_out = load_dataset(str(documents / "whole/held-out/shards"), split="train")
    ids = torch.tensor(held_out["input_ids"][:])
    model = AutoModelForCausalLM.from_pretrained("whole/unique/seed-125")
    with torch.no_grad():
        loss = cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    assert fmean(unique["losses"][1]) == pytest.approx(loss.item(), abs=1e-5)

    assert play("--output_dir", "cut", *core, "--learning_rate", "0.5") == 2
    assert "learning_rate was 0.003, is 0.5" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_game_killed_thrice_ends_in_the_report_of_an_undisturbed_one(documents: Path) -> None:
    core = ("--core_data", "tasks", "--core_max_rows", "3", "--treatments", json.dumps(TREATMENTS))
    assert play("--output_dir", "whole", *core) == 0
    moments = (  # documents are curated, a model is in training, CORE of it is measured
        ("unique/documents", "unique-seed-124.json"),
        ("unique/seed-124/checkpoint-1/hf_ext_checkpoint.json", "unique-seed-124.json"),
        ("mixed/seed-124/core", "mixed-seed-124.json"),
    )
    command = [sys.executable, "-m", "hf_ext", "train", "dclm", "--config", "dclm/nano", *WORDS, *core]
    for reached, unreached in moments:
        with Path("log.txt").open("ab") as log:
            process = subprocess.Popen([*command, "--output_dir", "cut"], stdout=log, stderr=log)
        while not Path("cut", reached).exists():
            assert process.poll() is None, Path("log.txt").read_text()[-3000:]
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not Path("cut", unreached).exists(), "it was killed too late to show anything"
    times = {path: path.stat().st_mtime_ns for path in Path("cut").glob("*-seed-*.json")}
    assert len(times) == 4
    assert play("--output_dir", "cut", *core) == 0
    report = report_in("cut")
    assert report == report_in("whole")
    assert play("--output_dir", "cut", *core, "--seeds", "3") == 0  # a finished game goes on with more models
    assert [entry["losses"][:2] for entry in report_in("cut")["treatments"]] == [
        entry["losses"] for entry in report["treatments"]
    ]
    assert [len(entry["losses"]) for entry in report_in("cut")["treatments"]] == [3, 3, 3]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_treatments_of_the_file_leave_what_they_say_with_a_classifier_that_one_command_trains(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Dataset.from_dict({"text": [*pages(30).values()]}).to_json("web.jsonl")
    Dataset.from_dict({"text": [article(seed) for seed in range(100, 110)]}).to_json("good.jsonl")
    assert play("--output_dir", "out") == 2
    assert "QualityShare: quality/classifier.safetensors is missing" in capsys.readouterr().err
    words = ["data", "classify", "--positives", "good.jsonl", "--negatives", "web.jsonl", "--save", "quality"]
    assert main(words) == 0

    def stopping(*args: Any, **kwargs: Any) -> Any:
        raise Stopped

    monkeypatch.setattr(PretrainingTrainer, "training_step", stopping)  # all documents are packed by then
    with pytest.raises(Stopped):
        play("--output_dir", "out")
    names = list(read_settings("dclm/nano")[1]["treatments"])
    counts = [json.loads(Path("out", name, "shards/packed.json").read_text())["num_documents"] for name in names]
    assert names == ["raw", "heuristics", "deduplicated", "classifier"]
    assert counts[:3] == [37, 34, 30]  # 3 are no articles, and 4 are there twice
    assert 10 <= counts[3] <= 20


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--treatments", '{"raw": []}'], "two names or more"),
        (["--treatments", '{"raw": [], "b": ["GopherQualty"]}'], "there is no step 'GopherQualty'; did you mean"),
        (["--treatments", '{"raw": [], "../b": []}'], "names a folder"),
        (["--treatments", '{"raw": [], "b": {"mixture": 1}}'], "unknown key 'mixture'"),
        (["--treatments", "{"], "no JSON"),
        (["--seeds", "1"], "seeds must be a whole number, at least 2"),
        (["--core_max_rows", "3"], "core_max_rows without core_data"),
        (["--eval_dataset_name", "none.jsonl"], "no such file"),
        (["--dataset_name", "none.jsonl"], "no such file"),
        (["--plan"], "hf-ext train pretraining has it"),
        (["--eval_dataset_name", "one.jsonl"], "held-out: The set has"),
        (["--treatments", '{"raw": [], "few": [{"GopherQuality": {"min_words": 1000}}]}'], "few: dataset"),
    ],
)
def test_what_cannot_be_played_is_one_line_and_status_2(
    more: list[str], words: str, documents: Path, capsys: pytest.CaptureFixture
) -> None:
    Dataset.from_dict({"text": ["One document."]}).to_json("one.jsonl")
    assert play(*PAIR, *more, "--output_dir", "out") == 2
    assert not Path("out/raw/seed-124").exists(), "a model was trained before it was found"
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
