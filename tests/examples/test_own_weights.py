"""The example of own weights: short, trains, and its rules do what they say."""

from __future__ import annotations

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from datasets import load_dataset

from hf_ext import WeightedSFTConfig

FILE = Path(__file__).parents[2] / "examples" / "own_weights.py"


@pytest.fixture
def example():
    spec = spec_from_file_location("own_weights", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_under_forty_lines():
    assert len(FILE.read_text().splitlines()) < 40


def test_it_runs_as_its_docstring_says(work, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["own_weights.py", "original", "train.jsonl", "out"])
    runpy.run_path(str(FILE), run_name="__main__")
    assert (work / "out" / "model.safetensors").is_file()


def test_the_end_counts_twice_its_row(work, example):
    rows = load_dataset("json", data_files="train.jsonl", split="train").map(example.short_answers_first, batched=True)
    args = WeightedSFTConfig("out", report_to="none", bf16=False, disable_tqdm=True)
    trainer = example.EndCountsDouble("original", args, train_dataset=rows)
    row = trainer.train_dataset[2]
    base = 1 / (1 + len(rows[2]["completion"]) / 100)
    expected = [base] * (len(row["input_ids"]) - 5) + [2 * base] * 5
    assert row["weight"] == pytest.approx(expected)
    trainer.train()
