"""Scoring and sampling with the original model leave a model as it was: whatever its adapters, and after an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from hf_ext import (
    InfoPOConfig,
    InfoPOTrainer,
    WeightedSFTConfig,
    add_original_losses,
    forgetting_report,
    generate_context_free,
    likelihood_report,
)
from hf_ext.data.provenance import adapters_off, as_original
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_tokenizer
from tests.trainers.preference import pairs, start
from tests.trainers.runs import weights_of

TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[1, 5, 9, 33]])


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings))


def tuned(config: Any, change: Callable[[Any], Any] = lambda model: None, dropout: float = 0.1) -> Any:
    """A `PeftModel` whose adapter does something, changed as a user might have changed it."""
    model = get_peft_model(tiny_model(TOKENIZER, attention_dropout=dropout), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    change(model)
    return model


def freeze(part: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.requires_grad_(False)

    return change


def add_second(active: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.add_adapter("second", lora(r=3))
        model.set_adapter(active)

    return change


def turn_off_a_layer(model: Any) -> None:
    next(module for name, module in model.named_modules() if name.endswith("q_proj")).enable_adapters(False)


def mix_modes(model: Any) -> None:
    model.eval()
    for name, module in model.named_modules():
        if "dropout" in name or name.endswith("layers.0"):
            module.training = True


def checkpoint_gradients(model: Any) -> None:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True


CASES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "frozen A matrices": (lora(), freeze("lora_A")),
    "everything frozen": (lora(), freeze("")),
    "a saved module half frozen": (lora(modules_to_save=["mlp"]), freeze("up_proj")),
    "two adapters, the first active": (lora(), add_second("default")),
    "two adapters, the second active": (lora(), add_second("second")),
    "two adapters, both active": (lora(), lambda model: (add_second("default")(model), both(model))),
    "one layer's adapter off": (lora(), turn_off_a_layer),
    "all adapters off": (lora(), lambda model: model.base_model.disable_adapter_layers()),
    "DoRA": (lora(use_dora=True), freeze("lora_A")),
    "trained tokens": (lora(trainable_token_indices=[1, 2]), freeze("tokens")),
    "IA3": (IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]), freeze("layers.0")),
    "prompt tuning": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), freeze("prompt")),
    "prefix tuning": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), lambda model: None),
    "modes of their own": (lora(lora_dropout=0.2), mix_modes),
    "gradient checkpointing": (lora(), checkpoint_gradients),
}


def both(model: Any) -> None:
    model.base_model.set_adapter(["default", "second"])


def state_of(model: Any) -> dict[str, Any]:
    """Everything in a model but values: plain attributes and hooks of every module, flags, configurations."""
    tensors = ("_parameters", "_buffers", "_modules")
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in tensors:
                state[f"{name}:{key}"] = repr(value) if isinstance(value, list | dict) else value
    state |= {f"{name} trains": value.requires_grad for name, value in model.named_parameters()}
    state["config"] = model.config.to_dict()
    state["generation"] = model.generation_config.to_dict()
    state["checkpointing"] = model.is_gradient_checkpointing
    return state


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_everything_is_as_before_after_scoring_with_the_original_and_after_an_error(case: str) -> None:
    model = tuned(*CASES[case])
    state = state_of(model)
    with as_original(model), torch.no_grad():
        logits = model(IDS).logits
        assert not any(module.training for module in model.modules())
    assert state_of(model) == state
    torch.testing.assert_close(logits, tiny_model(TOKENIZER)(IDS).logits, rtol=0, atol=1e-6)
    with pytest.raises(KeyError), as_original(model):
        raise KeyError("in the middle")
    assert state_of(model) == state
    assert torch.is_grad_enabled()


def test_a_merged_adapter_is_refused_rather_than_taken_out() -> None:
    model = tuned(lora())
    model.merge_adapter()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="unmerge_adapter"):
        adapters_off(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_every_verb_that_uses_the_original_leaves_a_half_frozen_model_as_it_was(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(TOKENIZER), lora())
    freeze("lora_A")(model)
    mix_modes(model)
    state = state_of(model)
    rows = tiny_prompt_completion_dataset(4)
    args = WeightedSFTConfig(output_dir=str(tmp_path), max_length=64, bf16=False, use_cpu=True, report_to="none")
    quiet = {"show_progress": False}
    verbs: dict[str, Callable[[], Any]] = {
        "score": lambda: add_original_losses(rows, model, TOKENIZER, args, **quiet),
        "sample": lambda: generate_context_free(
            model, TOKENIZER, 16, output_dir=tmp_path / "store", max_new_tokens=4, batch_size=4, **quiet
        ),
        "forgetting": lambda: forgetting_report(None, model, TOKENIZER, target=rows, **quiet),
        "likelihood": lambda: likelihood_report(model, None, pairs(4), TOKENIZER, **quiet),
    }
    for name, verb in verbs.items():
        verb()
        assert state_of(model) == state, name


@pytest.mark.parametrize("loss", ["infopo", "sigmoid"])
def test_the_reference_forward_of_a_trained_adapter_unfreezes_nothing(loss: str, tmp_path: Path) -> None:
    settings = {"reference": None, "loss_type": loss, "likelihood_guard": "off"}
    trainer = start(InfoPOTrainer, InfoPOConfig, tmp_path, model=tuned(lora(), freeze("lora_A")), **settings)
    weights = weights_of(trainer.model)
    trainer.train()
    frozen = {name for name in weights if "lora_B.default" not in name}
    assert {name for name, value in trainer.model.named_parameters() if not value.requires_grad} == frozen
    assert {name for name, value in trainer.model.named_parameters() if torch.equal(value, weights[name])} == frozen


def test_an_adapter_that_the_reference_is_not_made_of_is_refused(tmp_path: Path) -> None:
    named = get_peft_model(tiny_model(TOKENIZER), lora(), adapter_name="policy")
    for model in (named, tuned(lora(), add_second("second"))):
        with pytest.raises(ValueError, match="a copy of one named 'default'"):
            start(InfoPOTrainer, InfoPOConfig, tmp_path, model=model, reference=None)
    model = tuned(lora(), add_second("default"), dropout=0.0)
    trainer = start(InfoPOTrainer, InfoPOConfig, tmp_path, model=model, reference=None)
    trainer.train()
    assert trainer.state.log_history[0]["infopo/chosen_delta"] == 0, "the reference is the adapter as it was"
