"""What a good row is: the rules for one row, in plain Python, for every data type TRL's `SFTTrainer` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.guards.row_text import describe, plain

IGNORED_LABEL = -100

# The speakers of ShareGPT rows, and the role of each in a chat template; any other name is refused.
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip
SHAREGPT_KEYS = ("from", "value")
MESSAGE_KEYS = ("role", "content")

DataType = Literal[
    "text", "messages", "conversations", "prompt_completion", "input_ids", "formatted", "preference",
    "unpaired_preference", "retrieval",
]  # fmt: skip
Role = Literal[
    "string", "messages", "ids", "labels", "mask", "attention", "weight", "free", "label", "row_weight", "number",
    "match",
]  # fmt: skip


class RowDefect(NamedTuple):
    """One defect of one row: the column it is in, and a sentence that says what was expected and what was found."""

    column: str
    problem: str


def number_problem(value: object) -> str | None:
    """Say why `value` is not a finite number >= 0, or `None` when it is one."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return f"expected a finite number >= 0, found {describe(value)}"
    if not math.isfinite(value):
        return f"expected a finite number >= 0, found {float(value)}"
    if value < 0:
        return f"expected a finite number >= 0, found {value}"
    return None


def weight_problem(weight: object, num_tokens: int | None) -> str | None:
    """Check a `weight`: one number a row, or a list with one number a token (`num_tokens`, where known)."""
    weight = plain(weight)
    if not isinstance(weight, list):
        return number_problem(weight)
    if num_tokens is not None and len(weight) != num_tokens:
        return f"weight has {len(weight):,} entries, row has {num_tokens:,} tokens"
    if not weight:
        return "expected a number or a list of numbers, found an empty list"
    return next((f"entry {i}: {p}" for i, value in enumerate(weight) if (p := number_problem(value))), None)


def _integers_problem(values: object, minimum: int, also: int | None = None) -> str | None:
    """Check a non-empty list of integers >= `minimum`, or equal to `also`."""
    if not isinstance(values, list) or not values:
        return f"expected a list of integers, found {describe(values)}"
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Integral):
            return f"entry {i}: expected an integer, found {describe(value)}"
        if value < minimum and value != also:
            extra = f" or {also}" if also is not None else ""
            return f"entry {i}: expected an integer >= {minimum}{extra}, found {value}"
    return None


def _content_problem(message: Mapping[str, Any], key: str) -> str | None:
    content = message.get(key)
    if isinstance(content, str):
        return None
    if content is None:
        if message.get("tool_calls"):  # a message that only calls tools has nothing to say
            return None
        return f"'{key}' is missing or None, and the message has no 'tool_calls'"
    if isinstance(content, list) and content:
        for part in content:
            if not isinstance(part, dict) or not part.get("type"):
                return f"{key!r} must hold parts with a 'type', found the part {describe(part)}"
        return None
    return f"'{key}' must be a string or a list of parts, found {describe(content)}"


def tool_calls_of(text: object) -> list[dict[str, Any]] | None:
    """
    The tool calls in the JSON that a `function_call` of ShareGPT rows holds; `None` where it holds none.

    Args:
        text (`object`): should be JSON of `{"name": ..., "arguments": {...}}`, or of a list of those.
    """
    try:
        calls = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        return None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or any(not isinstance(call, dict) or not isinstance(call.get("name"), str) for call in calls):
        return None
    return [{"type": "function", "function": {"arguments": {}} | call} for call in calls]


def _speaker_problem(message: Mapping[str, Any]) -> str | None:
    """Check the speaker of a message of ShareGPT rows."""
    speaker, text = (message[key] for key in SHAREGPT_KEYS)
    if speaker not in SHAREGPT_ROLES:
        return f"no role is known for the speaker {speaker!r}; known are {', '.join(map(repr, SHAREGPT_ROLES))}"
    if speaker == "function_call" and tool_calls_of(text) is None:
        return f"'function_call' needs JSON of {{'name': ..., 'arguments': ...}}, found {describe(text)}"
    return None


def messages_problem(messages: object, keys: tuple[str, str] = MESSAGE_KEYS) -> str | None:
    """Check a non-empty list of messages, each a dict with a speaker and a content under `keys`."""
    if not isinstance(messages, list):
        return f"expected a list of messages with {keys[0]!r} and {keys[1]!r}, found {describe(messages)}"
    if not messages:
        return "expected at least one message, found an empty list"
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"message {i}: expected a dict with {keys[0]!r} and {keys[1]!r}, found {describe(message)}"
        speaker = message.get(keys[0])
        if not isinstance(speaker, str) or not speaker:
            key_names = ", ".join(repr(key) for key in message) or "none"
            return f"message {i}: expected a string under {keys[0]!r}, found {describe(speaker)} (keys: {key_names})"
        problem = _content_problem(message, keys[1])
        if problem is None and keys == SHAREGPT_KEYS:
            problem = _speaker_problem(message)
        if problem:
            return f"message {i}: {problem}"
    if not any(message.get(keys[1]) or message.get("tool_calls") for message in messages):
        return f"every message's {keys[1]!r} is an empty string"
    return None


def string_problem(value: object, may_be_empty: bool = False) -> str | None:
    """Check a string; only a truly empty one is refused, never one of white space."""
    if not isinstance(value, str) or not (value or may_be_empty):
        return f"expected {'a' if may_be_empty else 'a non-empty'} string, found {describe(value)}"
    return None


@dataclass(frozen=True)
class RowRules:
    """
    The rules for the rows of one dataset; call it with a row to get its first defect, or `None`.

    Args:
        data_type (`str`):
            Which of TRL's data types the rows have; `"formatted"` when a `formatting_func` makes the text, so that
            only `weight` can be checked.
        conversational (`bool`):
            Whether prompt and completion are lists of messages (TRL decides this once, from the first row).
        text_field (`str`):
            Column of the text, for `data_type="text"`.
        assistant_only_loss (`bool`):
            Whether a conversational row must hold an assistant message.
        columns (`tuple[str, ...]`):
            Names of the dataset's columns, in order.
        keys (`tuple[str, str]`):
            Under which a message has its speaker and its content.
    """

    data_type: DataType
    conversational: bool
    text_field: str
    assistant_only_loss: bool
    columns: tuple[str, ...]
    keys: tuple[str, str] = field(default=MESSAGE_KEYS, kw_only=True)  # rules that inherit have fields without default

    @property
    def assistants(self) -> set[str]:
        """What the assistant may be called."""
        speakers = {speaker for speaker, role in SHAREGPT_ROLES.items() if role == "assistant"}
        return speakers if self.keys == SHAREGPT_KEYS else {"assistant"}

    def roles(self) -> dict[str, Role]:
        """Columns to check and the role each plays, in the order of checking."""
        turn: Role = "messages" if self.conversational else "string"
        roles: dict[DataType, dict[str, Role]] = {
            "text": {self.text_field: "string"},
            "messages": {"messages": "messages"},
            "conversations": {"conversations": "messages"},
            "prompt_completion": {"prompt": turn, "completion": turn},
            "input_ids": {"input_ids": "ids"},
            "formatted": {},
        }
        chosen = dict(roles[self.data_type])
        if self.data_type == "input_ids":
            optional: dict[str, Role] = {"labels": "labels", "completion_mask": "mask", "assistant_masks": "mask"}
            optional["attention_mask"] = "attention"
            chosen |= {name: role for name, role in optional.items() if name in self.columns}
        elif "messages" in chosen.values():  # both are for the chat template
            chosen |= {name: "free" for name in ("tools", "chat_template_kwargs") if name in self.columns}
        return chosen | ({"weight": "weight"} if "weight" in self.columns else {})

    def __call__(self, row: Mapping[str, Any], roles: Mapping[str, Role] | None = None) -> RowDefect | None:
        """Find the row's first defect; `roles`, where they are at hand, are [`roles`]."""
        for column, role in (roles or self.roles()).items():
            if column not in row and role != "free":
                return RowDefect(column, f"missing in this row; its columns are {', '.join(map(repr, row))}")
            if problem := self._column_problem(row, column, role):
                return RowDefect(column, problem)
        return self._turns_problem(row)

    def wrong_matches(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which labels of the role "match" say that a pair does not match; only retrieval rows have such."""
        return np.zeros(len(labels), dtype=bool)

    def _column_problem(self, row: Mapping[str, Any], column: str, role: Role) -> str | None:
        value = plain(row.get(column))
        if role == "messages":
            if isinstance(value, str) and self.data_type == "prompt_completion":
                return f"expected a list of messages as in the other turns, found {describe(value)}"
            return messages_problem(value, self.keys)
        if role == "string":
            return string_problem(value, may_be_empty=column == "prompt" and self.data_type == "prompt_completion")
        if role == "ids":
            return _integers_problem(value, minimum=0)
        if role in ("labels", "mask", "attention"):
            return self._aligned_problem(row, column, value, role)
        if role == "weight":
            ids = plain(row.get("input_ids")) if self.data_type == "input_ids" else None
            return weight_problem(value, len(ids) if isinstance(ids, list) else None)
        return _extra_problem(column, value)

    def _aligned_problem(self, row: Mapping[str, Any], column: str, value: Any, role: Role) -> str | None:
        if role == "attention" and isinstance(value, list):
            value = [int(entry) if isinstance(entry, bool) else entry for entry in value]
        problem = _integers_problem(value, minimum=0, also=IGNORED_LABEL if role == "labels" else None)
        if problem:
            return problem
        num_tokens = len(plain(row["input_ids"]))
        if len(value) != num_tokens:
            return f"{column} has {len(value):,} entries, row has {num_tokens:,} tokens"
        if role in ("mask", "attention"):
            wrong = next((entry for entry in value if entry > 1), None)
            if wrong is not None:
                return f"expected 0 or 1 in every entry, found {wrong}"
            return "every entry is 0, so the row has no token" if role == "attention" and not any(value) else None
        # the first label is never predicted, so it cannot be the only one
        if all(label == IGNORED_LABEL for label in value[1:]):
            return "no supervised token: every label after the first is -100"
        return None

    def _turns_problem(self, row: Mapping[str, Any]) -> RowDefect | None:
        """An assistant message must exist where only assistant tokens are learned from."""
        if not self.assistant_only_loss or "messages" not in self.roles().values():
            return None
        turns = [name for name, role in self.roles().items() if role == "messages"]
        speakers = [message[self.keys[0]] for name in turns for message in row[name]]
        if not self.assistants.isdisjoint(speakers):
            return None
        speaker_names = ", ".join(repr(speaker) for speaker in dict.fromkeys(speakers))
        return RowDefect(turns[-1], f"assistant_only_loss needs a message of 'assistant', found only {speaker_names}")


def _extra_problem(column: str, value: object) -> str | None:
    """`tools` (a list, or JSON of one) and `chat_template_kwargs` (a dict): TRL hands both to the chat template."""
    if column == "chat_template_kwargs":
        return None if isinstance(value, dict) else f"expected a dict, found {describe(value)}"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return f"expected a list of tools or JSON of one, found {describe(value)}"
    return None if value is None or isinstance(value, list) else f"expected a list of tools, found {describe(value)}"


def rules_for(
    columns: Iterable[str],
    first_rows: list[dict[str, Any]],
    *,
    text_field: str,
    assistant_only_loss: bool,
    formatted: bool,
) -> RowRules | RowDefect:
    """
    Choose the rules, and with them the data type: from the columns, and from what the first rows hold.

    Where the columns are of several types, the first of these counts: pretokenised, formatted, a text whose column was
    named (`text_field` is not `"text"`), prompt and completion, conversations, messages, text.

    Returns:
        [`RowRules`], or a [`RowDefect`] naming the missing column where the columns fit no data type.
    """
    names = tuple(columns)
    listing = ", ".join(map(repr, names)) or "none"
    data_type: DataType
    if "input_ids" in names:
        data_type = "input_ids"
    elif formatted:
        data_type = "formatted"
    elif text_field != "text" and text_field in names:
        data_type = "text"
    elif _is_prompt_completion(names, text_field):
        data_type = "prompt_completion"
        for missing, present in (("completion", "prompt"), ("prompt", "completion")):
            if missing not in names:
                message = f"this column is missing and {present!r} is there. The columns are {listing}"
                return RowDefect(missing, message)
    elif "conversations" in names and ("messages" not in names or _first_message_has(SHAREGPT_KEYS, first_rows)):
        data_type = "conversations"
    elif "messages" in names:
        data_type = "messages"
    elif text_field in names:
        data_type = "text"
    else:
        return RowDefect(
            text_field,
            f"this column is missing. The columns are {listing}; expected {text_field!r}, 'messages', 'prompt' with "
            "'completion', or 'input_ids'",
        )
    turns = (row.get(name) for row in first_rows for name in ("completion", "prompt"))
    first_turn = next((turn for turn in turns if isinstance(turn, str | list)), None)
    conversational = data_type == "prompt_completion" and isinstance(first_turn, list)
    is_sharegpt = data_type == "conversations" and not _first_message_has(MESSAGE_KEYS, first_rows)
    keys = SHAREGPT_KEYS if is_sharegpt else MESSAGE_KEYS
    return RowRules(data_type, conversational, text_field, assistant_only_loss, names, keys=keys)


def _is_prompt_completion(names: tuple[str, ...], text_field: str) -> bool:
    """Whether rows are of that type, complete or with a column missing; many chats have a `prompt` beside them."""
    if "prompt" in names and "completion" in names:
        return True
    chats = {"messages", "conversations"} & set(names)
    return not chats and ("prompt" in names or ("completion" in names and text_field not in names))


def _first_message_has(keys: tuple[str, str], first_rows: list[dict[str, Any]]) -> bool:
    """Whether the first message under `conversations` has these keys."""
    turns = (row.get("conversations") for row in first_rows)
    messages = next((turn for turn in turns if isinstance(turn, list) and turn), [None])
    # Arrow gives every message the keys of all others, as null
    return isinstance(messages[0], dict) and messages[0].get(keys[0]) is not None
