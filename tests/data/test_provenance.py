"""Hashes: equal exactly when the original model or the tokenizer is the same, whatever is wrapped around it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, OFTConfig, PrefixTuningConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_ext.data.provenance import adapters_off, model_hash, original_model, tokenizer_hash
from tests.tiny import tiny_model, tiny_tokenizer

PEFT_CONFIGS = {
    "lora": LoraConfig(target_modules=["q_proj", "v_proj"]),
    "lora_modules_to_save_head": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "lora_modules_to_save_embedding": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "lora_trainable_tokens": LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "dora": LoraConfig(target_modules="all-linear", use_dora=True),
    "lora_parameters": LoraConfig(target_modules=[], target_parameters=["mlp.up_proj.weight"]),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "ia3": IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]),
    "oft": OFTConfig(target_modules=["q_proj"]),
    "ln_tuning": LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model(64)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_peft_adapters_do_not_change_the_hash_fresh_or_trained(kind, tied):
    model = tiny_model(64, tie_word_embeddings=tied)
    expected = model_hash(model)
    tuned = get_peft_model(copy.deepcopy(model), PEFT_CONFIGS[kind])
    assert model_hash(tuned) == expected
    ids = torch.tensor([[1, 5, 9]])
    before = model(ids).logits
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    assert model_hash(tuned) == expected
    assert not torch.allclose(tuned(ids).logits[:, -3:], before, atol=1e-3)
    with adapters_off(tuned):
        torch.testing.assert_close(original_model(tuned)(ids).logits, before, atol=1e-6, rtol=0)


def test_every_weight_its_name_its_dtype_and_its_shape_count(model):
    seen = {model_hash(model)}
    for name, _ in list(model.named_parameters()):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[-1] += 1e-3
        seen.add(model_hash(other))
    assert len(seen) == 1 + len(list(model.named_parameters()))
    plain = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False))
    twins = [copy.deepcopy(plain) for _ in range(3)]
    twins[0][0].weight = torch.nn.Parameter(plain[0].weight.detach().reshape(2, 3))
    twins[1][0].weight = torch.nn.Parameter(plain[0].weight.detach().view(torch.int32), requires_grad=False)
    twins[2] = torch.nn.Sequential(torch.nn.Identity(), twins[2][0])
    assert len({model_hash(module) for module in (plain, *twins)}) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_hash_of_its_own(model, dtype):
    assert (
        model_hash(copy.deepcopy(model).to(dtype)) == model_hash(copy.deepcopy(model).to(dtype)) != model_hash(model)
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_load_path_does_not_matter(tmp_path, tied):
    model = tiny_model(64, tie_word_embeddings=tied)
    expected = model_hash(model)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "split", max_shard_size="10KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    for folder in ("whole", "split"):
        assert model_hash(AutoModelForCausalLM.from_pretrained(tmp_path / folder)) == expected
    copied = LlamaForCausalLM(model.config)
    copied.load_state_dict(model.state_dict())
    assert model_hash(copied) == expected


def test_a_tied_weight_counts_once():
    tied, alone = (torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3, bias=False)}) for _ in range(2))
    tied["a"].weight = alone["a"].weight
    tied["b"] = torch.nn.Linear(3, 3, bias=False)
    assert model_hash(tied) != model_hash(alone)
    tied["b"].weight = tied["a"].weight
    assert model_hash(tied) == model_hash(alone)


def test_memory_layout_buffers_training_and_grad_flags_do_not_matter(model):
    expected = model_hash(model)
    model.train().requires_grad_(False)
    model.register_buffer("counter", torch.ones(3))
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert model_hash(model) == expected


def test_wrappers_do_not_matter(model, tmp_path):
    expected = model_hash(model)
    assert model_hash(torch.compile(model)) == expected
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        assert model_hash(DistributedDataParallel(model)) == expected
        lora = get_peft_model(copy.deepcopy(model), PEFT_CONFIGS["lora"])
        assert model_hash(DistributedDataParallel(lora)) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_weights_that_are_not_here_are_refused(model):
    with pytest.raises(ValueError, match=r"weight 'lm_head.weight' is not held whole.*meta"):
        model_hash(model.to("meta"))


def test_a_merged_adapter_is_refused(model):
    tuned = get_peft_model(model, PEFT_CONFIGS["lora"])
    tuned.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model_hash(tuned)
    tuned.unmerge_adapter()
    model_hash(tuned)


def test_injected_adapters_without_a_peft_model_cannot_be_turned_off(model):
    expected = model_hash(model)
    model.add_adapter(PEFT_CONFIGS["lora"])
    assert model_hash(model) == expected
    with pytest.raises(ValueError, match="is no PeftModel"):
        adapters_off(model)


def test_using_or_padding_a_tokenizer_does_not_change_its_hash():
    tokenizer = tiny_tokenizer()
    expected = tokenizer_hash(tokenizer)
    tokenizer(["one", "two and three"], padding=True, truncation=True, max_length=2)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    assert tokenizer_hash(tokenizer) == expected


def test_a_saved_tokenizer_has_the_same_hash(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_hash(tokenizer)


def test_vocabulary_special_tokens_and_chat_template_change_the_tokenizer_hash():
    changes = {
        "none": lambda tokenizer: None,
        "added": lambda tokenizer: tokenizer.add_tokens(["marmalade"]),
        "end": lambda tokenizer: setattr(tokenizer, "eos_token", "<s>"),
        "template": lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
    }
    with_template, without = set(), set()
    for change in changes.values():
        tokenizer = tiny_tokenizer()
        change(tokenizer)
        with_template.add(tokenizer_hash(tokenizer))
        without.add(tokenizer_hash(tokenizer, with_chat_template=False))
    with_template.add(tokenizer_hash(tiny_tokenizer(300)))
    assert len(with_template) == 5
    assert len(without) == 3
