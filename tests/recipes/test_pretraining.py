"""The scales of pretraining: parameters, tokens and schedule of each, the plan, the tokenizer, a resumed run."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_ext import PretrainingConfig, new_model
from hf_ext.data.curation.packing import pack
from hf_ext.evaluation.core import CoreReport
from hf_ext.recipes.files import read_settings
from hf_ext.recipes.pretraining.train import RECIPE
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_text_dataset, tiny_tokenizer
from tests.trainers.pretraining import TINY

# DCLM's own files: parameters without the gains of the query and key norms, those without input embeddings, tokens,
# sequences a step, warm-up, learning rate, weight decay, z-loss.
DCLM: dict[str, tuple[Any, ...]] = {
    "400m_1x": (411_616_256, 359_973_888, 8_232_325_120, 512, 2000, 3e-3, 0.033, 1e-4),
    "1b_1x": (1_439_795_200, 1_336_510_464, 28_795_904_000, 256, 5000, 3e-3, 0.033, 1e-4),
    "3b_1x": (2_795_932_160, 2_666_826_240, 55_918_643_200, 256, 5000, 3e-3, 0.033, 1e-4),
    "7b_1x": (6_889_410_560, 6_682_841_088, 137_788_211_200, 2048, 5000, 2e-3, 0.05, 5e-6),
    "7b_2x": (6_889_410_560, 6_682_841_088, 275_576_422_400, 2048, 5000, 2e-3, 0.05, 5e-6),
}
NANO = {"nano_1x": 20, "nano_2x": 40}


@cache
def settings(scale: str) -> dict[str, Any]:
    return read_settings(f"pretraining/{scale}")[1]


@cache
def parameters(scale: str) -> tuple[int, int]:
    model = new_model(settings(scale)["architecture"], on_meta=True)
    total = sum(value.numel() for value in model.parameters())
    return total, total - model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("scale", DCLM)
def test_a_scale_of_dclm_has_its_parameters_and_exactly_its_tokens_and_schedule(scale: str) -> None:
    total, without_embeddings, tokens, sequences, warmup, rate, decay, z_weight = DCLM[scale]
    assert parameters(scale)[0] == pytest.approx(total, rel=1e-4)
    assert parameters(scale)[1] == pytest.approx(without_embeddings, rel=1e-4)
    values = settings(scale)
    assert (values["token_budget"], values["sequences_per_step"], values["sequence_length"]) == (
        tokens,
        sequences,
        2048,
    )
    assert (values["warmup_steps"], values["learning_rate"]) == (warmup, rate)
    assert (values["weight_decay"], values["z_loss_weight"]) == (decay, z_weight)
    assert (values["cooldown_learning_rate"], values["seed"]) == (3e-5, 124)
    assert tokens in (20 * total, 40 * total)


@pytest.mark.parametrize("scale", NANO)
def test_a_nano_scale_has_exactly_its_tokens_a_parameter(scale: str) -> None:
    assert settings(scale)["token_budget"] == NANO[scale] * parameters(scale)[0]


@pytest.mark.parametrize("scale", [*DCLM, *NANO])
def test_every_scale_trains_whole_steps_of_its_batch_up_to_its_tokens(scale: str, tmp_path: Path) -> None:
    values = settings(scale) | {"output_dir": str(tmp_path), "use_cpu": True}
    args = PretrainingConfig(**{name: value for name, value in values.items() if hasattr(PretrainingConfig, name)})
    assert args.tokens_per_step == args.sequences_per_step * args.sequence_length
    assert args.max_steps == math.ceil(args.token_budget / args.tokens_per_step)
    assert args.get_warmup_steps(args.max_steps) == values["warmup_steps"]


# --- the command -----------------------------------------------------------------------------------------------------

SMALL = [
    *(
        "--sequence_length",
        "32",
        "--per_device_train_batch_size",
        "2",
        "--sequences_per_step",
        "4",
        "--max_steps",
        "4",
    ),
    *("--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true", "--warmup_steps", "1", "--logging_steps", "1"),
    *("--architecture", json.dumps(TINY), "--save_strategy", "steps", "--save_steps", "2", "--output_dir", "out"),
    *("--report_to", "none", "--dataset_name", "shards"),
]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `shards` in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pack(tiny_text_dataset(60), tiny_tokenizer(), "shards", sequence_length=32)
    return tmp_path


def run(*more: str, scale: str = "nano_1x") -> int:
    try:
        return RECIPE.run(["--config", f"pretraining/{scale}", *SMALL, *more])
    except SystemExit as stop:
        return int(stop.code)


def test_shards_become_a_stock_model_with_tokenizer_curve_and_card_and_a_resumed_run_the_same(shards: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert run() == 0
    weights = load_file(shards / "out" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(shards / "out")
    tokenizer = AutoTokenizer.from_pretrained(shards / "out")
    assert model.config.vocab_size == len(tokenizer) == len(tiny_tokenizer())
    curve = json.loads((shards / "out" / "report" / "curve.json").read_text())
    assert curve["steps"] == [1, 2, 3, 4]
    assert curve["tokens_per_step"] == 128
    assert curve["losses"][-1] < curve["losses"][0]
    assert "| `parameters` |" in (shards / "out" / "README.md").read_text()
    place = ("--output_dir", "resumed", "--resume_from_checkpoint")
    assert run(*place, "out/checkpoint-2") == 0
    resumed = load_file(shards / "resumed" / "model.safetensors")
    assert all((resumed[name] == weights[name]).all() for name in weights)


@pytest.mark.parametrize("scale", NANO)
def test_a_nano_scale_trains_two_steps_of_its_own_model(scale: str, shards: Path) -> None:
    architecture = json.dumps(settings(scale)["architecture"])
    assert run("--architecture", architecture, "--max_steps", "2", "--save_strategy", "no", scale=scale) == 0
    weights = load_file(shards / "out" / "model.safetensors")
    assert sum(value.numel() for value in weights.values()) == parameters(scale)[0]
    assert len(json.loads((shards / "out" / "report" / "curve.json").read_text())["losses"]) == 2


@pytest.mark.parametrize("scale", [*DCLM, *NANO])
def test_every_scale_has_a_plan(scale: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = ["--use_cpu", "true", "--output_dir", str(tmp_path / "planned")]
    assert RECIPE.run(["--config", f"pretraining/{scale}", *place, "--plan"]) == 0
    text = capsys.readouterr().out
    assert f"{parameters(scale)[0]:,}" in text
    assert f"(asked for: {settings(scale)['token_budget']:,})" in text
    assert not (tmp_path / "planned").exists()


def test_core_of_the_trained_model_is_in_the_report_and_on_the_card(
    shards: Path, capsys: pytest.CaptureFixture
) -> None:
    write_tasks(shards / "tasks", {label: small_rows(label, 6) for label in ("copa", "winograd", "lambada_openai")})
    assert run("--core_data", "tasks", "--core_max_rows", "4", "--max_steps", "2") == 0
    report = CoreReport.load(shards / "out" / "report")
    assert {task.label: task.rows for task in report.tasks} == {"copa": 4, "winograd": 4, "lambada_openai": 4}
    assert "| copa |" in capsys.readouterr().out
    card = (shards / "out" / "README.md").read_text()
    assert "## DCLM CORE" in card
    assert "core3_v2" in card
    assert run("--core_max_rows", "4") == 2
    assert run("--core_data", "nowhere") == 2


def test_the_plan_is_printed_and_nothing_is_trained_or_written(shards: Path, capsys: pytest.CaptureFixture) -> None:
    place = ["--use_cpu", "true", "--output_dir", "planned", "--plan"]
    numbers = ["--plan_devices", "8", "--plan_teraflops", "400", "--plan_hourly_price", "3"]
    assert RECIPE.run(["--config", "pretraining/1b_1x", *place, *numbers]) == 0
    text = capsys.readouterr().out
    steps = math.ceil(28_795_904_000 / (256 * 2048))
    hours = 6 * 1_439_801_344 * steps * 256 * 2048 / (8 * 400e12) / 3600
    for words in (
        "1,439,801,344", "1,336,516,608 without", f"{steps:,} steps of 524,288", "(asked for: 28,795,904,000)",
        "not known", f"{hours:,.2f} hours on 8 device(s) at 400 TFLOP/s", f"${hours * 24:,.2f} at $3 an hour",
    ):  # fmt: skip
        assert words in text
    assert not Path("planned").exists()
    assert run("--plan", "--output_dir", "planned") == 0
    count = json.loads(Path("shards/packed.json").read_text())["num_sequences"]
    text = capsys.readouterr().out
    assert f"{16 / count:.3f}" in text
    assert f"{6 * parameters_of_tiny() * 512:.3g} (6 a parameter and token)" in text
    assert not Path("planned").exists()


def parameters_of_tiny() -> int:
    vocab, width, inner, layers, head = len(tiny_tokenizer()), 32, 64, 2, 8
    return 2 * vocab * width + layers * (4 * width**2 + 3 * width * inner + 2 * width + 2 * head) + width


def test_fewer_tokens_than_the_plan_takes_are_said(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = json.loads(Path("shards/packed.json").read_text())["num_sequences"]
    steps = count // 4 + 1
    assert run("--max_steps", str(steps), "--save_strategy", "no") == 0
    assert f"each of its sequences is read {steps * 4 / count:.2f} times" in caplog.text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokenizer_name", "other"], "is not the one with which shards was packed"),
        (["--sequence_length", "64"], "33 tokens, and sequence_length=64 needs 65"),
        (["--dataset_name", "texts.jsonl"], "give tokenizer_name"),
        (["--dataset_name", "texts.jsonl", "--tokenizer_name", "other"], "no set of packed sequences"),
        (["--model_name_or_path", "other"], "both were given"),
        (["--architecture", "[1]"], "architecture must be a mapping"),
        (["--use_peft"], "does not take use_peft"),
        (["--dataset_name", "half"], "is not packed to its end"),
        (["--dataset_name", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line_and_status_2(
    more: list[str], words: str, shards: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_tokenizer(300).save_pretrained("other")
    tiny_text_dataset(4).to_json("texts.jsonl")
    (shards / "half").mkdir()
    (shards / "half" / "packing.json").write_text((shards / "shards" / "packing.json").read_text())
    assert run(*more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
