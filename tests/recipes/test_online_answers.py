"""Answers are exact samples that survive a kill, and pairs hold the better against the worse one."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hf_ext import BackendError
from hf_ext.rounds.answers import (
    Answer,
    Sampling,
    form_pairs,
    questions_of_round,
    read_answers,
    sample_answers,
    shard_file,
)
from tests.data.backends.engines import PlainEngine
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
HOW = Sampling(seed=3, round=0, answers_per_question=2, temperature=1.0, max_new_tokens=10, batch_size=4)
QUESTIONS = [(7, "Ada counts "), (2, "Ben"), (5, [{"role": "user", "content": "Tell me about boats."}])]


def change(how, **fields):
    return Sampling(**{**how.__dict__, **fields})


def sampled(folder, how=HOW, questions=QUESTIONS, **more):
    sample_answers(tiny_model(TOKENIZER), TOKENIZER, questions, how, folder, show_progress=False, **more)
    return read_answers(folder)


def test_every_question_gets_its_answers_in_order(tmp_path):
    answers = sampled(tmp_path)
    assert [answer.row for answer in answers] == [7, 7, 2, 2, 5, 5]
    assert [answer.prompt for answer in answers[::2]] == [prompt for _, prompt in QUESTIONS]
    assert len({answer.completion for answer in answers}) == 6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_first_token_follows_the_softmax_at_that_temperature(tmp_path, temperature):
    """Chi-square over 20 bins of equal expected mass; the other temperature fails the same test."""
    how = change(HOW, answers_per_question=3000, temperature=temperature, max_new_tokens=1, batch_size=1500)
    model = tiny_model(TOKENIZER, initializer_range=0.4)
    sample_answers(model, TOKENIZER, [(0, "Ada ")], how, tmp_path, show_progress=False)
    ids = TOKENIZER("Ada ", return_tensors="pt")
    logits = tiny_model(TOKENIZER, initializer_range=0.4)(**ids).logits[0, -1].detach().double()

    texts = {}  # several tokens may decode to one text
    for token in range(len(TOKENIZER)):
        whole = TOKENIZER.decode([*ids["input_ids"][0].tolist(), token], skip_special_tokens=True)
        texts.setdefault(whole.removeprefix("Ada "), []).append(token)
    answers = read_answers(tmp_path)

    def p_value(heat):
        probabilities = torch.softmax(logits / heat, -1)
        masses = sorted(((float(probabilities[tokens].sum()), text) for text, tokens in texts.items()), reverse=True)
        counts = dict.fromkeys(texts, 0)
        for answer in answers:
            counts[answer.completion] += 1
        expected, observed, rest, seen = [], [], 0.0, 0
        for mass, text in masses:
            rest, seen = rest + mass, seen + counts[text]
            if rest * len(answers) >= 50:
                expected, observed, rest, seen = [*expected, rest], [*observed, seen], 0.0, 0
        expected[-1] += rest
        observed[-1] += seen
        return chisquare(observed, [mass * len(answers) for mass in expected]).pvalue

    assert p_value(temperature) > 0.001
    assert p_value(3.0 - temperature) < 1e-6


def test_a_checkpoint_s_own_generation_settings_are_not_used(tmp_path):
    model = tiny_model(TOKENIZER)
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 5.0
    sample_answers(model, TOKENIZER, QUESTIONS, HOW, tmp_path / "a", show_progress=False)
    assert read_answers(tmp_path / "a") == sampled(tmp_path / "b")


def test_padding_beside_longer_prompts_changes_no_answer(tmp_path):
    """Greedy in effect (temperature near 0), each question alone and all together."""
    cold = change(HOW, temperature=1e-6, batch_size=6)
    together = sampled(tmp_path / "all", cold)
    for i, question in enumerate(QUESTIONS):
        assert sampled(tmp_path / str(i), cold, [question]) == together[2 * i : 2 * i + 2]


def test_a_killed_sampling_ends_in_the_same_files(tmp_path):
    sampled(tmp_path / "whole")
    sampled(tmp_path / "cut")
    shard_file(tmp_path / "cut", 0).unlink()
    torch.manual_seed(99)
    sampled(tmp_path / "cut")
    for number in range(2):
        one, other = (shard_file(tmp_path / part, number).read_bytes() for part in ("whole", "cut"))
        assert one == other


def test_shards_that_are_there_are_not_sampled_again(tmp_path):
    sampled(tmp_path)
    mine = json.dumps(Answer(7, "Ada counts ", "mine", True).__dict__)
    shard_file(tmp_path, 0).write_text(mine + "\n")
    assert sampled(tmp_path)[0].completion == "mine"


def test_two_processes_write_what_one_writes(tmp_path):
    for rank in (1, 0):
        sampled(tmp_path / "two", rank=rank, world=2)
    assert read_answers(tmp_path / "two") == sampled(tmp_path / "one")


@pytest.mark.parametrize("field", ["seed", "round"])
def test_another_seed_or_round_gives_other_answers(tmp_path, field):
    assert sampled(tmp_path / "a") != sampled(tmp_path / "b", change(HOW, **{field: 11}))


def test_the_random_state_is_left_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sampled(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_an_answer_ends_at_an_end_token_at_a_stop_text_or_is_cut(tmp_path):
    model = tiny_model(TOKENIZER)
    with torch.no_grad():  # every token's logit but the end's shrinks, as if the model liked to stop
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 6
    how = change(HOW, answers_per_question=40, stop=("e", "o"), max_new_tokens=6)
    sample_answers(model, TOKENIZER, QUESTIONS, how, tmp_path, show_progress=False)
    answers = read_answers(tmp_path)
    assert not any("e" in answer.completion or "o" in answer.completion for answer in answers)
    assert not any("<|im_end|>" in answer.completion for answer in answers)
    finished = {answer.finished for answer in answers}
    assert finished == {True, False}
    uncut = change(how, stop=(), max_new_tokens=6)
    sample_answers(model, TOKENIZER, QUESTIONS, uncut, tmp_path / "uncut", show_progress=False)
    assert any(answer.finished for answer in read_answers(tmp_path / "uncut"))


# --- pairs -----------------------------------------------------------------------------------------------------------


def answers_of(*entries):
    """Answers of one question from (text, finished)."""
    return [Answer(4, "p", text, finished) for text, finished in entries]


@pytest.mark.parametrize(
    ("entries", "scores", "margin", "outcome"),
    [
        ([("a", True), ("b", True)], [1, 0], 0, ("a", "b")),
        ([("a", True), ("b", True)], [0, 1], 0, ("b", "a")),
        ([("a", True), ("b", True)], [1, 1], 0, "ties"),
        ([("a", True), ("b", True)], [0.4, 0.0], 0.5, "ties"),
        ([("a", True), ("b", True)], [0.5, 0.0], 0.5, "ties"),  # more than the margin
        ([("a", True), ("b", True)], [0.6, 0.0], 0.5, ("a", "b")),
        ([("a", True), ("b", False)], [1, 0], 0, ("a", "b")),  # a cut answer may be the worse one
        ([("a", False), ("b", True)], [1, 0], 0, "unfinished"),  # but is never the better one
        ([("a", False), ("b", True), ("c", True)], [3, 1, 2], 0, ("c", "b")),
        ([("a", True), (" \n", True)], [1, 0], 0, "empty"),
        ([("", True), ("", True)], [1, 0], 0, "empty"),
        ([("a", True), ("b", True), ("c", True)], [-1.5, 2.5, 0], 0, ("b", "a")),
        ([("a", False), ("b", False)], [1, 0], 0, "unfinished"),
        ([("a", True), ("a", True)], [1.0, 0.9999], 0, "ties"),  # one text, scored in batches of unlike padding
        ([("a", False), ("a", True), ("b", True)], [1.0, 1.0, 0], 0, ("a", "b")),
    ],
)
def test_a_question_s_pair_or_why_it_has_none(entries, scores, margin, outcome):
    rows, counts = form_pairs(answers_of(*entries), scores, margin)
    if isinstance(outcome, str):
        assert (rows, counts[outcome], sum(counts.values())) == ([], 1, 1)
    else:
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("p", *outcome)]
        assert counts == {"pairs": 1, "ties": 0, "unfinished": 0, "empty": 0}


def test_messages_are_answered_by_messages():
    prompt = [{"role": "user", "content": "q"}]
    (row,), _ = form_pairs([Answer(1, prompt, "a", True), Answer(1, prompt, "b", True)], [0, 1])
    assert row["chosen"] == [{"role": "assistant", "content": "b"}]
    assert row["rejected"] == [{"role": "assistant", "content": "a"}]


ANSWERS = st.tuples(st.integers(0, 3), st.text("ab ", max_size=2), st.booleans(), st.integers(-2, 2))


@given(st.lists(ANSWERS, max_size=14), st.sampled_from([0.0, 1.0]))
def test_every_question_is_counted_once_and_every_pair_keeps_the_margin(entries, margin):
    answers = [Answer(row, f"p{row}", text, finished) for row, text, finished, _ in entries]
    rows, counts = form_pairs(answers, [entry[3] for entry in entries], margin)
    assert sum(counts.values()) == len({answer.row for answer in answers})
    assert counts["pairs"] == len(rows) == len({row["row"] for row in rows})
    for row in rows:
        assert row["chosen_score"] - row["rejected_score"] > margin
        assert row["chosen"] != row["rejected"]  # also where a score is noisy
        assert (row["row"], row["chosen"], True, row["chosen_score"]) in entries


@given(st.integers(1, 30), st.data())
def test_rounds_go_through_every_question_before_one_comes_again(total, data):
    per_round = data.draw(st.integers(1, total))
    asked = [row for number in range(total) for row in questions_of_round(total, per_round, number, seed=4)]
    for start in range(0, len(asked) - total + 1, total):
        assert sorted(asked[start : start + total]) == list(range(total))
    assert sorted(questions_of_round(total, None, 5, seed=4)) == list(range(total))


@pytest.mark.parametrize(("total", "per_round"), [(0, None), (3, 4), (3, 0)])
def test_a_number_of_questions_that_cannot_be_asked_is_refused(total, per_round):
    with pytest.raises(ValueError, match="questions"):
        questions_of_round(total, per_round, 0, seed=0)


def test_an_engine_answers_in_place_of_generate_once_it_has_passed_the_probe(tmp_path):
    model = tiny_model(TOKENIZER, initializer_range=0.4)
    how = change(HOW, stop=("e",), batch_size=3)

    def sample(folder, engine):
        sample_answers(model, TOKENIZER, QUESTIONS, how, folder, backend=engine, show_progress=False)
        return read_answers(folder)

    engine = PlainEngine(model)
    answers = sample(tmp_path / "a", engine)
    assert [answer.row for answer in answers] == [7, 7, 2, 2, 5, 5]
    assert not any("e" in answer.completion for answer in answers)
    assert any(answer.finished for answer in answers)
    calls = engine.calls
    assert sample(tmp_path / "a", engine) == answers
    assert engine.calls == calls  # nothing is missing, so nothing is probed
    shard_file(tmp_path / "a", 1).unlink()
    assert sample(tmp_path / "a", None)[:3] == answers[:3]  # goes on without it
    with pytest.raises(BackendError, match="refused"):
        sample(tmp_path / "b", PlainEngine(model, change=lambda logits: logits * 2))
    assert not list((tmp_path / "b").glob("*"))
