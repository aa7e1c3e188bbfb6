"""Stores whose rows come from engines: exact, one store whatever engine made a part, nothing lost when one fails."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ext import BackendError, ContinuousBatchingBackend
from hf_ext.data.context_free import generate_context_free, generate_contextual, top_up
from tests.data.backends.engines import PlainEngine, top_k
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
from tests.data.test_starts import chat_tokenizer

SETTINGS = {"max_new_tokens": 12, "batch_size": 4, "seed": 3, "show_progress": False}


@pytest.fixture(scope="module")
def model():
    return symbol_model(64)


def generate(folder, num_tokens=900, model=None, tokenizer=None, **arguments):
    tokenizer = symbol_tokenizer(64) if tokenizer is None else tokenizer
    return generate_context_free(model, tokenizer, num_tokens, output_dir=folder, **(SETTINGS | arguments))


def check_rows(model, rows, num_start=1):
    for row in rows:
        expected = teacher_forced_logps(model, row["input_ids"])[num_start - 1 :]
        np.testing.assert_allclose(row["sampled_logps"][num_start:], expected, atol=1e-4)
        assert row["labels"] == [-100] * num_start + row["input_ids"][num_start:]
        assert row["finish"] == ("eos" if row["input_ids"][-1] == EOS else "length")


def test_rows_of_continuous_batching_follow_the_exact_softmax(tmp_path, model):
    store = generate(
        tmp_path, 3_000, model, backend=ContinuousBatchingBackend(model), max_new_tokens=2, batch_size=750
    )
    rows = store.to_dataset()
    sampled = [ids[1:] for ids in rows["input_ids"]]
    assert first_token_p(model, sampled) > 0.001
    assert two_token_p(model, sampled) > 0.001
    check_rows(model, rows.select(range(50)))
    assert {part["backend"]["name"] for part in store.manifest["shards"]} == {"continuous_batching"}
    assert model.config._attn_implementation == "sdpa"  # the engine's own was put back


@pytest.mark.parametrize("reports", ["raw", "processed", None])
def test_log_probabilities_are_the_models_at_temperature_1_whatever_an_engine_reports(tmp_path, model, reports):
    engine = PlainEngine(model, reports=reports)
    store = generate(tmp_path, 200, model, backend=engine, temperature=0.8)
    check_rows(model, store.to_dataset())
    assert store.manifest["temperature"] == 0.8


def test_parts_of_several_engines_are_one_store(tmp_path, model):
    ours = generate(tmp_path / "ours", model=model).to_dataset()
    generate(tmp_path / "mixed", 300, model)
    generate(tmp_path / "mixed", 600, model, backend=PlainEngine(model, name="first"))
    store = generate(tmp_path / "mixed", 900, model, backend=PlainEngine(model, name="second"))
    names = [shard.get("backend", {}).get("name") for shard in store.manifest["shards"]]
    assert names == [None, "first", "second"]
    rows = store.to_dataset()
    check_rows(model, rows)
    num_ours = store.manifest["shards"][0]["rows"]
    assert rows["input_ids"][:num_ours] == ours["input_ids"][:num_ours]
    calls = PlainEngine(model)
    assert generate(tmp_path / "mixed", 900, model, backend=calls).to_dataset()[:] == rows[:]
    assert calls.calls == 0  # complete: neither sampled nor probed
    grown = top_up(store, model, len(rows) + 1, show_progress=False)
    assert grown.to_dataset()[: len(rows)] == rows[:]
    assert "backend" not in grown.manifest["shards"][-1]


def test_an_engine_that_dies_loses_no_whole_shard_and_another_goes_on(tmp_path, model):
    class Dying(PlainEngine):
        def sample(self, rows, temperature, eos_ids):
            if len(rows) == 32 and self.calls > 12:
                raise BackendError("the engine died")
            return super().sample(rows, temperature, eos_ids)

    engine = Dying(model)
    with pytest.raises(BackendError, match="the engine died"):
        generate(tmp_path, 5_000, model, backend=engine)
    store = generate(tmp_path, 5_000, model, backend=ContinuousBatchingBackend(model))
    names = [shard["backend"]["name"] for shard in store.manifest["shards"]]
    assert set(names) == {"plain", "continuous_batching"}
    assert names == sorted(names, reverse=True)
    assert store.manifest["tokens"] == sum(len(ids) - 1 for ids in store.to_dataset()["input_ids"]) >= 5_000


def test_a_refused_engine_leaves_no_rows(tmp_path, model):
    other = symbol_model(64, 5)
    with pytest.raises(BackendError, match="refused"):
        generate(tmp_path, 500, model, backend=PlainEngine(other))
    assert not list(tmp_path.glob("*.arrow"))
    with pytest.raises(BackendError, match="under top_k=10"):
        generate(tmp_path, 500, model, backend=PlainEngine(model, change=top_k(10)))


def test_a_chat_goes_on_to_the_end_of_the_answer(tmp_path):
    vocab, longest = 5, 4
    model = symbol_model(vocab, 3, initializer_range=0.1)
    tokenizer = chat_tokenizer(vocab)
    store = generate(
        tmp_path, 20_000, model, tokenizer, start="chat", max_new_tokens=longest, batch_size=800,
        backend=PlainEngine(model),
    )  # fmt: skip
    (start,) = store.manifest["starts"]
    assert (start["ids"], start["ends"]) == ([2], 2)
    sampled = [tuple(ids[1:]) for ids in store.to_dataset()["input_ids"]]
    probabilities = {(): 1.0}
    for length in range(longest):  # a row is open until its second end token
        open_rows = [row for row in probabilities if len(row) == length and row.count(EOS) < 2]
        exact = next_token_probabilities(model, [[2, *row] for row in open_rows])
        for row, after in zip(open_rows, exact, strict=True):
            mass = probabilities.pop(row)
            probabilities |= {(*row, token): mass * after[token] for token in range(vocab)}
    cells = {row: number for number, row in enumerate(probabilities)}
    counts = np.bincount([cells[row] for row in sampled], minlength=len(cells))
    assert chi_square_p(counts, np.array(list(probabilities.values()))) > 0.001


def test_prompts_and_mixed_starts_are_those_of_our_own_loop(tmp_path, model):
    prompts = [[BOS, 5, 6], [BOS, 7], [9, 8, 7, 6]]
    arguments = dict(SETTINGS, output_dir=tmp_path / "prompts", backend=PlainEngine(model))
    rows = generate_contextual(model, symbol_tokenizer(64), prompts, 200, **arguments).to_dataset()
    for number, row in enumerate(rows):
        prompt = prompts[number % 3]
        assert row["input_ids"][: len(prompt)] == prompt
        check_rows(model, [row], len(prompt))
    start = {"bos": 0.5, "t5 t9": 0.5}
    ours = generate(tmp_path / "ours", 200, model, start=start).to_dataset()
    engine = generate(tmp_path / "engine", 200, model, start=start, backend=PlainEngine(model)).to_dataset()
    shared = min(len(ours), len(engine))
    assert engine["start"][:shared] == ours["start"][:shared]
