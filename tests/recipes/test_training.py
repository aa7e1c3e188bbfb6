"""Every recipe trains, saves a stock folder, resumes and reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_ext.data.curation.packing import pack
from hf_ext.moe.lora import LoraMixture
from hf_ext.recipes.files import training_recipes
from tests.recipes.work import SMALL
from tests.tiny import tiny_text_dataset, tiny_tokenizer
from tests.trainers.pretraining import TINY

# A game makes several models, and none in `output_dir` itself: it is played in test_dclm.py.
RECIPES = [name for name, method in training_recipes().items() if method.name != "dclm"]
ONE_BATCH = ["--gradient_accumulation_steps", "1"]
DATA = {
    "flow/gsm8k.yaml": ["--dataset_name", "gsm8k.jsonl"],
    "flow/metamathqa_gemma2_2b.yaml": ["--dataset_name", "metamath.jsonl", *ONE_BATCH],
    "context_free/gsm8k.yaml": ["--dataset_name", "gsm8k.jsonl", "--context_free_num_tokens", "300"],
    "context_free/metamathqa_olmo_1b.yaml": [
        *("--dataset_name", "metamath.jsonl", "--context_free_num_tokens", "300", *ONE_BATCH),
        *("--context_free_max_new_tokens", "16", "--context_free_start", "bos=0.5", "chat=0.5"),
        *("--context_free_top_up", "true"),
    ],
    "context_free/medreason_r1_distill_llama_8b.yaml": [
        *("--dataset_name", "medreason.jsonl", "--context_free_num_tokens", "300", *ONE_BATCH, "--dtype", "float32"),
    ],
    "weighted_sft/example.yaml": ["--dataset_name", "weighted.jsonl"],
    "infopo/gsm8k_pairs.yaml": ["--dataset_name", "pairs.jsonl"],
    "infopo/hh_harmless.yaml": ["--dataset_name", "dialogues.jsonl", *ONE_BATCH],
    "infopo/ultrafeedback_llama3_8b.yaml": ["--dataset_name", "ultrafeedback.jsonl", *ONE_BATCH],
    "infopo/ultrafeedback_mistral_7b.yaml": ["--dataset_name", "ultrafeedback.jsonl", *ONE_BATCH],
    "infopo/unpaired.yaml": ["--dataset_name", "feedback.jsonl"],
    "infopo/online_gsm8k.yaml": [
        *("--dataset_name", "gsm8k.jsonl", "--verifier", "tests.recipes.verifiers:even", "--rounds", "2", *ONE_BATCH),
        *("--questions_per_round", "6", "--answers_per_question", "4", "--max_new_tokens", "12", "--stop", "a", "e"),
    ],
    "moe_em/minilm_banking77.yaml": [
        *("--model_name_or_path", "encoder", "--dataset_name", "intents", "--num_experts", "2", "--ridge", "0.01"),
    ],
    "moe_em/minilm_civil_comments.yaml": ["--model_name_or_path", "encoder", "--dataset_name", "comments.jsonl"],
    "moe_lora/smollm2_dolly.yaml": [
        *("--dataset_name", "dolly.jsonl", "--rounds", "1", "--num_experts", "2", "--lora_r", "2", *ONE_BATCH),
    ],
    "mixture/maths_web.yaml": [
        *("--datasets", "train.jsonl", "train.jsonl", "--target_dataset_name", "held_out.jsonl", *ONE_BATCH),
        *("--target_dataset_split", "train", "--reward_every", "1", "--target_rows", "4"),
    ],
    "rare/minilm_beir.yaml": ["--model_name_or_path", "encoder", "--dataset_name", "beir"],
    "rare/smollm2_nq.yaml": [
        *(
            "--model_name_or_path",
            "encoder",
            "--dataset_name",
            "retrieval.jsonl",
            "--text_columns",
            "query",
            "positive",
        ),
        *("--max_query_tokens", "200"),
    ],
    "rare/e5_mistral.yaml": [
        *("--model_name_or_path", "encoder", "--dtype", "float32", "--attn_implementation", "eager"),
        *("--max_query_tokens", "200", "--max_document_tokens", "64", "--gradient_checkpointing", "false"),
        *("--sources", '{"a": {"path": "beir"}, "b": {"path": "retrieval.jsonl", "columns": ["query", "positive"]}}'),
        *("--instruction", '{"a": "Find a", "b": "Find b"}'),
    ],
}
RETRIEVERS = ("rare",)
MIXTURES = ("moe_em",)
OF_ADAPTERS = ("moe_lora",)  # several beside each other, which hf-ext opens together
FIXED = ["--select_on_noisy_eval", "false", "--mode", "consensus", "--budget", "steps"]
PICTURES = ["--model_name_or_path", "vision", "--channel_epsilon", "2", "--dataloader_num_workers", "0", *FIXED]
DATA |= {
    "consensus/bert_agnews.yaml": [
        *("--model_name_or_path", "classifier", "--dataset_name", "intents", "--selection_folds", "2"),
        *("--mode", "consensus", "--budget", "epochs"),
    ],
    "consensus/minilm_banking77.yaml": [
        *("--model_name_or_path", "encoder", "--dataset_name", "intents", "--num_classes", "2"),
        *("--freeze_encoder", "false", *FIXED),
    ],
    "consensus/resnet18_cifar10.yaml": [*PICTURES, "--dataset_name", "pictures-label"],
    "consensus/vit_cifar100.yaml": [*PICTURES, "--dataset_name", "pictures-fine_label"],
    "weighted_classification/resnet18_cifar10.yaml": [
        *("--model_name_or_path", "vision", "--dataset_name", "pictures-label", "--dataloader_num_workers", "0"),
        *("--probe_epochs", "1"),
    ],
}
CLASSIFIERS = {
    "consensus/bert_agnews.yaml": ("classifier", AutoModelForSequenceClassification.from_pretrained),
    "consensus/minilm_banking77.yaml": ("encoder", lambda folder: SentenceTransformer(str(folder), device="cpu")),
    "consensus/resnet18_cifar10.yaml": ("vision", AutoModelForImageClassification.from_pretrained),
    "consensus/vit_cifar100.yaml": ("vision", AutoModelForImageClassification.from_pretrained),
    "weighted_classification/resnet18_cifar10.yaml": ("vision", AutoModelForImageClassification.from_pretrained),
}


FROM_SCRATCH = ("pretraining",)
SEQUENCES = ["--dataset_name", "shards", "--sequence_length", "32", "--sequences_per_step", "8"]
DATA |= {
    f"pretraining/{scale}.yaml": [*SEQUENCES, *([] if "nano" in scale else ["--architecture", json.dumps(TINY)])]
    for scale in ("nano_1x", "nano_2x", "400m_1x", "1b_1x", "3b_1x", "7b_1x", "7b_2x")
}


def run(name, *more):
    """Run a recipe in this process, small; returns its exit status."""
    method = training_recipes()[name]
    small = SMALL[2:] if method.name in FROM_SCRATCH else SMALL  # without the model to begin with
    recipe = import_module(method.recipe).RECIPE
    return recipe.run(["--config", name, *small, *DATA[name], "--output_dir", "out", *more])


@pytest.fixture
def weighted(work):
    """Rows with a `weight` column in `weighted.jsonl`, and with other datasets' columns in files of their names."""
    rows = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
    columns_of = {
        "metamath": ("query", "response"),
        "medreason": ("question", "reasoning"),
        "dolly": ("instruction", "response"),
    }
    for name, columns in columns_of.items():
        renamed = [dict(zip(columns, (row["prompt"], row["completion"]), strict=True)) for row in rows]
        (work / f"{name}.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    comments = [{"text": row["completion"], "toxicity": i % 5 / 4} for i, row in enumerate(rows)]
    (work / "comments.jsonl").write_text("\n".join(map(json.dumps, comments)))
    (work / "weighted.jsonl").write_text("\n".join(json.dumps({**row, "weight": i % 3}) for i, row in enumerate(rows)))
    pairs = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    sides = ("chosen", "rejected")
    text = "\n\nHuman: {}\n\nAssistant: {}"
    dialogues = [{side: text.format(pair["prompt"], pair[side]) for side in sides} for pair in pairs]
    dialogues[3]["rejected"] = dialogues[3]["chosen"]  # as in the Hub's rows; left out and written down
    (work / "dialogues.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    roles = ("user", "assistant")
    turns = lambda *texts: [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]  # noqa: E731
    whole = [{side: turns(pair["prompt"], pair[side]) for side in sides} | {"score_chosen": 7.5} for pair in pairs]
    (work / "ultrafeedback.jsonl").write_text("\n".join(map(json.dumps, whole)))  # no prompt of its own, as on the Hub
    pack(tiny_text_dataset(40), tiny_tokenizer(), work / "shards", sequence_length=32)
    return work


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_two_steps_and_saves_a_model_that_stock_classes_open(name, weighted):
    assert run(name) == 0
    if training_recipes()[name].name in OF_ADAPTERS:
        mixture = LoraMixture.from_pretrained(weighted / "out")
        parameters = dict(mixture.model.named_parameters())
        for expert in ("expert_0", "expert_1"):
            assert any(value.abs().max() > 0 for key, value in parameters.items() if f"lora_B.{expert}" in key)
    elif (weighted / "out" / "adapter_config.json").is_file():
        adapter = load_file(weighted / "out" / "adapter_model.safetensors")
        assert any(value.abs().max() > 0 for key, value in adapter.items() if "lora_B" in key)  # starts at 0
    elif training_recipes()[name].name in MIXTURES:
        head = AutoModelForSequenceClassification.from_pretrained(weighted / "out").mixture
        assert not torch.equal(head.experts.weight[0], head.experts.weight[-1])
        assert (weighted / "out" / "partition.json").is_file()
    elif training_recipes()[name].name in FROM_SCRATCH:
        assert json.loads((weighted / "out" / "report" / "curve.json").read_text())["steps"] == [1, 2]
    else:
        start = "encoder" if training_recipes()[name].name in RETRIEVERS else CLASSIFIERS.get(name, ("original",))[0]
        before, after = (load_file(weighted / folder / "model.safetensors") for folder in (start, "out"))
        assert any(not torch.equal(before[key], after[key]) for key in before)
    if name in CLASSIFIERS:
        CLASSIFIERS[name][1](weighted / "out")
    elif training_recipes()[name].name in RETRIEVERS:
        SentenceTransformer(str(weighted / "out"), device="cpu").encode_query("where is it")
    elif training_recipes()[name].name not in (*OF_ADAPTERS, *MIXTURES):
        AutoModelForCausalLM.from_pretrained(weighted / "out")
    assert not list((weighted / "out").rglob("*.bin"))  # no pickle


def test_every_recipe_of_the_package_has_a_line_in_this_file():
    assert set(RECIPES) == set(DATA)


def test_a_flow_of_pictures_trains_a_head_first_and_then_other_weights_than_equal_ones(work, capsys):
    name = "weighted_classification/resnet18_cifar10.yaml"
    command = ["--config", name, *SMALL, *DATA[name], "--seed", "3"]
    recipe = import_module(training_recipes()[name].recipe).RECIPE
    assert recipe.run([*command, "--output_dir", "flow"]) == 0
    assert recipe.run([*command, "--output_dir", "again"]) == 0
    assert recipe.run([*command, "--output_dir", "wide", "--flow", "1e9"]) == 0
    weights = {folder: load_file(work / folder / "model.safetensors") for folder in ("flow", "again", "wide")}
    assert all(torch.equal(weights["flow"][key], weights["again"][key]) for key in weights["flow"])
    assert any(not torch.equal(weights["flow"][key], weights["wide"][key]) for key in weights["flow"])
    for words, problem in (
        (["--head_only", "true"], "flow with head_only"),
        (["--probe_epochs", "0"], "probe_epochs must be"),
    ):
        assert recipe.run([*command, "--output_dir", "no", *words]) == 2
        assert problem in capsys.readouterr().err


def test_a_flow_of_pictures_that_was_killed_goes_on_to_the_same_weights(work):
    """Between its second and third step: the head is trained again, and gives the same weights of rows."""
    name = "weighted_classification/resnet18_cifar10.yaml"
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "4", "--save_total_limit", "8"]
    command = ["--config", name, *SMALL, *DATA[name], *saving]
    recipe = import_module(training_recipes()[name].recipe).RECIPE
    assert recipe.run([*command, "--output_dir", "whole"]) == 0
    assert recipe.run([*command, "--output_dir", "cut"]) == 0
    for later in ("checkpoint-3", "checkpoint-4", "probe"):
        shutil.rmtree(work / "cut" / later, ignore_errors=True)
    (work / "cut" / "model.safetensors").unlink()
    assert recipe.run([*command, "--output_dir", "cut", "--resume_from_checkpoint", "true"]) == 0
    whole, resumed = (load_file(work / folder / "model.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_weights_reach_the_loss(weighted):
    """Rows of weight 0 train nothing: spoiling them changes no weight of the model."""
    # SGD: Adam would blow the rounding of a gradient near 0 up to a step
    more = ["--optim", "sgd", "--learning_rate", "0.1", "--output_dir"]
    name = "weighted_sft/example.yaml"
    assert run(name, *more, "out") == 0
    rows = [json.loads(line) for line in (weighted / "weighted.jsonl").read_text().splitlines()]
    for row in rows:
        row["completion"] = row["completion"] if row["weight"] else row["completion"][::-1]
    (weighted / "weighted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(name, *more, "spoiled") == 0
    for row in rows:
        row["completion"] = row["completion"][::-1]
    (weighted / "weighted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(name, *more, "control") == 0
    weights = [load_file(weighted / folder / "model.safetensors") for folder in ("out", "spoiled", "control")]
    # another length of a row of weight 0 may move padding, hence rounding
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
    assert any(not torch.allclose(weights[0][key], weights[2][key], atol=1e-4) for key in weights[0])


def test_the_module_runs_as_a_script_with_a_packaged_config(work):
    command = [sys.executable, "-m", "hf_ext.recipes.flow.train", "--config", "flow/gsm8k.yaml", *SMALL]
    done = subprocess.run([*command, *DATA["flow/gsm8k.yaml"], "--output_dir", "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "model.safetensors").is_file()


def test_a_run_resumes_from_its_last_checkpoint(work):
    name, keep = "flow/gsm8k.yaml", ["--save_strategy", "steps", "--save_steps", "1"]
    assert run(name, *keep, "--max_steps", "1") == 0
    assert run(name, *keep, "--resume_from_checkpoint", "true") == 0
    state = json.loads((work / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [1, 2]


@pytest.mark.parametrize(("value", "message"), [("true", "no checkpoint in 'out'"), ("out/gone", "no such folder")])
def test_resuming_without_a_checkpoint_is_an_error_of_the_input(work, capsys, value, message):
    assert run("flow/gsm8k.yaml", "--resume_from_checkpoint", value) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("false", None), ("out/checkpoint-1",) * 2]
)
def test_resume_from_checkpoint_is_a_switch_or_a_path(text, value):
    from hf_ext.recipes.launch import resume_from

    assert resume_from(text) == value


def test_report_measures_the_held_out_rows_and_writes_table_and_plot(work, capsys):
    more = "--eval_dataset_name held_out.jsonl --prompt_column prompt --completion_column completion --report "
    more += "--dataset_name train.jsonl --report_num_tokens 200 --report_general_text general.jsonl --max_eval_rows 7"
    assert run("flow/gsm8k.yaml", *more.split()) == 0
    report = json.loads((work / "out" / "report" / "forgetting.json").read_text())
    assert report["original"]["target_loss"]["num_rows"] == 7
    assert report["runs"][0]["name"] == "flow"
    assert report["runs"][0]["target_change"]["mean"] < 0  # it learned something in two steps
    assert report["runs"][0]["kl_original_to_new"]["mean"] > 0
    assert report["runs"][0]["general_loss"]["num_rows"] == 12
    assert {path.name for path in (work / "out" / "report").iterdir()} >= {"forgetting.md", "forgetting.png"}
    assert "| flow |" in capsys.readouterr().out
    card = (work / "out" / "README.md").read_text()
    assert f"{report['runs'][0]['kl_original_to_new']['mean']:.4f}" in card
    assert "kl_original_to_new" in card.split("---")[1]  # the model-index entry


def test_context_free_rows_are_sampled_once_and_taken_again(work):
    name = "context_free/gsm8k.yaml"
    assert run(name) == 0
    shard = work / "out" / "context_free" / "shard-00000.arrow"
    first = shard.stat().st_mtime_ns
    assert run(name) == 0
    assert shard.stat().st_mtime_ns == first


def test_context_free_without_a_store_or_a_number_says_what_to_pass(work, capsys):
    recipe = import_module("hf_ext.recipes.context_free.train").RECIPE
    assert recipe.run([*SMALL, "--dataset_name", "train.jsonl", "--output_dir", "out"]) == 2
    assert "context_free_num_tokens" in capsys.readouterr().err


def test_lora_trains_and_saves_an_adapter(work):
    assert run("flow/gsm8k.yaml", "--use_peft", "--lora_r", "4") == 0
    assert (work / "out" / "adapter_model.safetensors").is_file()


def test_two_processes_train_together_on_the_cpu(work):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "hf_ext.cli", "train", "context_free", "--num_processes", "2", *SMALL]
    command += ["--dataset_name", "train.jsonl", "--output_dir", "out", "--expected_num_processes", "2"]
    command += ["--eval_dataset_name", "held_out.jsonl", "--context_free_num_tokens", "300", "--report_to", "none"]
    done = subprocess.run(
        [*command, "--report", "--report_num_tokens", "200"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (work / "out" / "model.safetensors").is_file()
    assert (work / "out" / "report" / "forgetting.json").is_file()
    assert "| `processes` | 2 |" in (work / "out" / "README.md").read_text()


def test_fewer_processes_than_expected_stop_the_run(work, capsys):
    with pytest.raises(RuntimeError, match="promises 2 processes, but 1"):
        run("flow/gsm8k.yaml", "--expected_num_processes", "2")
