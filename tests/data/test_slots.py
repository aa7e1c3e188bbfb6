"""Refilled slots: the rows of a plain batch, no bias towards short ones, and only for models that allow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_ext._upstream.cache import NAME as CACHE
from hf_ext.data import context_free
from hf_ext.data.context_free import generate_context_free
from hf_ext.data.sampling import row_uniforms, sample_rows, sampling_mode
from hf_ext.data.slots import SlotCache, can_refill
from tests.data.symbol_models import (
    BOS,
    EOS,
    chi_square_p,
    symbol_model,
    symbol_tokenizer,
    teacher_forced_logps,
)

VOCAB, LONGEST = 24, 20
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
GROUPED = SHAPE | COMMON | {"num_key_value_heads": 2, "head_dim": 8}


class WithoutPositions(GPT2LMHeadModel):
    """Learned positions by the cache's length, whatever `position_ids` say."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class WithoutMask(LlamaForCausalLM):
    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Strict(LlamaForCausalLM):
    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> Any:  # type: ignore
        return super().forward(input_ids, use_cache=use_cache, **{CACHE: past_key_values})


GPT2 = GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64)
REFILLED: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**GROUPED)),
    "llama_eager": (LlamaForCausalLM, LlamaConfig(**GROUPED, attn_implementation="eager")),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**GROUPED)),
    "gpt2": (GPT2LMHeadModel, GPT2),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SHAPE, **COMMON)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GROUPED, sliding_window=64, final_logit_softcapping=2.0)),
    "mistral": (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=64)),
}
IN_STEP: dict[str, tuple[Any, Any]] = {
    "window_shorter_than_a_row": (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=8)),
    "recurrent": (Lfm2ForCausalLM, Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"])),
    "ignores_positions": (WithoutPositions, GPT2),
    "ignores_the_mask": (WithoutMask, LlamaConfig(**GROUPED)),
    "rejects_mask_and_positions": (Strict, LlamaConfig(**GROUPED)),
}


def build(made: tuple[Any, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made[0](made[1]).eval()


def sample(model, start=(BOS,), num_rows=60, refill=True, longest=LONGEST, batch_size=8, **arguments):
    uniforms = row_uniforms(5, range(num_rows), longest)
    with sampling_mode(model):
        return sample_rows(
            model, torch.tensor(start), uniforms, torch.tensor([EOS, 7]), batch_size=batch_size, refill=refill,
            **arguments,
        )  # fmt: skip


@pytest.mark.parametrize("start", [(BOS,), (BOS, 5, 9)])
@pytest.mark.parametrize("name", REFILLED)
def test_refilled_rows_are_those_of_plain_batches_and_of_a_teacher_forced_pass(name, start):
    model = build(REFILLED[name])
    with sampling_mode(model):
        assert can_refill(model, torch.tensor(start), LONGEST)
    ids, logps, lengths = sample(model, start)
    plain_ids, plain_logps, plain_lengths = sample(model, start, refill=False)
    assert torch.equal(ids, plain_ids)
    assert torch.equal(lengths, plain_lengths)
    assert lengths.unique().numel() > 3
    torch.testing.assert_close(logps, plain_logps, atol=3e-5, rtol=0)
    for row, length, sampled in zip(ids, lengths, logps, strict=True):
        exact = teacher_forced_logps(model, [*start, *row[:length].tolist()])[len(start) - 1 :]
        torch.testing.assert_close(sampled[:length], exact, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", IN_STEP)
def test_a_model_that_cannot_be_refilled_is_found_out_and_sampled_in_plain_batches(tmp_path, monkeypatch, name):
    model, asked = build(IN_STEP[name]), []

    def spy(*args, refill, **kwargs):
        asked.append(refill)
        return sample_rows(*args, refill=refill, **kwargs)

    monkeypatch.setattr(context_free, "sample_rows", spy)
    dataset = generate_context_free(
        model, symbol_tokenizer(VOCAB), 200, output_dir=tmp_path, max_new_tokens=LONGEST, batch_size=4,
        show_progress=False,
    ).to_dataset()  # fmt: skip
    assert set(asked) == {False}
    for ids, logps in zip(dataset["input_ids"], dataset["sampled_logps"], strict=True):
        torch.testing.assert_close(torch.tensor(logps[1:]), teacher_forced_logps(model, ids), atol=3e-5, rtol=0)


def test_the_batch_size_and_the_neighbours_do_not_change_a_row():
    model = symbol_model(VOCAB, 2)
    ids, logps, lengths = sample(model, num_rows=50)
    for arguments in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 64}, {"num_rows": 21}):
        other_ids, other_logps, other_lengths = sample(model, **({"num_rows": 50} | arguments))
        count = len(other_ids)
        assert torch.equal(other_ids, ids[:count])
        assert torch.equal(other_lengths, lengths[:count])
        torch.testing.assert_close(other_logps, logps[:count], atol=1e-5, rtol=0)


@pytest.mark.parametrize("refill", [True, False])
def test_a_row_stops_at_its_own_limit(refill):
    model = symbol_model(VOCAB, 2)
    ids, logps, lengths = sample(model)
    limits = torch.randint(1, LONGEST + 1, (len(ids),), generator=torch.Generator().manual_seed(0))
    cut_ids, cut_logps, cut_lengths = sample(model, refill=refill, limits=limits)
    assert torch.equal(cut_lengths, torch.minimum(lengths, limits))
    for row, length in enumerate(cut_lengths):
        assert torch.equal(cut_ids[row, :length], ids[row, :length])
        torch.testing.assert_close(cut_logps[row, :length], logps[row, :length], atol=1e-5, rtol=0)
        assert not cut_ids[row, length:].any()


def test_rows_that_end_before_they_take_a_slot_are_rows_too():
    model = symbol_model(VOCAB, 2)
    ids, _, lengths = sample(model, longest=1)
    assert lengths.tolist() == [1] * 60
    assert torch.equal(ids, sample(model)[0][:, :1])


def test_lengths_of_whole_shards_follow_the_geometric_law(tmp_path):
    vocab, longest, batch_size = 8, 16, 100
    model = symbol_model(vocab, layers=1)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every symbol is as likely as any other: a row ends with probability 1/8
    dataset = generate_context_free(
        model, symbol_tokenizer(vocab), 24_000, output_dir=tmp_path, max_new_tokens=longest, batch_size=batch_size,
        show_progress=False,
    ).to_dataset()  # fmt: skip
    lengths = np.array([len(ids) - 1 for ids in dataset["input_ids"]])
    law = (1 - 1 / vocab) ** np.arange(longest) / vocab
    law[-1] = (1 - 1 / vocab) ** (longest - 1)
    assert chi_square_p(np.bincount(lengths - 1, minlength=longest), law) > 0.001

    # The control: of each shard, the rows that had ended when half of its steps were done.
    ended_early = []
    for shard in lengths.reshape(-1, 8 * batch_size):
        free_at, ends = np.zeros(batch_size), np.zeros(len(shard))
        for row, length in enumerate(shard):
            slot = free_at.argmin()
            free_at[slot] += length
            ends[row] = free_at[slot]
        ended_early += shard[ends <= ends.max() / 2].tolist()
    assert chi_square_p(np.bincount(np.array(ended_early) - 1, minlength=longest), law) < 0.001


def test_slots_stay_full_until_no_row_waits(monkeypatch):
    model, widths = symbol_model(VOCAB, 2), []
    step = SlotCache.step

    def counted(cache, model, tokens):
        widths.append(len(tokens))
        return step(cache, model, tokens)

    monkeypatch.setattr(SlotCache, "step", counted)
    counts: list[int] = []
    _, _, lengths = sample(model, on_tokens=counts.append)
    assert sum(counts) == lengths.sum()
    assert sum(widths) == (lengths - 1).sum()  # nothing is computed that is not kept
    assert widths == sorted(widths, reverse=True)
    assert widths[: len(widths) - LONGEST] == [8] * (len(widths) - LONGEST)
