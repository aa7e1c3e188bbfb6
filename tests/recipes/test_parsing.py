"""Configs: names resolve inside the package first, the command line wins, nothing is ignored."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import Trainer, TrainingArguments

import hf_ext.recipes
from hf_ext.recipes.files import find_recipe
from hf_ext.recipes.flow.train import RECIPE, make_parser
from hf_ext.recipes.launch import check_optimizer_words, check_scheduler
from tests.recipes.work import SMALL


def parse(*arguments):
    return make_parser().parse_args_and_config(["--use_cpu", "true", *arguments])


def error_of(capsys, *arguments):
    """Exit status and stderr of the recipe for arguments that are wrong."""
    try:
        status = RECIPE.run(["--use_cpu", "true", *arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


def test_a_mapping_that_is_no_json_is_shown_with_the_place_where_it_breaks_off(capsys):
    status, said = error_of(capsys, "--output_dir", "out", "--lr_scheduler_kwargs", '{"min_lr": 1e-6')
    assert status == 2
    assert """'{"min_lr": 1e-6' is no JSON: Expecting ',' delimiter at character 16""" in said


@pytest.mark.parametrize("flag", [["--config", "flow/gsm8k.yaml"], ["--config=flow/gsm8k"]])
def test_a_packaged_config_is_read_by_name(flag):
    script, training, model, _ = parse(*flag)
    assert (script.dataset_name, script.dataset_config) == ("openai/gsm8k", "main")
    assert (training.tau, training.learning_rate, training.seed) == ("median", 2e-5, 42)
    assert model.model_name_or_path == "HuggingFaceTB/SmolLM2-135M"


def test_the_command_line_wins_over_the_file_wherever_it_stands():
    for arguments in (
        ["--tau", "1.5", "--config", "flow/gsm8k.yaml"],
        ["--config", "flow/gsm8k.yaml", "--tau", "1.5"],
    ):
        assert parse(*arguments)[1].tau == "1.5"


def test_the_package_comes_before_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow").mkdir()
    for name in ("gsm8k.yaml", "mine.yaml"):
        (tmp_path / "flow" / name).write_text("tau: 9.0\n")
    assert find_recipe("flow/gsm8k.yaml") == Path(hf_ext.recipes.__path__[0], "flow", "gsm8k.yaml")
    assert parse("--config", "flow/gsm8k.yaml")[1].tau == "median"
    assert parse("--config", "flow/mine.yaml")[1].tau == "9.0"
    assert parse("--config", "./flow/gsm8k.yaml")[1].tau == "9.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1.0e-5\n", ["learning_rat", "did you mean", "learning_rate"]),
        ("taus: median\n", ["taus", "tau"]),
        ("- tau\n", ["mapping", "list"]),
        ("tau: [\n", ["no YAML file"]),
        ("tau: mean\n", ["tau must be 'median'"]),
        ("max_steps: many\n", ["max_steps", "many"]),
        ("normalize: rows\n", ["normalize", "rows"]),
        ("tau: 1.0\ntau: 2.0\n", ["line 2", "'tau' is given twice"]),
        ("model_init_kwargs: &a {b: *a}\n", ["line 1", "stands inside itself"]),
        ("model_init_kwargs: " + "[" * 3000 + "]" * 3000, ["nested too deeply"]),
        ("seed: 2024-13-40\n", ["line 1", "2024-13-40"]),
        ("seed: " + "9" * 5000, ["5,000 digits"]),
        ("5: x\n", ["key 5"]),
        ("env: {A: [1]}\n", ["env", "A", "list"]),
        ("env: [A]\n", ["env", "list"]),
        ("env: {'': x}\n", ["env", "no usable key"]),
    ],
)
def test_a_bad_config_is_one_line_and_status_2(tmp_path, capsys, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    status, err = error_of(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert status == 2
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert all(word in err for word in words)
    assert len([line for line in err.splitlines() if "error:" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning_rat", "1"], ["--learning_rat", "did you mean"]),
        (["--config", "flow/gsm8.yaml"], ["flow/gsm8.yaml", "did you mean", "flow/gsm8k"]),
        (["--config"], ["--config"]),
        (["--max_step", "3"], ["--max_step", "--max_steps"]),  # no abbreviation: a typo is no option
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(capsys, arguments, words):
    status, err = error_of(capsys, *arguments)
    assert status == 2
    assert "usage:" not in err
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--dataset_name rows.jsonl", ["no model given"]),
        ("--model_name_or_path nowhere --dataset_name train.jsonl", ["model 'nowhere' cannot be loaded"]),
        ("--model_name_or_path original", ["neither was given"]),
        ("--model_name_or_path original --dataset_name none.jsonl", ["none.jsonl", "no such file"]),
        ("--model_name_or_path original --dataset_name train.jsonl --dataset_train_split dev", ["dev", "['train']"]),
        ("--model_name_or_path original --dataset_name train.jsonl --eval_strategy epoch", ["eval_dataset_name"]),
        ("--model_name_or_path original --dataset_name train.jsonl --prompt_column prompt", ["completion_column"]),
        (
            "--model_name_or_path original --dataset_name train.jsonl --prompt_column ask --completion_column prompt",
            ["no column 'ask'", "'prompt'"],
        ),
        ("--model_name_or_path original --dataset_name bad.jsonl", ["row 1", "completion"]),
        ("--model_name_or_path original --dataset_name broken.jsonl", ["broken.jsonl", "cannot be loaded"]),
    ],
)
def test_what_a_user_gets_wrong_is_named_without_a_traceback(work, capsys, arguments, words):
    (work / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n')
    (work / "broken.jsonl").write_text('{"prompt": "a", "compl')
    status, err = error_of(capsys, "--bf16", "false", "--report_to", "none", "--output_dir", "out", *arguments.split())
    error = err[err.index("error:") :]
    assert status == 2
    assert "Traceback" not in err
    assert all(word in error for word in words)


def test_variables_of_a_file_are_set_and_lists_and_mappings_reach_their_config(tmp_path, monkeypatch):
    monkeypatch.setenv("FROM_A_FILE", "old")
    (tmp_path / "c.yaml").write_text(
        "env: {FROM_A_FILE: 3}\ndatasets: [{path: a}]\nmodel_init_kwargs: {dtype: auto}\n"
    )
    _, training, _, mixture = parse("--config", str(tmp_path / "c.yaml"))
    assert os.environ["FROM_A_FILE"] == "3"
    assert training.model_init_kwargs == {"dtype": "auto"}
    assert mixture.datasets[0].path == "a"


def test_the_traceback_is_there_when_asked_for(monkeypatch):
    monkeypatch.setenv("HF_EXT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no recipe"):
        RECIPE.run(["--config", "nothing.yaml"])


def test_help_shows_the_method_s_own_options_and_the_config(capsys):
    with pytest.raises(SystemExit) as stop:
        RECIPE.run(["--help"], prog="hf-ext train flow")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(name in text for name in ("--tau", "--learning_rate", "--prompt_column", "--lora_r", "--config FILE"))


NESTED = """
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-6}
model_init_kwargs: {a: {b: [2E2, text]}}
learning_rate: '1e-4'
max_steps: 1_000
"""


def test_numbers_inside_of_mappings_and_lists_are_numbers(tmp_path):
    from hf_ext.recipes.infopo.train import make_parser as infopo_parser
    from hf_ext.recipes.rare.train import make_parser as rare_parser

    def parsed(make, text):
        (tmp_path / "c.yaml").write_text(text)
        command = ["--use_cpu", "true", "--bf16", "false", "--config", str(tmp_path / "c.yaml")]
        return make().parse_args_and_config(command)[1]

    training = parsed(make_parser, NESTED)
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert training.model_init_kwargs == {"a": {"b": [200.0, "text"]}}
    assert (training.learning_rate, training.max_steps) == (1e-4, 1000)
    weights = parsed(infopo_parser, "loss_type: [infopo, sft]\nloss_weights: ['1', 1e-1]\n").loss_weights
    assert weights == [1.0, 0.1]
    assert all(isinstance(weight, float) for weight in weights)
    retriever = parsed(rare_parser, "learning_rate_mapping: {a: 1e-4, b: '2e-4'}\nprompts: {query: 'Q: '}\n")
    assert retriever.learning_rate_mapping == {"a": 1e-4, "b": 2e-4}
    assert retriever.prompts == {"query": "Q: "}


@pytest.mark.parametrize(
    ("kind", "keywords", "problem"),
    [
        ("cosine", {"num_cyclse": 1}, "unexpected keyword argument 'num_cyclse'"),
        ("cosine", {"num_cycles": "half"}, "could not convert"),
        ("cosine_with_min_lr", {}, "min_lr or min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": "1e-6"}, "'str'"),
        ("constant_with_warmup", {"num_cycles": 1}, "has no effect with lr_scheduler_type='constant_with_warmup'"),
    ],
)
def test_keywords_of_a_scheduler_are_tried_before_anything_is_loaded(kind, keywords, problem):
    settings = SimpleNamespace(lr_scheduler_type=kind, lr_scheduler_kwargs=keywords, learning_rate=1e-4)
    with pytest.raises(ValueError, match=f"^lr_scheduler_kwargs=.*{problem}"):
        check_scheduler(settings)


@pytest.mark.parametrize("text", ["betas=(0.9,0.99)", "eps", "eps=1e-6,", "a=b=c"])
def test_words_for_an_optimizer_that_the_host_cannot_split_are_refused(text, tmp_path):
    def host(words):
        Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim_args=words, use_cpu=True))

    with pytest.raises(ValueError, match="values to unpack"):
        host(text)
    with pytest.raises(ValueError, match=r"^optim_args=.* must be NAME=VALUE"):
        check_optimizer_words(SimpleNamespace(optim_args=text))
    for good in (None, "", "eps=1e-6", "beta1=0.8, beta2 = 0.9"):
        check_optimizer_words(SimpleNamespace(optim_args=good))
        host(good)


def test_every_scheduler_that_needs_no_keywords_passes():
    for kind in ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
                 "inverse_sqrt", "reduce_lr_on_plateau", "greedy"):  # fmt: skip
        check_scheduler(SimpleNamespace(lr_scheduler_type=kind, lr_scheduler_kwargs=None, learning_rate=1e-4))


def test_a_keyword_that_the_model_does_not_take_is_said_to_be_the_setting_s(work, capsys):
    (work / "c.yaml").write_text("model_init_kwargs: {attn_implementatoin: eager}\n")
    arguments = [*SMALL, "--dataset_name", "train.jsonl", "--output_dir", "out", "--config", "c.yaml"]
    status, err = error_of(capsys, *arguments)
    assert status == 2
    assert "error: model_init_kwargs has a key 'attn_implementatoin' that nothing takes" in err
