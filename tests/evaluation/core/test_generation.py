"""Tasks of EXTENDED that the model answers by writing: when what it wrote is right."""

from __future__ import annotations

import string

import pytest
import torch

from hf_ext.evaluation.core import evaluate_core
from hf_ext.evaluation.core.generation import begins_with_answer
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(TOKENIZER, seed=0, initializer_range=0.3).eval()


def measured(data, model=MODEL, **changes):
    return evaluate_core(model, TOKENIZER, data, show_progress=False, batch_tokens=900, **changes)


def evened(text):
    """Lower case, without punctuation and articles: told word by word."""
    letters = "".join(" " if letter in string.punctuation or letter in "‘’´`" else letter for letter in text.lower())
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


@pytest.mark.parametrize(
    ("text", "answers", "is_reasoned", "is_right"),
    [
        ("( 2 + 1 ) #### 3\n\nQ: more", ["3"], True, True),
        ("a #### 1 #### The  Eiffel_Tower!", ["eiffel tower"], True, True),
        ("x #### 36", ["3"], True, True),  # as in LLM Foundry
        ("x #### 3\nQ: 4 #### 5", ["5"], True, False),  # the next question is the model's own
        ("3, as 2 + 1 #### 4", ["3"], True, False),
        ("An apple.", ["Apple", "pear"], False, True),
        ("pear\nWho was it? Paris", ["Apple", "pear"], False, True),  # a base model writes on
        ("green apple", ["Apple", "pear"], False, False),
        ("", ["3"], False, False),
        ("anything", ["The"], False, True),  # nothing is left of the answer
    ],
)
def test_a_written_answer_begins_with_an_accepted_one(text, answers, is_reasoned, is_right):
    part = text.split("\n\n")[0].split("Q:")[0].split(" #### ")[-1] if is_reasoned else text
    assert any(evened(part).startswith(evened(answer)) for answer in answers) == is_right
    assert begins_with_answer(text, answers, is_reasoned=is_reasoned) == is_right


def test_generation_is_asked_for_only_beyond_core_and_scored_by_what_is_written(tmp_path):
    write_tasks(tmp_path, {"svamp_cot": small_rows("svamp_cot", 3), "copa": small_rows("copa", 4)})
    assert [result.label for result in measured(tmp_path).tasks] == ["copa"]
    whole = measured(tmp_path, tasks="all", max_rows=2)
    assert [result.label for result in whole.tasks] == ["svamp_cot", "copa"]
    assert (whole.task("svamp_cot").accuracy, whole.task("svamp_cot").rows) == (0, 2)
    with pytest.raises(ValueError, match="Protocol 'nanochat' asks no task of type 'generation': leave out svamp_cot"):
        measured(tmp_path, tasks="all", protocol="nanochat")


@pytest.mark.parametrize(("label", "text"), [("svamp_cot", "( 1 + 0 ) #### 1\n\n"), ("triviaqa_sm_sub", "1\nWho ?")])
def test_a_generation_that_writes_the_answer_is_right(tmp_path, monkeypatch, label, text):
    write_tasks(tmp_path, {label: small_rows(label, 3)})
    model = tiny_model(TOKENIZER)
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    monkeypatch.setattr(model, "generate", lambda input_ids, **kw: torch.cat([input_ids, ids], 1))
    assert [row["correct"] for row in measured(tmp_path, model, tasks="all").rows] == [False, True, False]
