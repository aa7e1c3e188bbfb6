"""The rounds of the online recipe: what they leave behind, what stops them, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_ext.guards.runs import RunFolder
from hf_ext.recipes.infopo.online import RECIPE
from hf_ext.rounds.online_report import Round, table
from tests.recipes.work import SMALL

ONLINE = [
    *SMALL,
    *("--dataset_name", "train.jsonl", "--verifier", "tests.recipes.verifiers:even", "--rounds", "2"),
    *("--questions_per_round", "8", "--answers_per_question", "4", "--max_new_tokens", "12", "--stop", "a", "e"),
    *("--sample_batch_size", "16", "--report_to", "none", "--save_strategy", "steps", "--save_steps", "1"),
]


def run(*more, folder="out"):
    return RECIPE.run([*ONLINE, "--output_dir", folder, *more])


def error_of(capsys, *more):
    """Exit status and the one line on stderr."""
    status = run(*more)
    return status, capsys.readouterr().err.splitlines()[-1]


def manifest(folder: Path, number: int) -> dict:
    return json.loads((folder / f"round-{number:03d}" / "manifest.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_each_round_starts_from_the_model_of_the_one_before_and_the_last_is_the_result(work, capsys):
    assert run() == 0
    out = work / "out"
    assert manifest(out, 0)["done"] == manifest(out, 1)["done"] == ["sampled", "paired", "trained"]
    for number in range(2):
        results = manifest(out, number)["results"]
        answers = [
            json.loads(line)
            for file in sorted((out / f"round-{number:03d}" / "answers").iterdir())
            for line in file.read_text().splitlines()
        ]
        assert results["questions"] == 8
        assert results["answers"] == len(answers) == 32
        # the verifier's rule, written again
        assert results["mean_score"] == pytest.approx(sum(len(a["completion"]) % 2 == 0 for a in answers) / 32)
        pairs = [json.loads(line) for line in (out / f"round-{number:03d}" / "pairs.jsonl").read_text().splitlines()]
        assert results["pairs"] == len(pairs) == 8 - results["ties"] - results["unfinished"] - results["empty"]
        assert all((pair["chosen_score"], pair["rejected_score"]) == (1.0, 0.0) for pair in pairs)
        assert isinstance(results["chosen_delta"], float)
    states = [out / f"round-{number:03d}" / "train" / "checkpoint-2" / "trainer_state.json" for number in range(2)]
    assert all(json.loads(state.read_text())["global_step"] == 2 for state in states)
    first, second = (weights(out / f"round-{number:03d}" / "model") for number in range(2))
    assert not same(weights(work / "original"), first)
    assert not same(first, second)
    assert same(second, weights(out))
    AutoModelForCausalLM.from_pretrained(out)
    assert (out / "README.md").is_file()
    shown = capsys.readouterr().out
    assert (out / "rounds.md").read_text() in shown
    assert shown.count("\n| 0 |") == shown.count("\n| 1 |") == 1
    assert run() == 0  # nothing is left to do
    assert same(second, weights(out))


def test_the_reference_of_a_round_is_its_own_start(work):
    """The first step's margins are 0 in every round: policy and reference are one model."""
    assert run() == 0
    for number in range(2):
        state = work / "out" / f"round-{number:03d}" / "train" / "checkpoint-2" / "trainer_state.json"
        first = json.loads(state.read_text())["log_history"][0]
        assert first["infopo/chosen_delta"] == pytest.approx(0, abs=1e-6)
        assert first["infopo/rejected_delta"] == pytest.approx(0, abs=1e-6)
        assert first["loss"] == pytest.approx(1.0, abs=1e-5)  # -0 + exp(0)


def test_rounds_may_be_added_to_a_finished_run_and_equal_one_long_run(work):
    assert run("--rounds", "1", folder="grown") == 0
    assert run("--rounds", "2", folder="grown") == 0
    assert run("--rounds", "2", folder="long") == 0
    assert same(weights(work / "grown"), weights(work / "long"))


def test_lora_trains_an_adapter_a_round_and_merges_it(work):
    assert run("--use_peft", "--lora_r", "4", "--learning_rate", "0.05") == 0
    assert not (work / "out" / "adapter_config.json").exists()
    models = [weights(work / "original"), *(weights(work / "out" / f"round-{i:03d}" / "model") for i in range(2))]
    assert models[0].keys() == models[1].keys() == models[2].keys()
    assert not same(models[0], models[1])
    assert not same(models[1], models[2])
    assert not any("lora" in key for key in models[2])


def test_a_reward_model_scores_instead(work, capsys):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(work / "reward")
    tokenizer.save_pretrained(work / "reward")
    arguments = [word for word in ONLINE if word not in ("--verifier", "tests.recipes.verifiers:even")]
    more = ["--reward_model", "reward", "--reward_margin", "0.05", "--rounds", "1", "--output_dir", "out"]
    assert RECIPE.run([*arguments, *more]) == 0
    pairs = [json.loads(line) for line in (work / "out" / "round-000" / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    assert all(pair["chosen_score"] - pair["rejected_score"] > 0.05 for pair in pairs)
    assert RECIPE.run([*arguments, *more, "--verifier", "gsm8k"]) == 2
    assert "not both" in capsys.readouterr().err


def test_no_pair_at_all_is_a_sentence_that_says_what_to_do(work, capsys):
    (work / "gsm8k.jsonl").write_text('{"question": "How many?", "answer": "#### 123456789"}\n' * 9)
    more = ["--dataset_name", "gsm8k.jsonl", "--prompt_column", "question", "--verifier", "gsm8k"]
    status, line = error_of(capsys, *more)
    assert status == 2
    assert all(word in line for word in ("none of 8 questions", "ties (mean score 0)", "temperature", "SFT first"))
    assert not (work / "out" / "round-000" / "pairs.jsonl").exists()


def test_a_run_goes_on_under_other_logs_and_is_refused_under_other_results(work, capsys):
    """Finished or not: its rounds would be of two kinds."""
    assert run("--rounds", "1") == 0
    former = weights(work / "out")
    status, line = error_of(capsys, "--rounds", "1", "--temperature", "0.5", "--adam_beta1", "0.1")
    assert status == 2
    assert "temperature was 1.0, is 0.5" in line
    assert "adam_beta1 was 0.9, is 0.1" in line
    same_result = ["--logging_steps", "1", "--save_steps", "2", "--run_name", "x", "--dataset_num_proc", "1"]
    (work / "train.jsonl").rename(work / "moved.jsonl")
    assert run("--rounds", "1", *same_result, "--dataset_name", "moved.jsonl") == 0
    assert same(former, weights(work / "out"))


def test_other_rows_model_files_or_verifier_are_named(work, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(work))
    (work / "judge.py").write_text("def check(prompt, completion, row):\n    return float(len(completion) % 2)\n")
    more = ("--rounds", "1", "--verifier", "judge:check")
    assert run(*more) == 0
    rows = (work / "train.jsonl").read_text().splitlines(keepends=True)
    config = (work / "original" / "generation_config.json").read_text()
    changes = {
        "train.jsonl": ("".join([*rows[:5], rows[6], rows[5], *rows[7:]]), "other questions (first in row 5, column"),
        "judge.py": ("def check(prompt, completion, row):\n    return 0.5\n", "verifier file was"),
        "original/generation_config.json": (
            config.replace("{", '{"top_k": 3,', 1),
            "model.generation_config.json was",
        ),
    }
    for name, (content, words) in changes.items():
        former = (work / name).read_text()
        (work / name).write_text(content)
        status, line = error_of(capsys, *more)
        assert status == 2
        assert words in line
        assert ";" not in line, "nothing else is named"
        (work / name).write_text(former)
    assert run(*more) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--answers_per_question", "1"], "at least 2"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--reward_margin", "-1"], "at least 0"),
        (["--verifier", "no_such:thing"], "cannot be imported"),
        (["--verifier", "tests.recipes.verifiers:broken"], "finite number, gave nan"),
        (["--stop", ""], "empty text"),
        (["--prompt_template", "Q"], "{prompt}"),
        (["--prompt_column", "ask"], "no column 'ask'"),
        (["--questions_per_round", "99"], "between 1 and the dataset's 24"),
        (["--resume_from_checkpoint", "elsewhere"], "no such folder"),
        (["--resume_from_checkpoint", "original"], "the same command goes on by itself"),
        (["--eval_strategy", "steps"], "eval_strategy"),
        (["--dataset_streaming", "true"], "dataset_streaming"),
        (["--reward_model", "original"], "not both"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(work, capsys, more, words):
    status, line = error_of(capsys, *more)
    assert status == 2
    assert words in line


def test_the_table_shows_what_is_known(tmp_path):
    known = Round(0, RunFolder(tmp_path))
    known.finish("sampled", questions=1200)
    known.finish("paired", mean_score=0.25, chosen_delta=-0.01)
    head, rule, line = table([known]).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| 0 | 1,200 | - | 0.2500 |")
    assert "| -0.0100 | - |" in line


def run_killed(work: Path, *more: str) -> dict:
    """Where the runs of `run_online` were killed, and their exit statuses."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.recipes.run_online", *more, str(work), *ONLINE, "--max_steps", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((work / "killed.json").read_text())


def assert_same_files(whole: Path, cut: Path) -> None:
    for name in ("model.safetensors", "rounds.md", *(f"round-00{i}/pairs.jsonl" for i in range(2))):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    for number in range(2):
        assert manifest(whole, number)["results"] == manifest(cut, number)["results"]


@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_in_the_same_files(work):
    """SIGKILL in sampling, pairing, training and saving, of either round, changes no byte of the result."""
    killed = run_killed(work)
    assert killed["statuses"][:-1] == [-9] * len(killed["places"])
    assert "step" in killed["places"]
    places = [Path(place) for place in killed["places"] if place != "step"]
    rounds = {part for place in places for part in place.relative_to(work / "cut").parts[:1] if "round-" in part}
    assert rounds == {"round-000", "round-001"}
    assert {"answers", "manifest.json", "model"} <= {part for place in places for part in place.parts}
    assert_same_files(work / "whole", work / "cut")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_ten_random_moments_it_ends_in_the_same_files(work):
    killed = run_killed(work, "--random", "10")
    assert killed["statuses"] == [-9, 0] * 10
    print(killed["places"])
    for number in range(10):
        assert_same_files(work / "whole", work / f"cut-{number}")


@pytest.mark.slow  # tests/recipes/test_training.py starts two processes by the same launcher
@pytest.mark.timeout(900)
def test_two_processes_sample_and_train_together(work):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "hf_ext.cli", "train", "infopo_online", "--num_processes", "2", *ONLINE]
    done = subprocess.run(
        [*command, "--output_dir", "two", "--rounds", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert run("--rounds", "1", folder="one") == 0
    pairs = [(work / folder / "round-000" / "pairs.jsonl").read_bytes() for folder in ("one", "two")]
    assert pairs[0] == pairs[1]
    assert (work / "two" / "model.safetensors").is_file()


def test_an_engine_samples_the_answers_of_a_round(work, capsys):
    one_round = ["--rounds", "1", "--questions_per_round", "4"]
    assert run(*one_round, "--backend", "continuous_batching") == 0
    assert manifest(work / "out", 0)["results"]["answers"] == 16
    assert run(*one_round) == 0  # a run may go on with another one
    with pytest.raises(SystemExit):
        run(*one_round, "--backend", "completions")
    assert "invalid choice: 'completions'" in capsys.readouterr().err
