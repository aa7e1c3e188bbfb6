"""Padding, special tokens and chat templates: what the host overlooks between a checked row and its tokens."""

from __future__ import annotations

import copy
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from tokenizers import processors
from transformers import AutoTokenizer
from trl import SFTConfig

from hf_ext import InfoPOConfig, InfoPOTrainer, WeightedSFTConfig, WeightedSFTTrainer, forgetting_report
from hf_ext.data.sft_rows import prepare_sft_rows
from hf_ext.data.weighting import add_original_losses
from hf_ext.guards.rows import RowError
from hf_ext.guards.tokens import Doubled
from tests.guards.bad_rows import FORMS, bot, user
from tests.tiny import (
    CHAT_TEMPLATE,
    tiny_messages_dataset,
    tiny_model,
    tiny_prompt_completion_dataset,
    tiny_text_dataset,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()
both_forms = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def config(config_class: Any = SFTConfig, **settings: Any) -> Any:
    return config_class(report_to="none", bf16=False, use_cpu=True, **settings)


def tokens_of(rows: Any, tokenizer: Any = TOKENIZER, **settings: Any) -> list[dict[str, Any]]:
    prepared = prepare_sft_rows(rows, tokenizer, config(**settings))
    return [{name: row[name] for name in ("input_ids", "labels", "weight") if name in row} for row in prepared]


# --- padding ---------------------------------------------------------------------------------------------------------


def padded(row: dict[str, Any], places: list[int], length: int) -> dict[str, Any]:
    """The row with its tokens at `places` of `length`, and a mask; every other list is filled alike."""
    filler = {"input_ids": TOKENIZER.pad_token_id, "labels": 7, "completion_mask": 1, "weight": 9.0}
    out: dict[str, Any] = {"attention_mask": [int(place in places) for place in range(length)]}
    for name, values in row.items():
        out[name] = [filler[name]] * length if isinstance(values, list) else values
        if isinstance(values, list):
            for place, value in zip(places, values, strict=True):
                out[name][place] = value
    return out


@both_forms
def test_padding_is_neither_trained_on_nor_scored(make: Any) -> None:
    rng = random.Random(3)
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_text_dataset(4)["text"]]
    length = max(map(len, ids)) + 3
    sides = [
        list(range(len(ids[0]))),
        list(range(length - len(ids[1]), length)),
        sorted(rng.sample(range(length), len(ids[2]))),
        list(range(len(ids[3]))),
    ]
    columns: list[dict[str, Any]] = [
        {"input_ids": ids},
        {"input_ids": ids, "labels": [[-100, *row[1:]] for row in ids]},
        {"input_ids": ids, "completion_mask": [[0] * 3 + [1] * (len(row) - 3) for row in ids]},
        {"input_ids": ids, "weight": [[rng.random() for _ in row] for row in ids]},
        {"input_ids": ids, "weight": [0.5, 1.0, 2.0, 3.0]},
    ]
    for values in columns:
        plain = [{name: column[i] for name, column in values.items()} for i in range(4)]
        hidden = [padded(row, places, length) for row, places in zip(plain, sides, strict=True)]
        masked = {"completion_only_loss": True} if "completion_mask" in values else {}
        assert tokens_of(make(hidden), **masked) == tokens_of(make(plain), **masked)
    if make is FORMS["dataset"]:
        model = tiny_model(TOKENIZER)
        scored = [add_original_losses(make(rows), model, TOKENIZER) for rows in (hidden, plain)]
        assert np.allclose(*(rows["original_nll_sum"][:] for rows in scored), atol=1e-5)


@both_forms
def test_a_mask_that_does_not_fit_is_named(make: Any) -> None:
    good = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0]}
    for mask, said in (
        ([1, 1], "attention_mask has 2 entries, row has 3 tokens"),
        ([0, 0, 0], "every entry is 0"),
        ([1, 2, 1], "expected 0 or 1 in every entry, found 2"),
        (None, "expected a list of integers, found None"),
    ):
        with pytest.raises(RowError) as caught:
            tokens_of(make([good, good | {"attention_mask": mask}]))
        assert (caught.value.row_index, caught.value.column) == (1, "attention_mask")
        assert said in str(caught.value)
    flags = [good | {"attention_mask": [True, True, False]}] * 2
    assert [row["input_ids"] for row in tokens_of(make(flags))] == [[5, 6]] * 2


def test_packed_rows_with_padding_are_refused() -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 0], "seq_lengths": [2, 1], "attention_mask": [1, 1, 0]}])
    with pytest.raises(ValueError, match=r"packed rows .* whose attention_mask hides some"):
        tokens_of(rows, packing=True)


# --- special tokens that stand twice ---------------------------------------------------------------------------------


def adding(single: str) -> Any:
    """The tokenizer, adding special tokens to texts; its template renders the beginning token, as Llama's does."""
    tokenizer = copy.deepcopy(TOKENIZER)
    special = [("<s>", TOKENIZER.bos_token_id), ("<|im_end|>", TOKENIZER.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.chat_template = "{{- bos_token }}" + CHAT_TEMPLATE
    return tokenizer


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name == "hf_ext.guards.tokens"]
    caplog.clear()
    return said


@both_forms
def test_special_tokens_that_stand_twice_are_counted_and_no_others(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    begins, ends = adding("<s> $A"), adding("$A <|im_end|>")
    texts = tiny_text_dataset(4)["text"]
    rendered = begins.apply_chat_template([user("Hi"), bot("Hello.")], tokenize=False).rstrip()
    turns = [{"messages": row} for row in tiny_messages_dataset(4)["messages"]]
    single = [{"prompt": text, "completion": " Yes."} for text in texts]
    for tokenizer, rows in (
        (TOKENIZER, [{"text": text} for text in texts]),
        (begins, [{"text": text} for text in texts]),
        (begins, single),
        (begins, turns),
        (ends, turns),
        (TOKENIZER, turns),
    ):
        tokens_of(make(rows), tokenizer)
        assert warnings_of(caplog) == []
    is_stream = make is FORMS["stream"]
    for tokenizer, rows, token, where, count in (
        (begins, [{"text": texts[0]}, *[{"text": rendered}] * 3], "<s>", "beginning", 3),
        (ends, single, "<|im_end|>", "end", 4),
        (ends, [{"text": text} for text in texts], "<|im_end|>", "end", 4),
        (TOKENIZER, [{"text": texts[0] + "<|im_end|>" * 2}, {"text": texts[1]}], "<|im_end|>", "end", 1),
        (TOKENIZER, [{"text": texts[0] + "<|im_end|>\n"}, {"text": texts[1] + "\n"}], "<|im_end|>", "end", 1),
    ):
        tokens_of(make(rows), tokenizer)
        (said,) = warnings_of(caplog)
        share = f"{count} of {len(rows)} rows ({100 * count / len(rows):.1f} %)"
        which = f"row {1 if count == 3 else 0} (the first such row)" if is_stream else share
        assert f"token {token!r} stands twice at the {where} of {which} of the train dataset" in said


def test_padding_without_a_mask_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    ids = TOKENIZER("Ada counts 5 apples.")["input_ids"]
    pad = [TOKENIZER.pad_token_id]
    rows = [ids, ids + pad * 3, pad * 2 + ids, ids + pad]
    tokens_of(Dataset.from_dict({"input_ids": rows}))
    assert (
        "'<pad>' stands more than once at the beginning or the end of 2 of 4 rows (50.0 %)" in warnings_of(caplog)[0]
    )
    labels = [[-100 if token == pad[0] else token for token in row] for row in rows]
    tokens_of(Dataset.from_dict({"input_ids": rows, "labels": labels}))
    assert warnings_of(caplog) == []


def test_counting_by_columns_agrees_with_a_look_at_each_row() -> None:
    rng = random.Random(0)
    rows = [
        {name: [rng.choice([1, 1, 2]) for _ in range(rng.randint(0, 3))] for name in ("prompt_ids", "completion_ids")}
        for _ in range(300)
    ]
    sequences = ((("prompt_ids", "completion_ids"), "completion_ids"),)
    for sides, supervised, spaces in itertools.product([(0,), (-1,), (0, -1)], [False, True], [(), (2,)]):
        expected = 0
        for row in rows:
            whole = (row["completion_ids"] if supervised else row["prompt_ids"] + row["completion_ids"])[:2]
            tail = row["completion_ids"][-2:]
            spaced = row["completion_ids"][-3:] == [1, 2, 1] and bool(spaces)
            expected += (0 in sides and whole == [1, 1]) or (-1 in sides and (tail == [1, 1] or spaced))
        is_doubled = Doubled(1, sides, sequences, supervised, spaces)
        assert is_doubled.count(Dataset.from_list(rows)) == sum(map(is_doubled, rows)) == expected > 0


@pytest.mark.real
def test_a_published_tokenizer_gives_no_warning_on_ordinary_rows(
    smollm2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for rows in (tiny_text_dataset(4), tiny_prompt_completion_dataset(4), tiny_messages_dataset(4)):
        tokens_of(rows, tokenizer)
    assert warnings_of(caplog) == []


# --- the end token ---------------------------------------------------------------------------------------------------


def test_padded_rows_with_labels_are_measured_as_rows_without_padding() -> None:
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_text_dataset(3)["text"]]
    plain = [{"input_ids": row, "labels": row} for row in ids]
    hidden = [padded(row, list(range(2, 2 + len(row["input_ids"]))), 90) for row in plain]
    original, new = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    reports = [
        forgetting_report(new, original, TOKENIZER, target=Dataset.from_list(rows), show_progress=False).to_dict()
        for rows in (hidden, plain)
    ]
    assert reports[0] == reports[1]


def test_rows_whose_template_marks_no_token_of_the_assistant_are_named() -> None:
    marks = copy.deepcopy(TOKENIZER)
    marks.chat_template = CHAT_TEMPLATE.replace("'assistant' %}", "'assistant' and message['content'] != 'Ho' %}", 1)
    rows = Dataset.from_list([{"messages": [user("Hi"), bot(text)]} for text in ("Yes", "Ho", "No")])
    assert len(tokens_of(rows, marks)) == 3
    with pytest.raises(RowError, match="the chat template marks none in this row") as caught:
        tokens_of(rows, marks, assistant_only_loss=True)
    assert (caught.value.row_index, caught.value.column) == (1, "messages")


@both_forms
def test_without_an_end_token_texts_are_refused_and_nothing_else(make: Any) -> None:
    bare = copy.deepcopy(TOKENIZER)
    bare.eos_token = None
    for rows in ([{"text": "Hi"}], [{"prompt": "Hi", "completion": " Ho"}]):
        with pytest.raises(ValueError, match=r"The tokenizer has no end token.*pass eos_token in the config or set"):
            tokens_of(make(rows), bare)
    with pytest.raises(ValueError, match="The tokenizer has no end token"):
        prepare_sft_rows(make([{"a": "Hi"}]), bare, config(), formatting_func=lambda row: row["a"])
    for rows in ([{"messages": [user("Hi"), bot("Ho")]}], [{"input_ids": [5, 6]}]):
        assert len(tokens_of(make(rows), bare)) == 1
    named = tokens_of(make([{"text": "Hi"}]), bare, eos_token="<|im_end|>")
    assert named == tokens_of(make([{"text": "Hi"}])), "the config's end token was not used"
    assert bare.eos_token is None, "the user's tokenizer was changed"
    bare.pad_token = None
    turns = tiny_messages_dataset(2)
    for trainer_class, args in ((WeightedSFTTrainer, WeightedSFTConfig), (InfoPOTrainer, InfoPOConfig)):
        with pytest.raises(ValueError, match="The tokenizer has no end token and no padding token"):
            trainer_class(tiny_model(8), args=config(args), train_dataset=turns, processing_class=bare)
    scores = [add_original_losses(turns, tiny_model(TOKENIZER), known) for known in (bare, TOKENIZER)]
    assert scores[0]["original_nll_sum"][:] == scores[1]["original_nll_sum"][:]
    with pytest.raises(ValueError, match="eos_token='<end>' is not in the tokenizer's vocabulary"):
        tokens_of(make([{"text": "Hi"}]), bare, eos_token="<end>")


# --- templates that raise --------------------------------------------------------------------------------------------

STRICT = (
    "{%- for message in messages %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant.') }}{%- endif %}{%- endfor %}"
) + CHAT_TEMPLATE


def rows_of_messages(form: str, bad: bool) -> dict[str, Any]:
    turns = [user("Hi"), user("Hi?")] if bad else [user("Hi")]
    if form == "prompt_completion":
        return {"prompt": turns, "completion": [bot("Ho")]}
    if form == "messages":
        return {"messages": [*turns, bot("Ho")]}
    return {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in (*turns, bot("Ho"))]}


@both_forms
@pytest.mark.parametrize("form", ["messages", "prompt_completion", "conversations"])
def test_rows_that_the_template_does_not_take_are_named_and_dropped(form: str, make: Any, tmp_path: Path) -> None:
    if make is FORMS["stream"]:  # the host rewrites 'from' in place, and must not meet the same objects again

        def make(rows: list[dict[str, Any]]) -> IterableDataset:
            return IterableDataset.from_generator(lambda: (copy.deepcopy(row) for row in rows))

    strict = copy.deepcopy(TOKENIZER)
    strict.chat_template = STRICT
    rows = [rows_of_messages(form, bad=i in (2, 3)) for i in range(5)]
    with pytest.raises(
        RowError, match=r"row 2.*the chat template does not take this row: .*roles must alternate"
    ) as caught:
        tokens_of(make(rows), strict)
    column = "prompt" if form == "prompt_completion" else "messages"  # which `conversations` have become
    assert (caught.value.row_index, caught.value.column) == (2, column)
    args = config()
    args.on_bad_row, args.bad_rows_path = "drop", str(tmp_path / "bad.jsonl")
    kept = list(prepare_sft_rows(make(rows), strict, args))
    good = [rows_of_messages(form, bad=False)] * 3
    assert [row["input_ids"] for row in kept] == [row["input_ids"] for row in tokens_of(make(good), strict)]
    written = [json.loads(line) for line in Path(args.bad_rows_path).read_text(encoding="utf-8").splitlines()]
    assert [entry["row_index"] for entry in written] == [2, 3]


def test_a_template_that_fails_in_another_way_or_process_is_named_too() -> None:
    broken = copy.deepcopy(TOKENIZER)
    broken.chat_template = (
        "{% for m in messages %}{{ m['content'] + m.get('name', 'x').upper.first.second }}{% endfor %}"
    )
    with pytest.raises(RowError, match=r"row 0, column 'messages': .*UndefinedError"):
        tokens_of(tiny_messages_dataset(4), broken, dataset_num_proc=2)
    broken.chat_template = STRICT
    rows = [rows_of_messages("messages", bad=True)] * 3
    with pytest.raises(RowError, match="2 more bad rows"):
        tokens_of(Dataset.from_list(rows), broken)
    args = config()
    args.on_bad_row, args.bad_rows_path = "drop", "/dev/null"
    with pytest.raises(ValueError, match="Every one of the 3 rows of the train dataset is bad; the first: row 0"):
        prepare_sft_rows(Dataset.from_list(rows), broken, args)
