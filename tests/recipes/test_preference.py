"""Preference rows come to the trainer in the shape it takes, from every shape they are published in."""

from __future__ import annotations

import pickle

import pytest
from datasets import Dataset

from hf_ext.recipes.preference import DialoguesToMessages, PairArguments, UnpairedArguments, messages_of

NAMED = {"chosen_column": "good", "rejected_column": "bad"}
PAIRS = [{"q": f"Q{i}", "good": f"yes {i}", "bad": f"no {i}", "weight": i / 2, "id": i} for i in range(4)]


def rows_of(rows, streaming=False):
    dataset = Dataset.from_list(rows)
    return dataset.to_iterable_dataset() if streaming else dataset


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_pairs_are_renamed_the_weight_stays_and_the_template_wraps_the_prompt(streaming):
    arguments = PairArguments(
        prompt_column="q", chosen_column="good", rejected_column="bad", prompt_template="Q: {prompt}\nA: "
    )
    rows = list(arguments.prepare_rows(rows_of(PAIRS, streaming)))
    assert rows[3] == {"prompt": "Q: Q3\nA: ", "chosen": "yes 3", "rejected": "no 3", "weight": 1.5}


def test_a_column_that_is_not_named_keeps_its_name():
    rows = [{"prompt": "p", "chosen": "c", "worse": "r", "score": 1.0}]
    assert list(PairArguments(rejected_column="worse").prepare_rows(rows_of(rows))) == [
        {"prompt": "p", "chosen": "c", "rejected": "r"}
    ]


def test_pairs_with_the_prompt_inside_both_responses_need_no_prompt():
    rows = [{"a": "p c", "b": "p r"}]
    prepared = PairArguments(chosen_column="a", rejected_column="b").prepare_rows(rows_of(rows))
    assert list(prepared) == [{"chosen": "p c", "rejected": "p r"}]


def test_rows_are_taken_as_they_are_when_nothing_is_named():
    rows = rows_of([{"chosen": "c", "rejected": "r", "score": 1.0}])
    assert PairArguments().prepare_rows(rows) is rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (PairArguments(chosen_column="god"), "no column 'god'"),
        (PairArguments(prompt_column="q"), "no column 'chosen'"),
        (
            PairArguments(prompt_column="q", prompt_template="Q", **NAMED),
            "prompt}",
        ),
        (PairArguments(prompt_template="{prompt}", **NAMED), "name prompt_column"),
        (PairArguments(dialogues=True, prompt_column="q"), "leave prompt_column"),
        (UnpairedArguments(label_column="good"), "no column 'prompt'"),
    ],
)
def test_half_a_mapping_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        arguments.prepare_rows(rows_of(PAIRS))


def test_labelled_rows_are_renamed():
    rows = [{"q": "p", "a": "c", "thumb": True, "who": "x"}]
    arguments = UnpairedArguments(prompt_column="q", completion_column="a", label_column="thumb")
    assert list(arguments.prepare_rows(rows_of(rows))) == [{"prompt": "p", "completion": "c", "label": True}]


def test_pairs_given_to_the_unpaired_recipe_become_labelled_rows():
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(2)]
    assert [(r["prompt"], r["completion"], r["label"]) for r in UnpairedArguments().prepare_rows(rows_of(rows))] == [
        ("p0", "c0", True), ("p0", "r0", False), ("p1", "c1", True), ("p1", "r1", False),
    ]  # fmt: skip


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


START = "\n\nHuman: Hi\n\nAssistant: Hello: what?\n\nHuman: Two\n\nlines"


def test_dialogues_become_messages_and_share_their_prompt():
    rows = rows_of([{"chosen": f"{START}\n\nAssistant: Yes.", "rejected": f"{START}\n\nAssistant: Yesterday"}])
    assert list(PairArguments(dialogues=True).prepare_rows(rows)) == [
        {
            "prompt": [user("Hi"), assistant("Hello: what?"), user("Two\n\nlines")],
            "chosen": [assistant("Yes.")],
            "rejected": [assistant("Yesterday")],
        }
    ]


def test_dialogues_that_part_early_keep_the_turns_behind_the_prompt():
    chosen, rejected = f"{START}\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistant: B\n\nHuman: C\n\nAssistant: D"
    split = DialoguesToMessages()({"chosen": [chosen], "rejected": [rejected]})
    assert split["prompt"] == [[user("Hi")]]
    assert split["chosen"] == [messages_of(chosen)[1:]]
    assert split["rejected"] == [[assistant("B"), user("C"), assistant("D")]]


def test_equal_dialogues_leave_an_equal_reply_for_the_row_check_to_name():
    split = DialoguesToMessages()({"chosen": [f"{START}\n\nAssistant: A"], "rejected": [f"{START}\n\nAssistant: A"]})
    assert split["chosen"] == split["rejected"] == [[assistant("A")]]


@pytest.mark.parametrize("text", [None, 3, "", "Hi", "\n\nHuman: Hi", f"{START}", "x\n\nHuman: a\n\nAssistant: b"])
def test_what_is_no_dialogue_is_named(text):
    with pytest.raises(ValueError, match="expected a dialogue"):
        messages_of(text)


def test_dialogues_without_a_common_turn_are_named():
    with pytest.raises(ValueError, match="begin with different turns"):
        DialoguesToMessages()(
            {"chosen": ["\n\nHuman: a\n\nAssistant: b"], "rejected": ["\n\nHuman: c\n\nAssistant: b"]}
        )


def test_the_callable_pickles():
    assert pickle.loads(pickle.dumps(DialoguesToMessages())) == DialoguesToMessages()
