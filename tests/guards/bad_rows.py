"""Every kind of bad row, beside a good twin that passes: the table behind the tests of the row checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

NAN, INF = math.nan, math.inf


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def bot(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def turn(speaker: Any, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


TEXT = {"text": "Ada counts apples.", "title": "On boats"}
TURNS = {"prompt": "Why is the sky blue?", "completion": "Because of scattering."}
CHAT_TURNS = {"prompt": [user("Why is the sky blue?")], "completion": [bot("Because of scattering.")]}
CHAT = {"messages": [user("Why is the sky blue?"), bot("Because of scattering.")]}
SHARE = {"conversations": [turn("human", "Why is the sky blue?"), turn("assistant", "Because of scattering.")]}
IDS = {"input_ids": [5, 6, 7], "title": "On boats"}
TITLED_CHAT, TITLED_SHARE = CHAT | {"title": "On boats"}, SHARE | {"title": "On boats"}
HEAVY_TEXT, HEAVY_TURNS = TEXT | {"weight": 1.0}, TURNS | {"weight": [1.0]}
LABELLED = IDS | {"labels": [-100, 6, 7]}
TWO_TURNS = [turn("human", "Why is the sky blue?"), turn("gpt", "Because of scattering.")]

TITLE, SKY = "title: 'On boats'", "prompt: 'Why is the sky blue?'"
MESSAGES, SHARED, FIRST_TEXT = (
    "messages: 'Why is the sky blue?'",
    "conversations: 'Why is the sky blue?'",
    "text: 'Ada",
)


@dataclass(frozen=True)
class Case:
    """A good row, what makes it bad, what makes it a twin that passes, and what the error must say."""

    name: str
    base: dict[str, Any]
    bad: dict[str, Any]
    twin: dict[str, Any]
    column: str
    problem: str
    excerpt: str
    options: dict[str, Any] = field(default_factory=dict)
    wide: bool = False  # Arrow gives all rows of a Dataset the bad row's type, so row 0 is the first bad one


ASSISTANT = {"assistant_only_loss": True}

CASES = [
    # text
    Case("text None", TEXT, {"text": None}, {"text": " "}, "text", "found None", TITLE),
    Case("text empty", TEXT, {"text": ""}, {"text": "\n"}, "text", "found an empty string", TITLE),
    Case("text int", TEXT, {"text": 7}, {"text": "7"}, "text", "found int 7", TITLE),
    Case("text list", TEXT, {"text": ["a"]}, {"text": "a"}, "text", "found list ['a']", TITLE),
    Case(
        "named text field None", {"story": "Once.", "title": "On boats"}, {"story": None}, {"story": "."}, "story",
        "found None", TITLE, {"dataset_text_field": "story"},
    ),
    # prompt-completion, strings
    Case("prompt None", TURNS, {"prompt": None}, {"prompt": ""}, "prompt", "found None", "completion: 'Because"),
    Case("prompt int", TURNS, {"prompt": 3}, {"prompt": "3"}, "prompt", "found int 3", "completion: 'Because"),
    Case("completion None", TURNS, {"completion": None}, {"completion": " "}, "completion", "found None", SKY),
    Case("completion empty", TURNS, {"completion": ""}, {"completion": "."}, "completion", "an empty string", SKY),
    Case("completion bool", TURNS, {"completion": True}, {"completion": "True"}, "completion", "found bool True", SKY),
    Case(
        "string prompt, messages completion", TURNS, {"completion": [bot("No.")]}, {"completion": "No."}, "completion",
        "expected a non-empty string, found list", SKY,
    ),
    # prompt-completion, messages
    Case(
        "chat prompt None", CHAT_TURNS, {"prompt": None}, {"prompt": [user("Hm?")]}, "prompt", "found None",
        "completion: 'Because",
    ),
    Case(
        "chat prompt empty", CHAT_TURNS, {"prompt": []}, {"prompt": [user("Hm?")]}, "prompt", "found an empty list",
        "completion: 'Because",
    ),
    Case(
        "chat prompt is a string", CHAT_TURNS, {"prompt": "Hm?"}, {"prompt": [user("Hm?")]}, "prompt",
        "expected a list of messages", "completion: 'Because",
    ),
    Case(
        "chat completion None", CHAT_TURNS, {"completion": None}, {"completion": [bot("No.")]}, "completion",
        "found None", SKY,
    ),
    Case(
        "chat completion empty", CHAT_TURNS, {"completion": []}, {"completion": [bot("No.")]}, "completion",
        "found an empty list", SKY,
    ),
    Case(
        "chat completion without content", CHAT_TURNS, {"completion": [bot("")]}, {"completion": [bot(" ")]},
        "completion", "every message's 'content' is an empty string", SKY,
    ),
    Case(
        "chat completion content None", CHAT_TURNS, {"completion": [bot(None)]},
        {"completion": [bot(None) | {"tool_calls": [{"name": "look"}]}]}, "completion",
        "'content' is missing or None", SKY,
    ),
    Case(
        "chat completion not the assistant's", CHAT_TURNS, {"completion": [user("No.")]}, {"completion": [bot("No.")]},
        "completion", "found only 'user'", SKY, ASSISTANT,
    ),
    # messages
    Case("messages None", TITLED_CHAT, {"messages": None}, {}, "messages", "found None", TITLE),
    Case("messages empty", TITLED_CHAT, {"messages": []}, {}, "messages", "found an empty list", TITLE),
    Case(
        "messages string", TITLED_CHAT, {"messages": "Why?"}, {"messages": [user("Why?")]}, "messages",
        "found str 'Why?'", TITLE,
    ),
    Case(
        "message None", CHAT, {"messages": [user("Why is the sky blue?"), None]}, {}, "messages",
        "message 1: expected a dict with 'role' and 'content', found None", MESSAGES,
    ),
    Case(
        "message string", CHAT, {"messages": [user("Why is the sky blue?"), "Because."]}, {}, "messages",
        "message 1: expected a dict with 'role' and 'content', found str 'Because.'", "messages:",
    ),
    Case(
        "role missing", CHAT, {"messages": [user("Why is the sky blue?"), {"content": "No."}]},
        {"messages": [user("Why?"), {"role": "critic", "content": "No."}]}, "messages",
        "message 1: expected a string under 'role', found None", MESSAGES,
    ),
    Case(
        "role empty", CHAT, {"messages": [{"role": "", "content": "Why is the sky blue?"}]}, {}, "messages",
        "message 0: expected a string under 'role', found an empty string", MESSAGES,
    ),
    Case(
        "content missing", CHAT, {"messages": [user("Why is the sky blue?"), {"role": "assistant"}]},
        {"messages": [user("Why?"), bot(None) | {"tool_calls": [{"name": "look"}]}, bot("No.")]}, "messages",
        "message 1: 'content' is missing or None, and the message has no 'tool_calls'", MESSAGES,
    ),
    Case(
        "content int", CHAT, {"messages": [user("Why is the sky blue?"), bot(42)]},
        {"messages": [user("Why?"), bot("42")]}, "messages",
        "message 1: 'content' must be a string or a list of parts, found int 42", MESSAGES,
    ),
    Case(
        "content part without type", CHAT, {"messages": [user([{"text": "Why is the sky blue?"}]), bot("No.")]},
        {"messages": [user([{"type": "text", "text": "Why?"}]), bot("No.")]}, "messages",
        "message 0: 'content' must hold parts with a 'type'", MESSAGES,
    ),
    Case(
        "every content empty", TITLED_CHAT, {"messages": [user(""), bot("")]},
        {"messages": [user(""), bot("No.")]}, "messages", "every message's 'content' is an empty string", TITLE,
    ),
    Case(
        "no assistant message", CHAT, {"messages": [user("Why is the sky blue?")]}, {"messages": [bot("No.")]},
        "messages", "assistant_only_loss needs a message of 'assistant', found only 'user'", MESSAGES, ASSISTANT,
    ),
    Case(
        "tools not JSON", CHAT | {"tools": "[]"}, {"tools": "look("}, {"tools": '[{"name": "look"}]'}, "tools",
        "expected a list of tools or JSON of one, found str 'look('", MESSAGES,
    ),
    Case(
        "template arguments None", CHAT | {"chat_template_kwargs": {"thinking": True}}, {"chat_template_kwargs": None},
        {"chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs", "expected a dict, found None", MESSAGES,
    ),
    # conversations
    Case("conversations None", TITLED_SHARE, {"conversations": None}, {}, "conversations", "None", TITLE),
    Case("conversations empty", TITLED_SHARE, {"conversations": []}, {}, "conversations", "empty", TITLE),
    Case(
        "from missing", SHARE, {"conversations": [{"value": "Why is the sky blue?"}]}, {}, "conversations",
        "message 0: expected a string under 'from', found None", SHARED,
    ),
    Case(
        "value None", SHARE, {"conversations": [turn("human", "Why is the sky blue?"), turn("assistant", None)]}, {},
        "conversations", "message 1: 'value' is missing or None", SHARED,
    ),
    Case(
        "role and content under conversations", SHARE, {"conversations": [user("Why is the sky blue?")]}, {},
        "conversations", "message 0: expected a string under 'from'", SHARED,
    ),
    Case(
        "nobody speaks for the assistant", SHARE, {"conversations": TWO_TURNS[:1]}, {"conversations": TWO_TURNS},
        "conversations", "found only 'human'", SHARED, ASSISTANT,
    ),
    Case(
        "speaker without a role", SHARE, {"conversations": [turn("narrator", "Why is the sky blue?"), *TWO_TURNS]},
        {"conversations": TWO_TURNS}, "conversations", "message 0: no role is known for the speaker 'narrator'",
        SHARED,
    ),
    Case(
        "function_call is no JSON", SHARE, {"conversations": [*TWO_TURNS, turn("function_call", "look it up")]},
        {"conversations": [*TWO_TURNS, turn("function_call", '{"name": "look"}')]}, "conversations",
        "message 2: 'function_call' needs JSON of {'name': ..., 'arguments': ...}, found str", SHARED,
    ),
    # pretokenised
    Case("input_ids None", IDS, {"input_ids": None}, {"input_ids": [0]}, "input_ids", "found None", TITLE),
    Case("input_ids empty", IDS, {"input_ids": []}, {"input_ids": [0]}, "input_ids", "found an empty list", TITLE),
    Case(
        "input_ids floats", IDS, {"input_ids": [5.5, 6.0]}, {"input_ids": [5, 6]}, "input_ids",
        "entry 0: expected an integer, found float", TITLE, wide=True,
    ),
    Case(
        "input_ids negative", IDS, {"input_ids": [5, -1]}, {"input_ids": [5, 0]}, "input_ids",
        "entry 1: expected an integer >= 0, found -1", TITLE,
    ),
    Case(
        "input_ids entry None", IDS, {"input_ids": [5, None]}, {"input_ids": [5, 5]}, "input_ids",
        "entry 1: expected an integer, found None", TITLE,
    ),
    Case("input_ids int", IDS, {"input_ids": 5}, {"input_ids": [5]}, "input_ids", "found int 5", TITLE),
    Case("labels None", LABELLED, {"labels": None}, {"labels": [5, 6, 7]}, "labels", "found None", TITLE),
    Case(
        "labels too short", LABELLED, {"labels": [5, 6]}, {"labels": [5, 6, -100]}, "labels",
        "labels has 2 entries, row has 3 tokens", TITLE,
    ),
    Case(
        "labels negative", LABELLED, {"labels": [5, -1, 7]}, {"labels": [5, -100, 7]}, "labels",
        "entry 1: expected an integer >= 0 or -100, found -1", TITLE,
    ),
    Case(
        "labels entry None", LABELLED, {"labels": [5, None, 7]}, {"labels": [5, 0, 7]}, "labels",
        "entry 1: expected an integer, found None", TITLE,
    ),
    Case(
        "labels supervise nothing", LABELLED, {"labels": [5, -100, -100]}, {"labels": [-100, -100, 7]}, "labels",
        "no supervised token", TITLE,
    ),
    Case(
        "completion mask too long", IDS | {"completion_mask": [0, 1, 1]}, {"completion_mask": [0, 1, 1, 1]},
        {"completion_mask": [0, 0, 1]}, "completion_mask", "completion_mask has 4 entries, row has 3 tokens", TITLE,
    ),
    Case(
        "completion mask of 2", IDS | {"completion_mask": [0, 1, 1]}, {"completion_mask": [0, 1, 2]},
        {"completion_mask": [1, 1, 1]}, "completion_mask", "expected 0 or 1 in every entry, found 2", TITLE,
    ),
    Case(
        "completion mask of -100", IDS | {"completion_mask": [0, 1, 1]}, {"completion_mask": [-100, 1, 1]},
        {"completion_mask": [0, 0, 0]}, "completion_mask", "entry 0: expected an integer >= 0, found -100", TITLE,
    ),
    Case(
        "assistant mask None", IDS | {"assistant_masks": [0, 1, 1]}, {"assistant_masks": None}, {}, "assistant_masks",
        "found None", TITLE,
    ),
    Case(
        "attention mask too short", IDS | {"attention_mask": [1, 1, 0]}, {"attention_mask": [1, 1]},
        {"attention_mask": [0, 1, 1]}, "attention_mask", "attention_mask has 2 entries, row has 3 tokens", TITLE,
    ),
    Case(
        "attention mask of zeros", IDS | {"attention_mask": [1, 1, 1]}, {"attention_mask": [0, 0, 0]},
        {"attention_mask": [0, 0, 1]}, "attention_mask", "every entry is 0, so the row has no token", TITLE,
    ),
    Case(
        "attention mask of document numbers", IDS | {"attention_mask": [1, 1, 1]}, {"attention_mask": [1, 2, 2]},
        {"attention_mask": [1, 1, 0]}, "attention_mask", "expected 0 or 1 in every entry, found 2", TITLE,
    ),
    # weight
    Case("weight None", HEAVY_TEXT, {"weight": None}, {"weight": 0.0}, "weight", "found None", FIRST_TEXT),
    Case("weight NaN", HEAVY_TEXT, {"weight": NAN}, {"weight": 0.5}, "weight", "found nan", FIRST_TEXT),
    Case("weight inf", HEAVY_TEXT, {"weight": INF}, {"weight": 1e30}, "weight", "found inf", FIRST_TEXT),
    Case("weight negative", HEAVY_TEXT, {"weight": -0.5}, {"weight": -0.0}, "weight", "found -0.5", FIRST_TEXT),
    Case("weight string", HEAVY_TEXT, {"weight": "high"}, {}, "weight", "found str 'high'", FIRST_TEXT),
    Case("weight bool", TEXT | {"weight": 1}, {"weight": True}, {"weight": 1}, "weight", "bool True", FIRST_TEXT),
    Case("weight list empty", HEAVY_TURNS, {"weight": []}, {"weight": [0.0]}, "weight", "empty list", SKY),
    Case("weight list NaN", HEAVY_TURNS, {"weight": [1.0, NAN]}, {}, "weight", "entry 1", SKY),
    Case("weight list negative", HEAVY_TURNS, {"weight": [-1.0]}, {}, "weight", "entry 0", SKY),
    Case("weight list None", HEAVY_TURNS, {"weight": [0.5, None]}, {}, "weight", "entry 1", SKY),
    Case(
        "weight list too short", IDS | {"weight": [1.0, 1.0, 0.5]}, {"weight": [1.0, 0.5]}, {"weight": [0.0] * 3},
        "weight", "weight has 2 entries, row has 3 tokens", TITLE,
    ),
    Case("weight of messages inf", CHAT | {"weight": 1.0}, {"weight": INF}, {}, "weight", "found inf", MESSAGES),
    Case("weight of chat turns NaN", CHAT_TURNS | {"weight": 1.0}, {"weight": NAN}, {}, "weight", "found nan", SKY),
    Case(
        "weight beside a formatting function", {"title": "On boats", "weight": 1.0}, {"weight": NAN}, {}, "weight",
        "found nan", TITLE, {"formatting_func": str},
    ),
]  # fmt: skip


def as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of mixed types
        return Dataset.from_list(rows, on_mixed_types="use_json")


def as_stream(rows: list[dict[str, Any]]) -> IterableDataset:
    def generate():
        yield from rows

    return IterableDataset.from_generator(generate)


FORMS = {"dataset": as_dataset, "stream": as_stream}


def bad_rows_of(case: Case) -> list[dict[str, Any]]:
    return [case.base, case.base, case.base | case.bad, case.base]
