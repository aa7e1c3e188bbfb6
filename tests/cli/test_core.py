"""`hf-ext eval core`: the table, the files, another model beside it, the export, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

from hf_ext.cli import main
from hf_ext.evaluation.core.evaluate import evaluate_core
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_model, tiny_tokenizer

CORE = ["eval", "core", "--data", "core_eval", "--device", "cpu", "--output", "report"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A model, the same with another head, and tasks of three types, in the current directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    for name, seed in (("original", 0), ("other", 1)):
        tiny_model(tokenizer, seed=seed).save_pretrained(name)
        tokenizer.save_pretrained(name)
    write_tasks(
        tmp_path / "core_eval", {label: small_rows(label, 8) for label in ("copa", "winograd", "lambada_openai")}
    )
    return tmp_path


def test_the_report_is_that_of_python_and_is_written(work, capsys):
    assert main([*CORE, "--model", "original", "--max-rows", "5", "--against", "other"]) == 0
    model, other = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in ("original", "other"))
    tokenizer = AutoTokenizer.from_pretrained("original")
    report = evaluate_core(model, tokenizer, "core_eval", max_rows=5, against=other, show_progress=False)
    written = json.loads((work / "report" / "core.json").read_text())
    assert written["scores"] == report.to_dict()["scores"]
    assert written["tasks"] == report.to_dict()["tasks"]
    assert written["differences"] == report.to_dict()["differences"]
    assert len((work / "report" / "core_rows.jsonl").read_text().splitlines()) == 15
    out = capsys.readouterr().out
    assert all(word in out for word in ("core3_v2", "core3_v1", "copa", "report: report"))


def test_a_second_run_reads_the_rows_of_the_first_and_measures_the_new_ones(work, capsys, monkeypatch):
    assert main([*CORE, "--model", "original", "--max-rows", "3", "--tasks", "copa"]) == 0
    lines = (work / "report" / "records" / "copa" / "rows-00000.jsonl").read_text()
    assert main([*CORE, "--model", "original", "--tasks", "copa", "winograd", "--json"]) == 0
    assert (work / "report" / "records" / "copa" / "rows-00000.jsonl").read_text().startswith(lines)
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :])["tasks"][1]["label"] in ("copa", "winograd")


def test_the_other_model_is_read_by_its_own_tokenizer(work):
    tokenizer = tiny_tokenizer()
    # the same model under another order of its tokens: read by the first one's tokenizer it would be another model
    number = len(tokenizer)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {token: number - 1 - place for token, place in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = number - 1 - token["id"]
    tokenizer.save_pretrained("turned")
    (work / "turned" / "tokenizer.json").write_text(json.dumps(content))
    model = AutoModelForCausalLM.from_pretrained("original", dtype=torch.float32)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.data.flip(0)))
    model.tie_weights()
    model.save_pretrained("turned")
    assert main([*CORE, "--model", "original", "--against", "turned"]) == 0
    report = json.loads((work / "report" / "core.json").read_text())
    assert report["differences"]["v2"] == {"mean": 0, "half_width": 0}


def test_an_encoder_decoder_is_refused_where_transformers_would_load_its_decoder(work, capsys):
    config = BartConfig(vocab_size=400, d_model=16, encoder_layers=1, decoder_layers=1)
    BartForConditionalGeneration(config).save_pretrained("bart")
    tiny_tokenizer().save_pretrained("bart")
    assert main([*CORE, "--model", "bart"]) == 2
    assert "model 'bart' has an encoder and a decoder: name a causal language model" in capsys.readouterr().err


def test_an_adapter_is_measured_against_its_base(work):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained("original", dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
    assert main([*CORE, "--model", "adapter", "--against", "original", "--tasks", "copa"]) == 0
    report = json.loads((work / "report" / "core.json").read_text())
    assert report["differences"]["v2"]["mean"] == 0  # a fresh adapter changes nothing


def test_tasks_are_exported_without_a_model(work, capsys):
    assert main(["eval", "core", "--data", "core_eval", "--export", "tasks", "--max-rows", "2"]) == 0
    assert {path.suffix for path in (work / "tasks").iterdir()} == {".yaml", ".jsonl"}
    assert "lm_eval --model hf" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --model and --output"),
        (["--model", "nowhere"], "model 'nowhere' cannot be loaded"),
        (["--model", "original", "--tasks", "core"], "3 of CORE's 22 tasks"),
        (["--model", "original", "--tasks", "nothing"], "'nothing' is no task"),
        (["--model", "original", "--data", "nowhere"], "is no folder"),
        (["--model", "original", "--output", "core_eval/tasks.json"], "is a file"),
        (["--model", "original", "--export", "tasks"], "leave out --model, --output"),
    ],
)
def test_wrong_arguments_are_status_2(work, capsys, arguments, words):
    assert main([*CORE, *arguments]) == 2
    message = capsys.readouterr().err
    assert message[message.index("hf-ext eval core: error:") :].count("\n") == 1
    assert words in message


def test_a_bad_row_is_named_before_a_model_is_loaded(work, capsys):
    rows = small_rows("copa", 3)
    rows[2]["gold"] = 9
    write_tasks(work / "core_eval", {"copa": rows})
    assert main([*CORE, "--model", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in ("copa", "row 2", "gold"))
