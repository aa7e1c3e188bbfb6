"""The start-up probe for attention kernels that mix packed documents."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface
from trl.trainer.utils import add_fused_lm_head

from hf_ext.guards.attention import check_documents_kept_apart
from tests.tiny import tiny_model

VOCAB = 64


def leak_of(strength: float) -> Any:
    """Attention that lets a share of the other documents' values through: 0 is exact, 1 a plain causal kernel."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        right = sdpa(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)
        wrong = sdpa(query, key, value, is_causal=True, scale=scaling)
        return ((1 - strength) * right + strength * wrong).transpose(1, 2).contiguous(), None

    return attend


def model_with(kernel: str) -> Any:
    model = tiny_model(VOCAB)
    model.set_attn_implementation(kernel)
    add_fused_lm_head(model)
    return model


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("autocast", [contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_stock_kernels_pass_in_any_precision(kernel: str, autocast: Any) -> None:
    model = model_with(kernel)
    model.train()
    check_documents_kept_apart(model, autocast)
    assert model.training


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_a_leak_is_refused_even_a_small_one(strength: float) -> None:
    AttentionInterface.register(f"leak_{strength}", leak_of(strength))
    model = model_with(f"leak_{strength}")
    with pytest.raises(ValueError, match=r"lets packed documents attend to each other: .* by \S+ nats") as found:
        check_documents_kept_apart(model, contextlib.nullcontext)
    assert "packing=False" in str(found.value)


def test_a_kernel_that_ignores_the_mask_and_has_none_to_read_is_refused() -> None:
    # as flash kernels do, it reads no mask at all
    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("no_mask", attend)
    with pytest.raises(ValueError, match="attend to each other"):
        check_documents_kept_apart(model_with("no_mask"), contextlib.nullcontext)


def test_the_probe_reads_a_peft_model_too_and_changes_no_random_state() -> None:
    base = model_with("sdpa")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = torch.get_rng_state()
    check_documents_kept_apart(model, contextlib.nullcontext)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_cannot_be_run_here_is_not_probed_and_the_log_says_so(caplog: Any) -> None:
    with torch.device("meta"):
        model = tiny_model(VOCAB)
    model.to_empty(device="meta")
    with caplog.at_level(logging.INFO, logger="hf_ext"):
        check_documents_kept_apart(model, contextlib.nullcontext)
    assert "not probed" in caplog.text
