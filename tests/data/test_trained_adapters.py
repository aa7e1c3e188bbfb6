"""A model whose adapter is trained already is refused as "the original"; one with a new adapter is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig, get_peft_model

from hf_ext.data.trained_adapters import require_untouched_adapters
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
NEW: dict[str, Any] = {
    "lora": LoraConfig(**SETTINGS),
    "all layers and the head": LoraConfig(**(SETTINGS | {"target_modules": "all-linear"})),
    "embeddings": LoraConfig(**(SETTINGS | {"target_modules": ["embed_tokens", "q_proj"]})),
    "dora": LoraConfig(**SETTINGS, use_dora=True),
    "adalora": AdaLoraConfig(target_modules=["q_proj"], init_r=4, total_step=10, task_type="CAUSAL_LM"),
    "rslora": LoraConfig(**SETTINGS, use_rslora=True),
    "orthogonal": LoraConfig(**SETTINGS, init_lora_weights="orthogonal"),
    "saved modules": LoraConfig(**SETTINGS, modules_to_save=["norm"]),
    "tokens": LoraConfig(**SETTINGS, trainable_token_indices=[300, 301]),
    "ia3": IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "layer norms": LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
}


def adapted(config: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny_model(TOKENIZER, tie_word_embeddings=False), config, **changes)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", NEW)
def test_a_new_adapter_passes_and_a_few_small_steps_of_training_are_seen(kind: str) -> None:
    model = adapted(NEW[kind])
    require_untouched_adapters(model)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    ids = torch.arange(296, 312)[None]
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"trained already.*merge_and_unload"):
        require_untouched_adapters(model)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", NEW)
def test_a_new_adapter_passes_in_bfloat16(kind: str) -> None:
    model = adapted(NEW[kind]).to(torch.bfloat16)
    require_untouched_adapters(model)


def test_one_step_of_a_small_learning_rate_is_seen_in_any_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted(NEW["lora"]).to(dtype)
        require_untouched_adapters(model)
        ids = torch.arange(296, 312)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-5).step()
        with pytest.raises(ValueError, match="trained already"):
            require_untouched_adapters(model)


def test_initialisers_that_are_not_neutral_and_merged_adapters_are_refused() -> None:
    for start in (False, "pissa", "olora"):
        with pytest.raises(ValueError, match="the base model is not the original one"):
            require_untouched_adapters(adapted(LoraConfig(**SETTINGS, init_lora_weights=start)))
    model = adapted(NEW["lora"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        require_untouched_adapters(model)


def test_a_trained_adapter_that_is_not_active_and_virtual_tokens_pass() -> None:
    model = adapted(LoraConfig(**SETTINGS, init_lora_weights=False))
    model.add_adapter("second", LoraConfig(**SETTINGS))
    model.set_adapter("second")
    require_untouched_adapters(model)
    require_untouched_adapters(adapted(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))
    require_untouched_adapters(tiny_model(TOKENIZER))


def test_adapters_without_a_peft_model_are_looked_at_too() -> None:
    model = tiny_model(TOKENIZER)
    model.add_adapter(LoraConfig(**SETTINGS))
    require_untouched_adapters(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.lora_B["default"].weight += 1e-4
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.v_proj.*trained already"):
        require_untouched_adapters(model)
