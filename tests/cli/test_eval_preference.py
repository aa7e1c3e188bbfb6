"""`hf-ext eval preference`: the table, the files, where the reference comes from, and what it refuses."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.cli import main
from hf_ext.evaluation.preference import likelihood_report
from tests.tiny import tiny_model, tiny_sentences

EVAL = ["eval", "preference", "--dataset", "pairs.jsonl", "--device", "cpu", "--model", "tuned"]


@pytest.fixture
def tuned(work):
    """Beside the working folder: `tuned`, another model with the same tokenizer, and `pairs.jsonl`."""
    tokenizer = AutoTokenizer.from_pretrained(work / "original")
    tiny_model(tokenizer, seed=9).save_pretrained(work / "tuned")
    tokenizer.save_pretrained(work / "tuned")
    texts = {name: tiny_sentences(8, seed=i, max_sentences=2) for i, name in enumerate(("chosen", "rejected"))}
    prompts = [f"Row {i}? " for i in range(8)]
    Dataset.from_dict({"prompt": prompts, **texts, "question": [i // 2 for i in range(8)]}).to_json("pairs.jsonl")
    return work


def expected(work, **settings):
    """The report of the same models by a call."""
    tokenizer = AutoTokenizer.from_pretrained(work / "original")
    models = (AutoModelForCausalLM.from_pretrained(work / name) for name in ("tuned", "original"))
    return likelihood_report(*models, Dataset.from_json("pairs.jsonl"), tokenizer, show_progress=False, **settings)


def test_the_table_is_printed_and_nothing_is_written_unless_asked(tuned, capsys):
    before = {path.name for path in tuned.iterdir()}
    assert main([*EVAL, "--reference", "original", "--beta", "0.5", "--groups", "question"]) == 0
    assert capsys.readouterr().out.strip() == expected(tuned, beta=0.5, groups="question").to_markdown().strip()
    assert {path.name for path in tuned.iterdir()} - before <= {"cache"}


def test_json_files_and_plot(tuned, capsys):
    command = [*EVAL, "--reference", "original", "--output", "report", "--json", "--plot", "--length_normalized"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tuned / "report" / "preference.json").read_text())
    assert report == expected(tuned, length_normalized=True).to_dict()
    assert {path.suffix for path in (tuned / "report").iterdir()} == {".json", ".md", ".jsonl", ".svg", ".png"}


def test_without_plot_none_is_drawn(tuned, capsys):
    assert main([*EVAL, "--reference", "original", "--output", "report"]) == 0
    assert {path.suffix for path in (tuned / "report").iterdir()} == {".json", ".md", ".jsonl"}
    assert "report: report" in capsys.readouterr().out


def test_an_adapter_is_its_own_reference(tuned, capsys):
    base = AutoModelForCausalLM.from_pretrained(tuned / "original")
    adapter = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tuned / "adapter")
    command = ["eval", "preference", "--dataset", "pairs.jsonl", "--device", "cpu", "--model", "adapter", "--json"]
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*command, "--reference", "original"]) == 0
    explicit = json.loads(capsys.readouterr().out)
    assert alone["measures"] == explicit["measures"]
    assert alone["measures"]["chosen_delta"]["mean"] != 0
    assert alone["settings"]["reference"] != explicit["settings"]["reference"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no PeftModel", "reference"]),
        (["--reference", "nowhere"], ["model 'nowhere' cannot be loaded"]),
        (["--reference", "original", "--groups", "id"], ["groups='id'", "question"]),
        (["--reference", "original", "--plot"], ["--plot needs --output"]),
        (["--reference", "original", "--max-length", "2"], ["Raise max_length"]),
        (["--reference", "original", "--dataset", "train.jsonl"], ["'chosen'"]),
        (["--reference", "original", "--dataset", "none.jsonl"], ["none.jsonl", "no such file"]),
    ],
)
def test_wrong_arguments_are_status_2_and_one_line(tuned, capsys, arguments, words):
    assert main([*EVAL, *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext eval preference: error:") :]
    assert all(word in message for word in words), message
