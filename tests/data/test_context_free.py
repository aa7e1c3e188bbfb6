"""Sampling: what is drawn follows the original model exactly, and the model is handed back as it was."""

from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from hf_ext.data.context_free import generate_context_free
from tests.data.symbol_models import (
    BOS,
    EOS,
    chi_square_p,
    first_token_p,
    next_token_probabilities,
    symbol_model,
    symbol_tokenizer,
    teacher_forced_logps,
    two_token_p,
)
from tests.tiny import tiny_model, tiny_tokenizer

DRAWS = 20_000


def generate(model, tokenizer, folder, num_tokens=400, **arguments):
    arguments = {"max_new_tokens": 12, "batch_size": 16, "show_progress": False} | arguments
    return generate_context_free(model, tokenizer, num_tokens, output_dir=folder, **arguments)


def sampled_rows(store, start=1):
    return [ids[start:] for ids in store.to_dataset()["input_ids"]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_first_and_second_token_follow_the_exact_softmax(tmp_path, seed):
    model = symbol_model(64, seed)
    exact = next_token_probabilities(model, [[BOS]])[0]
    assert exact.max() / exact.min() > 100  # clearly not uniform, or the test would say little
    store = generate(model, symbol_tokenizer(64), tmp_path, 2 * DRAWS, max_new_tokens=2, batch_size=4_000, seed=seed)
    rows = sampled_rows(store)
    assert len(rows) >= DRAWS
    assert first_token_p(model, rows) > 0.001
    assert two_token_p(model, rows) > 0.001


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_top_k_50_of_transformers_generate_fails_the_same_test(seed):
    model = symbol_model(64, seed)
    set_seed(seed)
    ids = model.generate(
        torch.tensor([[BOS]]), do_sample=True, top_k=50, max_new_tokens=2, num_return_sequences=DRAWS,
        eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    rows = ids[:, 1:].tolist()
    assert first_token_p(model, rows) < 0.001
    assert two_token_p(model, rows) < 0.001


def test_whole_rows_follow_the_enumerated_distribution_where_rows_take_the_slots_of_ended_ones(tmp_path):
    vocab, longest = 5, 4
    model = symbol_model(vocab, 3, initializer_range=0.1)
    rows = sampled_rows(
        generate(model, symbol_tokenizer(vocab), tmp_path, 50_000, max_new_tokens=longest, batch_size=500)
    )
    probabilities = {(): 1.0}
    for length in range(longest):
        open_rows = [row for row in probabilities if len(row) == length and EOS not in row]
        exact = next_token_probabilities(model, [[BOS, *row] for row in open_rows])
        for row, after in zip(open_rows, exact, strict=True):
            mass = probabilities.pop(row)
            probabilities |= {(*row, token): mass * after[token] for token in range(vocab)}
    cells = {row: number for number, row in enumerate(probabilities)}
    counts = np.bincount([cells[tuple(row)] for row in rows], minlength=len(cells))
    assert len({len(row) for row in rows}) == longest  # rows ended at every length
    assert chi_square_p(counts, np.array(list(probabilities.values()))) > 0.001


def test_sampled_logps_equal_a_teacher_forced_forward(tmp_path):
    model = symbol_model(16, 1, initializer_range=0.2)
    dataset = generate(model, symbol_tokenizer(16), tmp_path, 800).to_dataset()
    assert len({len(ids) for ids in dataset["input_ids"]}) > 3
    assert len(dataset) > 2 * 16  # most rows began in the slot of another
    for ids, logps in zip(dataset["input_ids"], dataset["sampled_logps"], strict=True):
        torch.testing.assert_close(torch.tensor(logps[1:]), teacher_forced_logps(model, ids), atol=1e-5, rtol=0)
        assert logps[0] == 0.0


def test_rows_stop_at_the_end_token_and_cut_rows_get_none(tmp_path):
    dataset = generate(symbol_model(16, 1), symbol_tokenizer(16), tmp_path, 2_000).to_dataset()
    assert set(dataset["finish"]) == {"eos", "length"}
    for ids, labels, finish in zip(dataset["input_ids"], dataset["labels"], dataset["finish"], strict=True):
        assert labels == [-100, *ids[1:]]
        assert EOS not in ids[1:-1]
        assert (ids[-1] == EOS) == (finish == "eos")
        assert finish == "eos" or len(ids) == 1 + 12


def test_the_checkpoints_generation_config_gives_end_tokens_and_nothing_else(tmp_path):
    model, tokenizer = symbol_model(64), symbol_tokenizer(64)
    poisoned = copy.deepcopy(model)
    poisoned.generation_config.update(
        do_sample=True, top_k=50, temperature=0.6, repetition_penalty=1.3, max_new_tokens=3, suppress_tokens=[5, 6]
    )
    plain = generate(model, tokenizer, tmp_path / "plain").to_dataset()
    assert generate(poisoned, tokenizer, tmp_path / "poisoned").to_dataset()[:] == plain[:]

    poisoned.generation_config.eos_token_id = [7, 9]
    store = generate(poisoned, tokenizer, tmp_path / "ends", 2_000)
    assert store.manifest["eos_ids"] == [EOS, 7, 9]
    assert {row[-1] for row in sampled_rows(store) if len(row) < 12} == {EOS, 7, 9}
    assert not any({EOS, 7, 9} & set(row[:-1]) for row in sampled_rows(store))


def test_ids_are_kept_as_sampled_where_decoding_and_encoding_would_change_them(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    dataset = generate(model, tokenizer, tmp_path).to_dataset()
    changed = 0
    for ids, logps in zip(dataset["input_ids"], dataset["sampled_logps"], strict=True):
        changed += tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] != ids
        torch.testing.assert_close(torch.tensor(logps[1:]), teacher_forced_logps(model, ids), atol=1e-5, rtol=0)
    assert changed > 0


def test_global_random_state_and_model_state_are_left_as_they_were(tmp_path):
    model = symbol_model(64)
    reference = generate(model, symbol_tokenizer(64), tmp_path / "reference").to_dataset()
    model.train()
    model.model.layers[0].eval()  # a user may hold one part still
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    training = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    dataset = generate(model, symbol_tokenizer(64), tmp_path / "store").to_dataset()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [module.training for module in model.modules()] == training
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False
    assert dataset[:] == reference[:]


def test_a_new_adapter_does_not_matter_and_a_trained_one_is_refused_before_anything_is_sampled(tmp_path):
    base, tokenizer = symbol_model(64), symbol_tokenizer(64)
    reference = generate(base, tokenizer, tmp_path / "base")
    tuned = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], r=4))
    store = generate(tuned, tokenizer, tmp_path / "new")
    assert store.to_dataset()[:] == reference.to_dataset()[:]
    reference.check_model(tuned)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(ValueError, match="trained already"):
        generate(tuned, tokenizer, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_seed_and_row_number_decide_the_rows(tmp_path):
    model, tokenizer = symbol_model(64), symbol_tokenizer(64)
    stores = [generate(model, tokenizer, tmp_path / str(i), 400, seed=seed) for i, seed in enumerate([0, 0, 1])]
    first, again, other = [store.to_dataset()[:] for store in stores]
    assert first == again
    assert first["input_ids"] != other["input_ids"]
    rows = [tuple(row) for row in first["input_ids"]]
    for one, two in itertools.pairwise(range(0, len(rows), 16)):
        assert rows[one : one + 16] != rows[two : two + 16]
    # However the rows are shared out to shards and batches, row for row they are the same.
    split = generate(model, tokenizer, tmp_path / "split", 400, batch_size=2)
    assert split.manifest["rows_per_shard"] < stores[0].manifest["rows_per_shard"]
    many, few = sorted((split.to_dataset()["input_ids"], first["input_ids"]), key=len, reverse=True)
    assert list(few) == list(many)[: len(few)]


def test_bf16_autocast_samples_the_autocast_model(tmp_path):
    model = symbol_model(64)
    dataset = generate(model, symbol_tokenizer(64), tmp_path, autocast_dtype=torch.bfloat16).to_dataset()
    off = []
    for ids, logps in zip(dataset["input_ids"], dataset["sampled_logps"], strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            same = teacher_forced_logps(model, ids)
        assert (torch.tensor(logps[1:]) - same).abs().max() < 0.1
        off.append((torch.tensor(logps[1:]) - teacher_forced_logps(model, ids)).abs().mean())
    assert torch.stack(off).mean() > 1e-4  # it was not float32 that sampled


def test_non_finite_logits_stop_the_sampling(tmp_path):
    model = symbol_model(64)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        generate(model, symbol_tokenizer(64), tmp_path)


@pytest.mark.parametrize(
    ("start", "special", "ids"),
    [
        ("bos", {}, [BOS]),
        ("separator", {}, [EOS]),
        ("separator", {"additional_special_tokens": ["<|endoftext|>"]}, [64]),
        ("t5 t9", {}, [5, 9]),
        ([4, 4, 8], {}, [4, 4, 8]),
    ],
)
def test_start_gives_the_ids_every_row_begins_with_and_none_is_supervised(tmp_path, start, special, ids):
    model, tokenizer = symbol_model(65), symbol_tokenizer(64, **special)
    store = generate(model, tokenizer, tmp_path, start=start)
    assert store.manifest["start_ids"] == ids
    for row in store.to_dataset():
        assert row["input_ids"][: len(ids)] == ids
        assert row["labels"][: len(ids)] == [-100] * len(ids)
        assert row["sampled_logps"][: len(ids)] == [0.0] * len(ids)
        torch.testing.assert_close(
            torch.tensor(row["sampled_logps"][len(ids) :]),
            teacher_forced_logps(model, row["input_ids"])[len(ids) - 1 :],
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize(
    ("arguments", "special", "message"),
    [
        ({}, {"bos_token": None}, 'Pass start="separator"'),
        ({"start": "separator"}, {"eos_token": None}, "no document separator"),
        ({"start": ""}, {}, "at least one id"),
        ({"start": [64]}, {}, "all below 64"),
        ({"start": [-1]}, {}, "all below 64"),
        ({"max_new_tokens": 512}, {}, "max_new_tokens=511 or less"),
        ({"max_new_tokens": 0}, {}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, {}, "batch_size must be at least 1"),
        ({"num_tokens": 0}, {}, "num_tokens must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, special, message):
    with pytest.raises(ValueError, match=message):
        generate(symbol_model(64), symbol_tokenizer(64, **special), tmp_path / "store", **arguments)
    assert not (tmp_path / "store").exists()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_first_token_of_smollm2_follows_the_exact_softmax(tmp_path, smollm2, seed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    store = generate(model, tokenizer, tmp_path, DRAWS, max_new_tokens=1, batch_size=500, seed=seed)
    first = [row[0] for row in sampled_rows(store)]
    exact = next_token_probabilities(model, [[tokenizer.bos_token_id]])[0]
    assert chi_square_p(np.bincount(first, minlength=len(exact)), exact) > 0.001

    kept = np.where(exact >= np.sort(exact)[-50], exact, 0)
    filtered = np.random.default_rng(seed).choice(len(exact), DRAWS, p=kept / kept.sum())
    assert chi_square_p(np.bincount(filtered, minlength=len(exact)), exact) < 0.001
