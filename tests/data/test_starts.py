"""What is sampled: seeds by shares, chats, thinking, temperatures, prompts, real texts; each against the softmax."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_ext.data import context_free
from hf_ext.data.context_free import generate_context_free, generate_contextual, top_up
from hf_ext.data.context_free_store import ContextFreeStore
from hf_ext.data.replay import store_replay
from hf_ext.data.sampling import row_uniforms, sample_after, sampling_mode
from hf_ext.data.starts import Start, numbers_of_starts
from hf_ext.guards.rows import RowError
from hf_ext.hub.push import push_dataset
from tests.data.symbol_models import (
    BOS,
    EOS,
    chi_square_p,
    next_token_probabilities,
    symbol_model,
    symbol_tokenizer,
    teacher_forced_logps,
)

CHAT = "{% for m in messages %}{{ ('t2 ' if m['role'] == 'user' else 't3 ') + m['content'] + ' </s> ' }}{% endfor %}"
SETTINGS = {"max_new_tokens": 12, "batch_size": 16, "show_progress": False}


def chat_tokenizer(vocab_size: int = 64, **special):
    tokenizer = symbol_tokenizer(vocab_size, **special)
    tokenizer.chat_template = CHAT
    return tokenizer


def generate(folder, num_tokens=400, model=None, tokenizer=None, **arguments):
    model = symbol_model(64) if model is None else model
    tokenizer = chat_tokenizer() if tokenizer is None else tokenizer
    return generate_context_free(model, tokenizer, num_tokens, output_dir=folder, **(SETTINGS | arguments))


def check_logps(model, rows):
    """Every stored log-probability is that of a plain forward over the whole row."""
    for row in rows:
        length = row["labels"].count(-100)
        expected = teacher_forced_logps(model, row["input_ids"])[length - 1 :]
        torch.testing.assert_close(torch.tensor(row["sampled_logps"][length:]), expected, atol=1e-5, rtol=0)
        assert row["labels"][length:] == row["input_ids"][length:]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.2, 0.1), (1.0,)])
def test_every_stretch_of_rows_has_its_shares(shares):
    starts = [Start(str(i), [0], share=share) for i, share in enumerate(shares)]
    for first in (0, 7, 1_000, 123_456):
        for count in (16, 256, 5_000):
            numbers = numbers_of_starts(starts, range(first, first + count))
            counts = np.bincount(numbers, minlength=len(shares))
            assert np.abs(counts - np.array(shares) * count).max() <= 4
    assert (numbers_of_starts(starts, range(100))[40:] == numbers_of_starts(starts, range(40, 100))).all()


def test_each_seed_of_a_mixture_is_followed_by_its_own_softmax_and_row_numbers_say_which_it_is(tmp_path):
    model = symbol_model(64)
    store = generate(tmp_path, 20_000, model, start={"bos": 3, "t5 t9": 1}, max_new_tokens=1, batch_size=4_000)
    rows = store.to_dataset().to_list()
    by_start = {name: [row for row in rows if row["start"] == name] for name in ("bos", "t5 t9")}
    assert len(by_start["bos"]) == pytest.approx(0.75 * len(rows), abs=4)
    for name, ids in (("bos", [BOS]), ("t5 t9", [5, 9])):
        assert all(row["input_ids"][:-1] == ids for row in by_start[name])
        counts = np.bincount([row["input_ids"][-1] for row in by_start[name]], minlength=64)
        assert chi_square_p(counts, next_token_probabilities(model, [ids])[0]) > 0.001
    other = next_token_probabilities(model, [[5, 9]])[0]
    counts = np.bincount([row["input_ids"][-1] for row in by_start["bos"]], minlength=64)
    assert chi_square_p(counts, other) < 0.001  # the test tells the two apart
    check_logps(model, rows[:50])


def test_a_chat_goes_on_to_the_end_of_the_answer_as_the_model_does(tmp_path):
    vocab, longest = 5, 4
    model = symbol_model(vocab, 3, initializer_range=0.1)
    store = generate(
        tmp_path, 50_000, model, chat_tokenizer(vocab), start="chat", max_new_tokens=longest, batch_size=500
    )
    (start,) = store.manifest["starts"]
    assert (start["ids"], start["ends"]) == ([2], 2)
    rows = store.to_dataset()
    sampled = [tuple(ids[1:]) for ids in rows["input_ids"]]
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
    for row, finish in zip(sampled, rows["finish"], strict=True):
        assert finish == ("eos" if row.count(EOS) == 2 else "length")


def test_thinking_begins_with_the_beginning_and_its_token(tmp_path):
    tokenizer = symbol_tokenizer(64, additional_special_tokens=["<think>"])
    store = generate(tmp_path, model=symbol_model(65), tokenizer=tokenizer, start={"think": 1.0})
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert all(ids[:2] == [BOS, think] for ids in store.to_dataset()["input_ids"])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_another_temperature_draws_from_its_softmax_and_stores_the_model_s_log_probabilities(tmp_path, temperature):
    model = symbol_model(64)
    store = generate(tmp_path, 20_000, model, temperature=temperature, max_new_tokens=1, batch_size=4_000)
    rows = store.to_dataset()
    exact = next_token_probabilities(model, [[BOS]])[0]
    tempered = exact ** (1 / temperature)
    counts = np.bincount([ids[-1] for ids in rows["input_ids"]], minlength=64)
    assert chi_square_p(counts, tempered / tempered.sum()) > 0.001
    assert chi_square_p(counts, exact) < 0.001
    check_logps(model, rows.select(range(50)))
    assert store.manifest["temperature"] == store.manifest["sampling"]["temperature"] == temperature


def test_a_plain_store_is_what_it_was_before_there_were_others(tmp_path):
    store = generate(tmp_path)
    assert not {"kind", "starts", "temperature", "rows_hash"} & set(store.manifest)
    assert store.manifest["start_ids"] == [BOS]
    assert store.to_dataset().column_names == ["input_ids", "labels", "sampled_logps", "finish"]
    named = generate(tmp_path / "named", start={"bos": 1})
    assert named.to_dataset()[:] == store.to_dataset()[:]  # a mixture of one is no mixture


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({"start": {"bos": 0.4, "chat": 0.6}}, "starts"),
        ({"start": "bos"}, "start_ids"),
        ({"temperature": 0.5}, "temperature"),
    ],
)
def test_a_mixture_is_continued_by_the_same_mixture_alone(tmp_path, arguments, setting):
    same = {"start": {"bos": 0.5, "chat": 0.5}}
    first = generate(tmp_path, **same).to_dataset()
    with pytest.raises(ValueError, match=f"begun with other settings: .*{setting} was"):
        generate(tmp_path, 900, **(same | arguments))
    more = generate(tmp_path, 900, **same).to_dataset()
    assert more[: len(first)] == first[:]
    assert len(more) > len(first)


class Killed(BaseException):
    """Not an Exception: nothing in the code under test may catch it."""


@pytest.mark.parametrize("moment", [1, 3, 4])
def test_a_stopped_mixture_resumes_to_the_same_rows(tmp_path, monkeypatch, moment):
    arguments = {"num_tokens": 900, "start": {"bos": 0.5, "chat": 0.5}, "batch_size": 4}
    replace, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) > moment:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(Killed):
        generate(tmp_path / "store", **arguments)
    monkeypatch.undo()
    store = generate(tmp_path / "store", **arguments)
    reference = generate(tmp_path / "reference", **arguments)
    assert store.manifest == reference.manifest
    assert store.to_dataset()[:] == reference.to_dataset()[:]


PROMPTS = [[BOS, 7], [BOS, 5, 9, 4], [3]]


def test_rows_after_prompts_follow_the_softmax_after_each(tmp_path):
    model = symbol_model(64)
    tokenizer = symbol_tokenizer(64)
    settings = SETTINGS | {"max_new_tokens": 1, "batch_size": 3_000}
    store = generate_contextual(model, tokenizer, PROMPTS, 15_000, output_dir=tmp_path, **settings)
    rows = store.to_dataset().to_list()
    for number, prompt in enumerate(PROMPTS):
        of_prompt = rows[number :: len(PROMPTS)]
        assert all(row["input_ids"][:-1] == prompt for row in of_prompt)
        counts = np.bincount([row["input_ids"][-1] for row in of_prompt], minlength=64)
        assert chi_square_p(counts, next_token_probabilities(model, [prompt])[0]) > 0.001
    assert store.manifest["kind"] == "contextual"
    with pytest.raises(ValueError, match="rows_hash was"):
        generate_contextual(model, tokenizer, PROMPTS[:2], 90_000, output_dir=tmp_path, **settings)


def test_rows_of_prompts_of_several_lengths_are_those_of_each_alone(tmp_path):
    model = symbol_model(64)
    store = generate_contextual(model, symbol_tokenizer(64), PROMPTS, 400, output_dir=tmp_path, **SETTINGS)
    check_logps(model, store.to_dataset())
    uniforms = row_uniforms(0, range(20), 12)
    prompts = [PROMPTS[i % 3] for i in range(20)]
    with sampling_mode(model):
        padded, alone = (
            sample_after(model, prompts, uniforms, torch.tensor([EOS]), batch_size=8, pads=pads)
            for pads in (True, False)
        )
    assert torch.equal(padded[0], alone[0])
    assert store.to_dataset()["input_ids"][:20] == [
        prompt + ids[:length]
        for prompt, ids, length in zip(prompts, alone[0].tolist(), alone[2].tolist(), strict=True)
    ]


def test_prompts_are_texts_or_messages_of_a_dataset(tmp_path):
    model, tokenizer = symbol_model(64), chat_tokenizer()
    texts = generate_contextual(
        model, tokenizer, Dataset.from_dict({"prompt": ["t5 t9", "t4"]}), 40, output_dir=tmp_path / "texts", **SETTINGS
    )
    assert texts.to_dataset()["input_ids"][0][:2] == [5, 9]
    messages = Dataset.from_dict({"prompt": [[{"role": "user", "content": "t5 t9"}]]})
    chats = generate_contextual(model, tokenizer, messages, 40, output_dir=tmp_path / "chats", **SETTINGS)
    assert chats.to_dataset()["input_ids"][0][:4] == [2, 5, 9, EOS]


def test_real_texts_are_stored_with_the_original_model_s_log_probabilities(tmp_path, monkeypatch):
    model, tokenizer = symbol_model(64), symbol_tokenizer(64)
    texts = [" ".join(f"t{2 + (i * 7 + j) % 60}" for j in range(1 + i % 6)) for i in range(300)]
    arguments = {"output_dir": tmp_path / "store", "max_length": 4, "batch_size": 7, "show_progress": False}
    store = store_replay(model, tokenizer, Dataset.from_dict({"text": texts}), **arguments)
    rows = store.to_dataset()
    assert [ids[1:] for ids in rows["input_ids"]] == [[int(word[1:]) for word in text.split()][:4] for text in texts]
    check_logps(model, rows)
    assert store.manifest["tokens"] == sum(min(4, 1 + i % 6) for i in range(300))
    assert len(store.manifest["shards"]) == 2
    monkeypatch.setattr("hf_ext.data.replay._log_probs", None)  # any scoring would now raise
    assert store_replay(model, tokenizer, texts, **arguments).to_dataset()[:] == rows[:]
    with pytest.raises(ValueError, match="rows_hash was"):
        store_replay(model, tokenizer, texts[1:], **arguments)
    with pytest.raises(RowError, match="row 1, column 'text': expected a text of at least one token, found ''"):
        store_replay(model, tokenizer, ["t5", ""], **(arguments | {"output_dir": tmp_path / "other"}))
    with pytest.raises(ValueError, match="holds replay rows, which cannot be topped up"):
        top_up(store, model, 1_000)
    with pytest.raises(ValueError, match="holds replay rows, which are no samples of a model"):
        push_dataset(store, "me/rows")


def test_a_topped_up_store_is_that_of_a_longer_call_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    model = symbol_model(64)
    start = {"bos": 0.5, "chat": 0.5}
    store = generate(tmp_path / "store", 100, model, start=start, batch_size=4)
    (tmp_path / "copy").mkdir()
    for file in store.path.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    rows_before = store.manifest["rows"]
    topped = top_up(store, model, 130, show_progress=False)
    assert topped.manifest["rows"] >= 130 > rows_before
    whole = generate(tmp_path / "whole", 100, model, start=start, batch_size=4)
    whole = generate(tmp_path / "whole", topped.manifest["tokens"], model, start=start, batch_size=4)
    assert whole.to_dataset()[:] == topped.to_dataset()[:]
    monkeypatch.setattr(context_free, "sample_rows", None)  # any sampling would now raise
    assert top_up(topped, model, 130).manifest["rows"] == topped.manifest["rows"]
    monkeypatch.undo()
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    (tmp_path / "copy" / "manifest.json").write_text(
        json.dumps(manifest | {"complete": False, "num_tokens": topped.manifest["num_tokens"]})
    )
    again = top_up(ContextFreeStore(tmp_path / "copy"), model, 130, show_progress=False)
    assert again.to_dataset()[:] == topped.to_dataset()[:]
    with pytest.raises(ValueError, match="sampled from other weights"):
        top_up(again, symbol_model(64, 1), 9_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": {}}, "a share above 0"),
        ({"start": {"bos": 0.0, "chat": 1.0}}, "a share above 0"),
        ({"start": {"bos": float("nan")}}, "a share above 0"),
        ({"start": "think"}, "no token '<think>'"),
        ({"start": "chat", "tokenizer": symbol_tokenizer(64)}, "no chat template"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "store", **arguments)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "t2", "{{ messages[0]['content'] }}"])
def test_a_template_that_shows_no_header_is_refused(tmp_path, template):
    tokenizer = symbol_tokenizer(64)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match='start="chat": the chat template'):
        generate(tmp_path / "store", tokenizer=tokenizer, start="chat")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "There is no prompt"), ([[5], []], "prompt 1 has 0 tokens"), ([[5] * 600], "prompt 0 has 600 tokens")],
)
def test_prompts_that_cannot_be_followed_are_named(tmp_path, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate_contextual(symbol_model(64), symbol_tokenizer(64), prompts, 10, output_dir=tmp_path / "x", **SETTINGS)
