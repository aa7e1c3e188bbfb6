"""Raw SFT rows as the host may see them: one data type, the speakers of ShareGPT, nothing that Arrow filled in."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX
from hf_ext.data.host_rows import host_rows
from hf_ext.data.weighting import add_original_losses, prepare_sft_rows
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_messages_dataset, tiny_model, tiny_prompt_completion_dataset, tiny_text_dataset
from tests.trainers.runs import TOKENIZER

# Writes what a message has, and nothing for what it has not: a key that is there as null is written.
TOOL_TEMPLATE = (
    "{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['content'] %}{{- m['content'] }}{%- endif %}"
    "{%- if 'name' in m %}{{- '(' ~ m['name'] ~ ')' }}{%- endif %}"
    "{%- if 'tool_calls' in m %}{%- for call in m['tool_calls'] %}"
    "{{- call['function']['name'] + (call['function']['arguments'] | tojson) }}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
)
STREAM = {"dataset": lambda rows: rows, "stream": lambda rows: rows.to_iterable_dataset()}
every_form = pytest.mark.parametrize("form", STREAM)


def config(**settings: Any) -> SFTConfig:
    return SFTConfig("unused", report_to="none", bf16=False, use_cpu=True, **settings)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def bot(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOL_ROWS = [
    {
        "messages": [user("W?"), call("weather", city="Graz", at={"day": 1}), {"role": "tool", "content": "sun"}],
        "tools": [tool("weather", city={"type": "string"})],
    },
    {
        "messages": [user("Add"), call("add", a=1, b=2), {"role": "tool", "content": "3", "name": "add"}],
        "tools": [tool("add", a={"type": "integer"}, b={"type": "integer"})],
    },
    {"messages": [user("Hi"), bot("Yo")], "tools": []},
]


@pytest.fixture
def tool_tokenizer() -> Any:
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


def ids_of(rows: Any) -> list[list[int]]:
    return [list(row["input_ids"]) for row in rows]


@pytest.mark.parametrize("form", ["dataset", "stream", "json", "generator"])
def test_tool_calls_are_the_tokens_of_the_dicts_they_were_written_as(
    form: str, tool_tokenizer: Any, caplog: Any
) -> None:
    wanted = [
        tool_tokenizer.apply_chat_template(row["messages"], tools=row["tools"] or None, return_dict=True)["input_ids"]
        for row in TOOL_ROWS
    ]
    if form == "json":
        rows: Any = Dataset.from_list(TOOL_ROWS, on_mixed_types="use_json")
    elif form == "generator":
        rows = IterableDataset.from_generator(lambda: iter(TOOL_ROWS))
    else:
        rows = STREAM[form](Dataset.from_list(TOOL_ROWS))
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        assert ids_of(prepare_sft_rows(rows, tool_tokenizer, config())) == wanted
    said = [text for text in caplog.messages if "null arguments" in text]
    assert len(said) == (form in STREAM), "said once, and only where Arrow filled something in"
    assert all(text.startswith("2 rows of the train dataset") for text in said)


def test_a_null_that_was_written_stays_where_the_type_is_json(tool_tokenizer: Any) -> None:
    rows = [{"messages": [user("W?"), call("weather", city=None)]}, {"messages": [user("Add"), call("add", a=1)]}]
    prepared = prepare_sft_rows(Dataset.from_list(rows, on_mixed_types="use_json"), tool_tokenizer, config())
    assert 'weather{"city": null}' in tool_tokenizer.decode(prepared[0]["input_ids"])
    assert 'add{"a": 1}' in tool_tokenizer.decode(prepared[1]["input_ids"])


@every_form
def test_marks_of_turns_and_a_system_column_that_nobody_reads_are_said_once(form: str, caplog: Any) -> None:
    turns = [user("Hi"), bot("Ho") | {"weight": 0}, user("And?"), bot("Yes") | {"weight": 1}]
    rows = Dataset.from_list([{"messages": turns, "system": "Be kind."}] * 3)
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "weight": 1}]
    speakers = Dataset.from_list([{"conversations": sharegpt, "system": "Be kind."}] * 3)
    told = [{"messages": [{"role": "system", "content": "Be kind."}, user("Hi"), bot("Ho")], "system": "Be kind."}]
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        for dataset in (rows, speakers):
            prepare_sft_rows(STREAM[form](dataset), TOKENIZER, config())
        prepare_sft_rows(STREAM[form](Dataset.from_list(told)), TOKENIZER, config())
    unread = [text for text in caplog.messages if "nobody reads" in text]
    assert ["'weight'" in text for text in unread] == [True, False] * 2
    assert ["column 'system'" in text for text in unread] == [False, True] * 2


def test_calls_that_the_template_does_not_write_are_said(caplog: Any) -> None:
    rows = Dataset.from_list([{"messages": [user("W?"), call("weather", city="Graz") | {"content": "I look."}]}])
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        prepare_sft_rows(rows, TOKENIZER, config())
        prepare_sft_rows(Dataset.from_list(WRITTEN), TOKENIZER, config(), dataset_name="without calls")
    assert [text.split(" have")[0] for text in caplog.messages] == ["Messages of the train dataset"]


SPOKEN = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello.")], [("human", "Ho"), ("gpt", "Yes, of course.")]
WRITTEN = [
    {"messages": [{"role": "system", "content": "Be kind."}, user("Hi"), bot("Hello.")]},
    {"messages": [user("Ho"), bot("Yes, of course.")]},
]


def sharegpt(turns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


@every_form
@pytest.mark.parametrize("masked", [False, True])
def test_sharegpt_rows_are_the_messages_they_mean(form: str, masked: bool) -> None:
    args = config(assistant_only_loss=masked)
    by_hand = prepare_sft_rows(Dataset.from_list(WRITTEN), TOKENIZER, args)
    spoken = STREAM[form](Dataset.from_list([sharegpt(turns) for turns in SPOKEN]))
    mapped = list(prepare_sft_rows(spoken, TOKENIZER, args))
    assert ids_of(mapped) == ids_of(by_hand)
    assert [row["labels"] for row in mapped] == by_hand["labels"][:]
    other = Dataset.from_list([{"conversations": row["messages"]} for row in WRITTEN])
    assert ids_of(prepare_sft_rows(STREAM[form](other), TOKENIZER, args)) == ids_of(by_hand)


def test_calls_and_observations_of_sharegpt_are_tool_calls_and_tool_messages(tool_tokenizer: Any) -> None:
    asked = json.dumps({"name": "weather", "arguments": {"city": "Graz"}})
    rows = [
        sharegpt([("human", "W?"), ("function_call", asked), ("observation", "sun"), ("gpt", "Sun.")]),
        sharegpt([("human", "Hi"), ("gpt", "Yo")]),
    ]
    written = [[user("W?"), call("weather", city="Graz"), {"role": "tool", "content": "sun"}, bot("Sun.")]]
    written.append([user("Hi"), bot("Yo")])
    wanted = [tool_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] for messages in written]
    assert ids_of(prepare_sft_rows(Dataset.from_list(rows), tool_tokenizer, config())) == wanted


@every_form
def test_an_unknown_speaker_is_a_bad_row(form: str, tmp_path: Any) -> None:
    rows = STREAM[form](Dataset.from_list([sharegpt(turns) for turns in (*SPOKEN, [("narrator", "Once.")])]))
    with pytest.raises(RowError, match=r"row 2, column 'conversations': message 0: no role .* 'narrator'"):
        list(prepare_sft_rows(rows, TOKENIZER, config()))


CHAT = [user("Hi"), bot("Hello.")]
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "messages beside strings": ({"prompt": "Hi ", "completion": "Yes."}, {"messages": CHAT}),
    "chosen and rejected": ({"prompt": "Hi ", "completion": "Yes."}, {"chosen": CHAT, "rejected": CHAT}),
    "completion beside messages": ({"messages": CHAT}, {"completion": "zz"}),
    "prompt beside messages": ({"messages": CHAT}, {"prompt": "zz"}),
    "text beside messages": ({"messages": CHAT}, {"text": "zz"}),
    "classes": ({"text": "Hi there."}, {"labels": 3, "label_ids": 1, "label": "good"}),
    "masks and lengths": ({"text": "Hi there."}, {"completion_mask": 1, "assistant_masks": 0, "seq_lengths": 7}),
    "tools without a template": ({"text": "Hi there."}, {"tools": "hammer", "chat_template_kwargs": "none"}),
}


@every_form
@pytest.mark.parametrize("case", BESIDE)
def test_columns_of_another_type_change_nothing_and_reach_no_host(case: str, form: str) -> None:
    columns, others = BESIDE[case]
    alone = Dataset.from_list([columns] * 2)
    beside = STREAM[form](Dataset.from_list([others | columns] * 2))
    reads = {"prompt", "completion", "messages", "chosen", "rejected", "text", "labels", "seq_lengths", "tools"}
    host = host_rows(beside, config(), None, "train")
    assert reads & set(next(iter(host))) == set(columns), "the host decides by the order of a set of these"
    prepared = list(prepare_sft_rows(beside, TOKENIZER, config()))
    wanted = prepare_sft_rows(alone, TOKENIZER, config())
    assert ids_of(prepared) == ids_of(wanted)
    assert [row["labels"] for row in prepared] == wanted["labels"][:]


def test_a_named_text_column_is_taken_before_other_types() -> None:
    rows = tiny_prompt_completion_dataset(2).add_column("answer", ["One.", "Two."])
    prepared = prepare_sft_rows(rows, TOKENIZER, config(dataset_text_field="answer"))
    assert [TOKENIZER.decode(ids) for ids in prepared["input_ids"]] == ["One.<|im_end|>", "Two.<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["row_index", "index", "idx", "id", "__index_level_0__", "labels", "messages", "_problem"]
)
def test_a_users_column_comes_out_beside_the_losses_of_its_own_row(name: str) -> None:
    rows = tiny_prompt_completion_dataset(6)
    numbered = rows.add_column(name, [100, 2, 2, 0, -5, 10**12])
    model = tiny_model(TOKENIZER)
    scored = add_original_losses(numbered, model, TOKENIZER, show_progress=False)
    plain = add_original_losses(rows, model, TOKENIZER, show_progress=False)
    assert scored.remove_columns(["original_nll_sum", "original_num_tokens"]).to_list() == numbered.to_list()
    assert scored["original_nll_sum"][:] == plain["original_nll_sum"][:]


def test_positions_of_an_earlier_check_do_not_pick_the_rows_that_are_scored() -> None:
    rows = tiny_prompt_completion_dataset(6)
    moved = rows.add_column(ROW_INDEX, [5, 5, 0, 9, 1, 2])
    scored = add_original_losses(moved, tiny_model(TOKENIZER), TOKENIZER, show_progress=False)
    assert scored["prompt"][:] == rows["prompt"][:]


# --- settings --------------------------------------------------------------------------------------------------------

UNUSED: dict[str, tuple[Dataset, dict[str, Any], str]] = {
    "completion_only on text": (tiny_text_dataset(2), {"completion_only_loss": True}, "'prompt' and 'completion'"),
    "completion_only on messages": (tiny_messages_dataset(2), {"completion_only_loss": True}, "Set assistant_only"),
    "assistant_only on text": (tiny_text_dataset(2), {"assistant_only_loss": True}, "only messages have a speaker"),
    "assistant_only on ids": (Dataset.from_dict({"input_ids": [[5, 6]]}), {"assistant_only_loss": True}, "masks"),
    "assistant_only on strings": (tiny_prompt_completion_dataset(2), {"assistant_only_loss": True}, "speaker"),
    "text field not there": (tiny_messages_dataset(2), {"dataset_text_field": "answer"}, "no such column"),
    "no token left": (tiny_text_dataset(2), {"max_length": 1}, "max_length must be at least 2"),
    "unknown truncation": (tiny_text_dataset(2), {"truncation_mode": "keep_ned"}, "'keep_start' or 'keep_end'"),
    "end kept in packs": (tiny_text_dataset(2), {"truncation_mode": "keep_end", "packing": True}, "no effect with"),
    "unread option": (tiny_text_dataset(2), {"dataset_kwargs": {"add_special_tokens": False}}, "does not read"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_a_setting_without_effect_on_the_train_rows_is_refused_by_name(case: str) -> None:
    rows, settings, words = UNUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        prepare_sft_rows(rows, TOKENIZER, config(**settings))
    assert next(iter(settings)) in str(caught.value)


def test_a_setting_for_the_train_rows_is_only_said_of_an_eval_set_of_another_type(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_ext"):
        rows = prepare_sft_rows(
            tiny_text_dataset(2), TOKENIZER, config(completion_only_loss=True), dataset_name="general"
        )
    assert len(rows) == 2
    assert [text for text in caplog.messages if "completion_only_loss=True has no effect on the general" in text]
