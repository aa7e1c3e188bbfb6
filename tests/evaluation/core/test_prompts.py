"""Prompts against hand-written ones, each type and both protocols, and draws against the protocol told in a loop."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from transformers import AutoTokenizer

from hf_ext.evaluation.core.prompts import num_shots, row_order, text_prompts
from hf_ext.evaluation.core.task_files import load_tasks
from hf_ext.evaluation.core.tasks import TASKS
from hf_ext.evaluation.core.tokens import PromptTokens
from tests.evaluation.core.small_tasks import small_rows, write_tasks

CHOICES = [
    {"query": " Sun?\n", "choices": ["hot", " cold "], "gold": 0},
    {"query": "Ice?", "choices": ["hot", "cold"], "gold": 1},
    {"query": "Fire?", "choices": ["hot", "cold"], "gold": 0},
]
SCHEMAS = [
    {"context_options": ["Ann fell as Ann", "Ann fell as Bo "], "continuation": "slept. ", "gold": 1},
    {"context_options": ["It", "She"], "continuation": "won.", "gold": 0},
]
TEXTS = [
    {"context": "One two ", "continuation": " three"},
    {"context": "Four five", "continuation": "six"},
    {"context": "Seven", "continuation": "eight"},
]
SUMS = [
    {"context": "I had 2 and got 1.", "answer": "3", "chain_of_thought": "( 2 + 1 ) "},
    {"context": "I had 9 and lost 5.", "answer": "4", "chain_of_thought": "( 9 - 5 )", "aliases": ["four"]},
]


def prompts_of(folder, label, rows, protocol):
    (task_rows,) = load_tasks(write_tasks(folder, {label: rows}), label)
    return {prompt.row.index: prompt for prompt in text_prompts(task_rows, protocol)}


def test_foundry_asks_a_multiple_choice_with_examples(tmp_path):
    """Three rows and ten examples wanted: each row sees the two others, in the order of a set of small numbers."""
    prompts = prompts_of(tmp_path, "arc_easy", CHOICES, "foundry")
    assert prompts[0].shots_text == "Ice?\nAnswer: cold\nFire?\nAnswer: hot"
    assert prompts[0].contexts == ("\nSun?\nAnswer:",)
    assert prompts[0].answers == ("hot", " cold ")  # entries of a list are not stripped
    assert prompts[2].shots_text == "Sun?\nAnswer: hot\nIce?\nAnswer: cold"
    assert prompts[2].contexts == ("\nFire?\nAnswer:",)


def test_foundry_asks_without_examples_with_nothing_in_front(tmp_path):
    prompts = prompts_of(tmp_path, "copa", CHOICES, "foundry")
    assert [(p.shots_text, *p.contexts) for p in prompts.values()] == [("", "Sun?"), ("", "Ice?"), ("", "Fire?")]


def test_foundry_asks_a_schema_by_its_contexts_and_one_continuation(tmp_path):
    prompt = prompts_of(tmp_path, "winograd", SCHEMAS, "foundry")[0]
    assert (prompt.shots_text, prompt.contexts, prompt.answers) == (
        "",
        ("Ann fell as Ann", "Ann fell as Bo "),
        ("slept.",),
    )


def test_foundry_asks_language_modelling_with_stripped_texts(tmp_path):
    prompts = prompts_of(tmp_path, "bigbench_operators", TEXTS, "foundry")
    assert prompts[1].shots_text == "One two three\nSeven eight"
    assert (prompts[1].contexts, prompts[1].answers) == (("\nFour five",), ("six",))


def test_foundry_asks_for_a_generation_with_its_chain_of_thought(tmp_path):
    prompt = prompts_of(tmp_path, "svamp_cot", SUMS, "foundry")[1]
    assert prompt.shots_text == "Q: I had 2 and got 1.\nUsing the formula below:\n( 2 + 1 ) #### 3"
    assert prompt.contexts == ("\nQ: I had 9 and lost 5.\nUsing the formula below:",)
    assert prompt.row.answers == ("4", "four")


def test_nanochat_asks_a_multiple_choice_with_texts_as_they_are(tmp_path):
    prompts = prompts_of(tmp_path, "arc_easy", CHOICES, "nanochat")
    examples = {"Ice?\nAnswer: cold\n\n", "Fire?\nAnswer: hot\n\n"}
    assert prompts[0].shots_text in {"".join(examples), "".join(sorted(examples)), "".join(sorted(examples)[::-1])}
    assert prompts[0].contexts == (" Sun?\n\nAnswer: ",)
    assert prompts[0].answers == ("hot", " cold ")


def test_nanochat_asks_a_schema_with_its_delimiter(tmp_path):
    prompt = prompts_of(tmp_path, "winograd", SCHEMAS, "nanochat")[0]
    assert prompt.contexts == ("Ann fell as Ann ", "Ann fell as Bo  ")
    assert prompt.answers == ("slept. ",)


def test_nanochat_strips_contexts_of_language_modelling_alone(tmp_path):
    prompts = prompts_of(tmp_path, "bigbench_operators", TEXTS, "nanochat")
    assert (prompts[0].contexts, prompts[0].answers) == (("One two ",), (" three",))
    assert sorted(prompts[0].shots_text.split("\n\n")) == ["", "Four five six", "Seven eight"]


@pytest.mark.real
def test_prompts_of_real_rows_are_as_written_by_hand(real_data):
    loaded = {t.task.label: t for t in load_tasks(real_data / "core_eval", ["copa", "piqa", "winogrande", "boolq"])}
    first = {
        (label, protocol): next(p for p in text_prompts(loaded[label], protocol) if p.row.index == 0)
        for label in loaded
        for protocol in ("foundry", "nanochat")
    }
    copa = first["copa", "foundry"]
    assert copa.contexts == ("The driver got a flat tire, because",)
    assert copa.answers == ("he went over the speed limit.", "he ran over a nail.")
    piqa = first["piqa", "foundry"]
    assert piqa.contexts == ("\nQuestion: How d I keep the Chicken Cordon Bleu rolled up?\nAnswer:",)
    assert piqa.shots_text.count("\nAnswer: ") == 10
    assert first["piqa", "nanochat"].contexts == (
        "Question: How d I keep the Chicken Cordon Bleu rolled up?\n\nAnswer: ",
    )
    assert first["winogrande", "foundry"].contexts[1] == "Police arrested Maria but let Cynthia go as Cynthia"
    assert first["winogrande", "nanochat"].contexts[1] == "Police arrested Maria but let Cynthia go as Cynthia "
    assert first["boolq", "foundry"].contexts[0].endswith("Question: is avicii the guy in the nights video?\nAnswer:")


@pytest.mark.real
def test_draws_of_real_rows_follow_the_protocols(real_data):
    folder = real_data / "core_eval"
    (task_rows,) = load_tasks(folder, "arc_challenge")
    with gzip.open(folder / "arc_challenge.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [f"{row['query'].strip()}\nAnswer: {row['choices'][row['gold']]}" for row in rows]

    generator = random.Random(1234)
    for position, prompt in enumerate(text_prompts(task_rows, "foundry", max_rows=60)):
        numbers = set(generator.sample(range(len(rows)), 10))
        if position in numbers:
            numbers.remove(position)
            number = generator.choice(range(len(rows)))
            while number in numbers or number == position:
                number = generator.choice(range(len(rows)))
            numbers.add(number)
        assert prompt.shots_text == "\n".join(texts[number] for number in numbers)
        assert prompt.row.index == position

    shuffled = list(range(len(rows)))
    random.Random(1337).shuffle(shuffled)
    for position, prompt in enumerate(text_prompts(task_rows, "nanochat", max_rows=60)):
        others = [place for place in range(len(rows)) if place != position]
        numbers = random.Random(1234 + position).sample(others, 10)
        expected = [rows[shuffled[number]] for number in numbers]
        assert prompt.shots_text == "".join(
            f"{row['query']}\nAnswer: {row['choices'][row['gold']]}\n\n" for row in expected
        )
        assert prompt.row.index == shuffled[position]


def test_a_row_is_asked_alike_whatever_max_rows_is(tmp_path):
    (task_rows,) = load_tasks(write_tasks(tmp_path, {"arc_easy": small_rows("arc_easy", 30)}), "arc_easy")
    for protocol in ("foundry", "nanochat"):
        some = list(text_prompts(task_rows, protocol, max_rows=7))
        assert len(some) == 7
        assert some == list(text_prompts(task_rows, protocol))[:7]
        assert [prompt.row.index for prompt in some] == row_order(task_rows, protocol)[:7]


@pytest.mark.parametrize("count", [1, 2, 5, 11])
@pytest.mark.parametrize("protocol", ["foundry", "nanochat"])
def test_a_row_never_sees_itself_and_too_few_rows_give_fewer_examples(tmp_path, count, protocol):
    rows = [{"context": f"row {i} is", "continuation": f"number{i}"} for i in range(count)]
    (task_rows,) = load_tasks(write_tasks(tmp_path, {"bigbench_operators": rows}), "bigbench_operators")
    assert num_shots(task_rows, protocol) == min(10, count - 1)
    for prompt in text_prompts(task_rows, protocol):
        numbers = sorted(int(part.split()[0]) for part in prompt.shots_text.split("number")[1:])
        assert len(numbers) == min(10, count - 1)
        assert prompt.row.index not in numbers


def test_examples_come_from_the_row_s_category(tmp_path):
    rows = [
        {"context": f"{name} {i}:", "continuation": "yes", "category": name}
        for i in range(6)
        for name in ("art", "law")
    ]
    (task_rows,) = load_tasks(write_tasks(tmp_path, {"jeopardy": rows}), "jeopardy")
    assert num_shots(task_rows, "foundry") == 5
    for prompt in text_prompts(task_rows, "foundry"):
        other = {"art": "law", "law": "art"}[prompt.row.category]
        assert prompt.shots_text.count(prompt.row.category) == 5
        assert other not in prompt.shots_text


@pytest.mark.real
def test_the_table_of_tasks_agrees_with_the_files_own(real_data):
    manifest = json.loads((real_data / "core_eval" / "tasks.json").read_text(encoding="utf-8"))
    for entry in manifest.values():
        for facts in entry["dclm_labels"]:
            task = TASKS[facts["label"]]
            assert (task.type, [task.shots], task.percent_v2) == (
                entry["type"], facts["num_fewshot"], facts["random_baseline_percent"],
            )  # fmt: skip
            assert task.delimiter == (facts["continuation_delimiter"] or " ")


@pytest.mark.real
def test_real_prompts_are_cut_and_swallowed_as_often_as_was_counted_apart(real_data, smollm2):
    """Figures of a prototype: at 2,048 tokens 13 of 100 boolq and 7 of 100 language prompts; 1 piqa option of 400."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    labels = ["piqa", "boolq", "bigbench_language_identification"]
    piqa, boolq, languages = load_tasks(real_data / "core_eval", labels)

    def tokens(task_rows, protocol, max_rows):
        prompts = list(text_prompts(task_rows, protocol, max_rows))
        return PromptTokens(tokenizer, task_rows.task, protocol, 2048)(prompts)

    assert [sum(p.is_truncated for p in tokens(t, "foundry", 100)) for t in (boolq, languages)] == [13, 7]
    swallowed = [
        row for row in tokens(piqa, "nanochat", None)
        if any(len(ids) == start for ids, start in zip(row.sequences, row.starts, strict=True))
    ]  # fmt: skip
    assert len(swallowed) == 1
