"""Answers are scored by their last number, by a function of the user's, or by a reward model."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_ext.data.loading import load_rows
from hf_ext.rounds.scoring import final_number, gsm8k, load_verifier, reward_scorer, verifier_scorer
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = 24 clips.\n#### 24", 24),
        ("#### 1,250", 1250),
        ("#### $1,234,567.50", Fraction("1234567.5")),
        ("#### -7", -7),
        ("#### \u22127", -7),
        ("#### $-5 in debt", -5),
        ("#### 18 dollars a day", 18),
        ("####72", 72),
        ("#### 10%", 10),
        ("#### 10.", 10),
        ("#### 10.00", 10),
        ("#### 3/4 of it", Fraction(3, 4)),
        ("#### ten\nso #### 10", 10),
        ("#### 10\nQuestion: more?\n#### 11", 10),  # the answer to the next question, which nobody asked
        ("no mark, it is 5 then 6.", 6),
        ("so 9 - 4 = 5", 5),
        ("that leaves 5-3", 3),
        ("$\\boxed{42}$", 42),
        (".5", Fraction(1, 2)),
        ("####", None),
        ("nothing", None),
        ("", None),
        ("9" * 5000, None),
        ("1/0", 1),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == number


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["{:,}", "{}"]), st.text("ab #\n$.", max_size=9))
def test_a_marked_number_is_found_however_it_is_written(value, form, before):
    assert final_number(f"{before}\n#### {form.format(value)}") == Fraction(value)


@given(st.text())
def test_any_text_has_a_number_or_none(text):
    assert final_number(text) is None or isinstance(final_number(text), Fraction)


@pytest.mark.real
def test_every_gsm8k_answer_is_right_for_its_own_question_and_its_final_answer(real_data):
    rows = load_rows(str(real_data / "gsm8k" / "train.jsonl.gz"))
    for row in rows:
        assert gsm8k(row["question"], row["answer"], row) == 1.0
        assert final_number(row["answer"]) == Fraction(row["final_answer"])


@pytest.mark.real
def test_solutions_of_four_models_are_judged_as_their_data_set_says(real_data):
    rows = load_rows(str(real_data / "gsm8k_solutions" / "solutions.jsonl.gz"))
    judged = [bool(gsm8k(row["question"], row["solution"], {"answer": f"#### {row['final_answer']}"})) for row in rows]
    disagreements = [i for i, row in enumerate(rows) if judged[i] != row["is_correct"]]
    assert len(rows) == 3200
    assert disagreements == []


def test_a_row_without_a_number_to_compare_with_is_named():
    with pytest.raises(ValueError, match="column 'answer'"):
        gsm8k("q", "#### 3", {"answer": "three"})
    with pytest.raises(ValueError, match="found None"):
        gsm8k("q", "#### 3", {})


def test_a_function_of_the_working_folder_is_found_and_called_with_the_row(tmp_path, monkeypatch):
    (tmp_path / "own_rule_of_this_test.py").write_text(
        "def check(prompt, completion, row):\n    return row['bonus'] + len(completion)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert verifier_scorer("own_rule_of_this_test:check")([("p", "abc", {"bonus": 10})]) == [13.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "none of .'gsm8k'."),
        ("no_such_module:check", "no_such_module"),
        ("tests.recipes.verifiers:gone", "gone"),
        ("tests.recipes.verifiers:NO_FUNCTION", "no function but a int"),
        (":check", "module:function"),
    ],
)
def test_a_verifier_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        load_verifier(name)


def test_a_score_that_is_no_finite_number_is_named():
    with pytest.raises(ValueError, match=r"verifiers:broken' must return a finite number, gave nan for 'abc'"):
        verifier_scorer("tests.recipes.verifiers:broken")([("p", "abc", {})])


@pytest.fixture
def reward_model(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)

    def save(num_labels):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_labels=num_labels, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_reward_model_scores_each_text_as_it_does_alone(reward_model, num_labels):
    name = reward_model(num_labels)
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(name).eval(), tiny_tokenizer()
    chat = [{"role": "user", "content": "Ada sells"}]
    answers = [("Ada ", "sells 3 hats.", {}), ("Ben ", "buys " * 9, {}), (chat, "two boats", {}), ("Chen", " x", {})]
    texts = [p + c if isinstance(p, str) else tokenizer.apply_chat_template(
        [*p, {"role": "assistant", "content": c}], tokenize=False) for p, c, _ in answers]  # fmt: skip
    alone = []
    for text in texts:
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0].detach()
        alone.append(float(logits[0] if num_labels == 1 else logits[1] - logits[0]))
    scores = reward_scorer(name, batch_size=3, max_length=None, device=torch.device("cpu"))(answers)
    assert scores == pytest.approx(alone, abs=1e-4)
    assert len(set(scores)) == 4


def test_a_long_text_loses_its_beginning_not_its_answer(reward_model):
    name = reward_model(1)
    score = reward_scorer(name, batch_size=2, max_length=8, device=torch.device("cpu"))
    text = "one two three four five six seven"
    ends = score([("far " * 30, text, {}), ("", text, {})])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_a_reward_model_with_three_labels_or_none_is_refused(reward_model, tmp_path):
    with pytest.raises(ValueError, match="3 labels"):
        reward_scorer(reward_model(3), batch_size=2, max_length=8, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="nowhere' cannot be loaded"):
        reward_scorer("nowhere", batch_size=2, max_length=8, device=torch.device("cpu"))
