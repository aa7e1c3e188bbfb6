"""WiSE-FT against numpy's arithmetic on the saved weights, in memory, in shards and of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from hf_ext.evaluation.forgetting import forgetting_report
from hf_ext.evaluation.wise_ft import wise_ft
from hf_ext.evaluation.wise_ft_sweep import WiseFTSweep, sweep_wise_ft
from tests.evaluation.test_forgetting import TOKENIZER, _prepared
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def _model(seed: int, **config: Any) -> Any:
    return tiny_model(TOKENIZER, seed=seed, **config).eval()


def _adapted(seed: int = 0, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(_model(seed), LoraConfig(**settings | config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The original in one file, the tuned model in three."""
    _model(0).save_pretrained(tmp_path / "original")
    _model(1).save_pretrained(tmp_path / "tuned", max_shard_size="60KB")
    TOKENIZER.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "README.md").write_text("of the tuned model")
    (tmp_path / "tuned" / "training_args.json").write_text("{}")
    return tmp_path / "tuned", tmp_path / "original"


def _saved(folder: Path) -> dict[str, np.ndarray]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_every_weight_lies_between_the_two(folders: tuple[Path, Path], tmp_path: Path, alpha: float) -> None:
    tuned, original = folders
    assert len(list(tuned.glob("*.safetensors"))) > 1
    start = _saved(original)
    end = _saved(tuned)
    by_hand = {name: (1 - alpha) * start[name].astype(np.float64) + alpha * end[name] for name in end}
    mixed = wise_ft(tuned, original, alpha, output_dir=tmp_path / "mixed")
    assert mixed == tmp_path / "mixed"
    saved = _saved(mixed)
    assert saved.keys() == by_hand.keys()
    exact = alpha in (0.0, 1.0)
    for name, values in saved.items():
        np.testing.assert_allclose(values, by_hand[name], rtol=0, atol=0 if exact else 1e-7)
    in_memory = wise_ft(tuned, original, alpha)
    reopened = AutoModelForCausalLM.from_pretrained(mixed)
    assert torch.equal(_logits(in_memory), _logits(reopened))
    assert in_memory.lm_head.weight is in_memory.model.embed_tokens.weight


def test_a_mixed_folder_holds_what_a_model_needs_and_no_more(folders: tuple[Path, Path], tmp_path: Path) -> None:
    mixed = wise_ft(*folders, 0.5, output_dir=tmp_path / "mixed")
    names = {path.name for path in mixed.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert not {"README.md", "training_args.json"} & names
    assert not [name for name in names if name.startswith((".", "_"))]


def test_models_in_memory_are_left_alone(folders: tuple[Path, Path]) -> None:
    original, tuned = _model(0), _model(1)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    mixed = wise_ft(tuned, original, 0.5)
    assert all(torch.equal(before[name], value) for name, value in tuned.state_dict().items())
    assert torch.equal(_logits(mixed), _logits(wise_ft(*folders, 0.5)))
    half = tuned.to(torch.bfloat16)
    assert next(wise_ft(half, original, 0.5).parameters()).dtype == torch.bfloat16


def test_a_model_out_of_a_trainer_is_mixed_and_not_run_as_it_was(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """TRL puts a forward into the model that a plain copy would share: it would give the tuned model's logits."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(tmp_path / "out"), report_to="none", bf16=False, use_cpu=True)
    tuned = _model(1)
    SFTTrainer(tuned, args, train_dataset=_prepared(2), processing_class=TOKENIZER)
    assert "forward" in vars(tuned)
    assert torch.equal(_logits(wise_ft(tuned, _model(0), 0.5)), _logits(wise_ft(*folders, 0.5)))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_scaled_adapter_is_the_mix_of_the_merged_model(tmp_path: Path, alpha: float) -> None:
    adapted = _adapted()
    original = _model(0)
    merged = _adapted().merge_and_unload()
    by_hand = wise_ft(merged, original, alpha)
    scaled = wise_ft(adapted, None, alpha)
    torch.testing.assert_close(_logits(scaled), _logits(by_hand), rtol=0, atol=2e-5)
    assert float((_logits(adapted) - _logits(original)).abs().max()) > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    original.save_pretrained(tmp_path / "original")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "original")})
    )
    folder = wise_ft(tmp_path / "adapter", None, alpha, output_dir=tmp_path / "scaled")
    torch.testing.assert_close(_logits(AutoModelForCausalLM.from_pretrained(folder)), _logits(scaled))
    of_folder = wise_ft(tmp_path / "adapter", None, alpha)
    torch.testing.assert_close(_logits(of_folder), _logits(scaled))
    beside = wise_ft(tmp_path / "adapter", original, alpha)  # the object is no part of what is returned
    torch.testing.assert_close(_logits(beside), _logits(scaled))
    assert not [name for name, _ in original.named_modules() if "lora" in name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa", "target_modules": ["q_proj"]}, "pissa"),
    ],
)
def test_an_adapter_whose_change_is_not_linear_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*Merge it"):
        wise_ft(_adapted(**settings), None, 0.5)


def test_wrong_inputs_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tuned, original = folders
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be a number from 0 to 1"):
            wise_ft(tuned, original, alpha)
    with pytest.raises(ValueError, match="give the original model"):
        wise_ft(_model(1), None, 0.5)
    with pytest.raises(ValueError, match="resize those of the original"):
        wise_ft(tiny_model(len(TOKENIZER) + 2), _model(0), 0.5)
    with pytest.raises(ValueError, match=r"Only the tuned model has a weight 'lm_head\.weight'"):
        wise_ft(_model(1, tie_word_embeddings=False), _model(0), 0.5)
    with pytest.raises(ValueError, match="output_dir mixes folders, and model is a LlamaForCausalLM"):
        wise_ft(_model(1), original, 0.5, output_dir=tmp_path / "mixed")
    with pytest.raises(ValueError, match="is one of the two models"):
        wise_ft(tuned, original, 0.5, output_dir=original)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no safetensors"):
        wise_ft(tmp_path / "empty", original, 0.5, output_dir=tmp_path / "mixed")
    shard = next(tuned.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{shard.name}.*cannot be loaded"):
        wise_ft(tuned, original, 0.5, output_dir=tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_a_sweep_measures_each_alpha_as_the_report_does_and_picks_by_kl(tmp_path: Path) -> None:
    original, tuned = _model(0), _model(1)
    measures: dict[str, Any] = {
        "target": _prepared(6), "context_free": _prepared(5, seed=5), "show_progress": False,
    }  # fmt: skip
    sweep = sweep_wise_ft(tuned, original, TOKENIZER, alphas=(1.0, 0.0, 0.5, 0.25), **measures)
    assert (sweep.alphas, sweep.alpha) == ([0.0, 0.25, 0.5, 1.0], None)
    runs = {f"alpha {alpha:g}": wise_ft(tuned, original, alpha) for alpha in sweep.alphas}
    assert forgetting_report(original, runs, TOKENIZER, **measures) == sweep.report
    kl = [run.kl_original_to_new.mean for run in sweep.report.runs]
    assert kl[0] == 0 < kl[1] < kl[2] < kl[3]
    losses = dict(zip(sweep.alphas, [run.target_loss.mean for run in sweep.report.runs], strict=True))
    bound = (kl[2] + kl[3]) / 2
    bounded = sweep_wise_ft(tuned, original, TOKENIZER, alphas=sweep.alphas, max_kl=bound, **measures)
    assert bounded.alpha == min((0.0, 0.25, 0.5), key=losses.__getitem__)
    del measures["target"]
    largest = sweep_wise_ft(tuned, original, TOKENIZER, alphas=sweep.alphas, max_kl=bound, **measures)
    assert largest.alpha == 0.5
    nothing = sweep_wise_ft(tuned, original, TOKENIZER, alphas=(0.5, 1.0), max_kl=kl[1] / 2, **measures)
    assert nothing.alpha is None
    assert "No alpha keeps" in nothing.to_markdown()
    bounded.save(tmp_path)
    assert WiseFTSweep.load(tmp_path) == bounded
    assert f"Picked: alpha {bounded.alpha:g}" in (tmp_path / "wise_ft.md").read_text()
    assert (tmp_path / "wise_ft.svg").is_file()


def test_a_sweep_refuses_what_it_cannot_do() -> None:
    original, tuned = _model(0), _model(1)
    for settings, words in (
        ({"alphas": ()}, "alphas is empty"),
        ({"alphas": (0.5, 2)}, "alpha must be"),
        ({"alphas": (0.5, 0.5)}, "twice"),
        ({"max_kl": -1.0, "context_free": _prepared(2)}, "max_kl must be"),
        ({"max_kl": 0.1, "target": _prepared(2)}, "give that too"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep_wise_ft(tuned, original, TOKENIZER, **settings)
