"""
Columns of chat messages and tools as they were before Arrow held them.

Arrow gives every dict of a column the keys of all others, and fills them with null: a call with `{"city": "Graz"}`
becomes one with `{"city": "Graz", "a": null, "b": null}`, every message has a `tool_calls`, and a chat template
writes down what nobody said.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, Features, Json, List, Value

from hf_ext._columns import column_names
from hf_ext._upstream.rows import AnyDataset
from hf_ext.guards.arrow_checks import filled_rows

logger = logging.getLogger(__name__)

BATCH_SIZE = 10_000
FIRST_ROWS = 100
ARGUMENTS = (("tool_calls", "function", "arguments"), ("tool_calls", "arguments"))  # where a message has them
MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
CHAT_COLUMNS = (*MESSAGE_COLUMNS, "tools", "chat_template_kwargs")
LOSS_KEYS = ("weight", "train", "training", "loss_mask")  # by which other trainers leave turns out of the loss


@dataclass(frozen=True)
class WithoutFilledNulls:
    """
    Leave out what is null in the dicts of some columns, but for a message's `content`.

    A template may ask whether a message's `content` is none. Values of the type `Json` are as they were written and
    stay so.

    Args:
        features (`dict`): of each column, its feature where it is known; such columns are lists of dicts, or dicts.
    """

    features: dict[str, Any]
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Clean one row."""
        return {
            name: without_nulls(row[name], feature, ("content",) if name in MESSAGE_COLUMNS else ())
            for name, feature in self.features.items()
            if name in row
        }


def without_nulls(value: object, feature: object = None, stay: tuple[str, ...] = ()) -> Any:
    """A value without the null entries of its dicts; those of the outermost dicts under a key of `stay` are left."""
    if isinstance(feature, Json):
        return value
    if isinstance(value, dict):
        inner = feature if isinstance(feature, dict) else {}
        return {key: without_nulls(v, inner.get(key)) for key, v in value.items() if v is not None or key in stay}
    if isinstance(value, list):
        of_entry = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
        return [without_nulls(entry, of_entry, stay) for entry in value]
    return value


def without_filled_nulls(dataset: AnyDataset, dataset_name: str, num_proc: int | None = None) -> AnyDataset:
    """
    Chat rows without the keys that Arrow filled with null; a warning counts rows of which tool arguments were filled.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of one data type.
        dataset_name (`str`):
            Used in messages.
        num_proc (`int`, *optional*):
            Processes of `map`; not for streams.

    Returns:
        The same kind of dataset. In a `Dataset`, columns that may hold such keys become lists of `Json`, which Arrow
        does not fill.
    """
    names = [name for name in CHAT_COLUMNS if name in column_names(dataset)]
    features = dict.fromkeys(names)  # of a stream that does not tell its features, any may hold such keys
    if dataset.features is not None:
        features = {name: dataset.features[name] for name in names if _has_optional(dataset.features[name])}
    if not features:
        return dataset
    _warn_of_arguments(dataset, [name for name in features if name in MESSAGE_COLUMNS], dataset_name)
    clean = WithoutFilledNulls(features)
    if not isinstance(dataset, Dataset):
        return dataset.map(clean)
    json_features = {name: Json() if isinstance(feature, dict) else List(Json()) for name, feature in features.items()}
    desc = f"Cleaning chat columns of {dataset_name} dataset"
    return dataset.map(clean, features=Features(dataset.features | json_features), desc=desc, num_proc=num_proc)


def _has_optional(feature: object) -> bool:
    """Whether dicts of a column may have keys that not every one of them was written with."""
    entry = getattr(feature, "feature", feature)
    if not isinstance(entry, dict):
        return False  # strings, or Json
    return set(entry) != {"role", "content"} or not isinstance(entry["content"], Value)


def _warn_of_arguments(dataset: AnyDataset, columns: list[str], dataset_name: str) -> None:
    count = 0
    if isinstance(dataset, Dataset) and columns:
        for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_SIZE):
            masks = [filled_rows(table.column(name).combine_chunks(), keys) for name in columns for keys in ARGUMENTS]
            count += int(np.any(masks, axis=0).sum())
    elif columns:  # a stream is not read twice: its first rows tell
        for row in islice(dataset, FIRST_ROWS):
            count += any(_has_null(row[name], keys) for name in columns for keys in ARGUMENTS)
    if count:
        logger.warning(
            "%s rows of the %s dataset%s have tool calls with null arguments, which are left out of the text: Arrow "
            "gives every call the arguments of all others, as null. Where a null is meant, load the rows with "
            'on_mixed_types="use_json", or with datasets.Json() as the type of the arguments.',
            f"{count:,}", dataset_name, "" if isinstance(dataset, Dataset) else f" (of the first {FIRST_ROWS})",
        )  # fmt: skip


def warn_of_unread_parts(dataset: AnyDataset, chat_template: str | None, dataset_name: str) -> None:
    """Say which parts of chat rows the chat template does not read, as far as the first rows have them."""
    names = column_names(dataset)
    columns = [name for name in MESSAGE_COLUMNS if name in names]
    rows = list(islice(dataset, FIRST_ROWS)) if columns else []
    turns = [(name, row[name]) for row in rows for name in columns if isinstance(row[name], list)]
    messages = [(name, message) for name, turn in turns for message in turn if isinstance(message, dict)]
    template = str(chat_template)
    if "tool_calls" not in template and any(message.get("tool_calls") for _, message in messages):
        logger.warning(
            "Messages of the %s dataset have 'tool_calls', and the chat template does not mention them: the calls are "
            "not in the text. Set chat_template_path to a template that writes them, or write them into 'content'.",
            dataset_name,
        )
    for key in LOSS_KEYS:
        if any(message.get(key) is not None for _, message in messages) and key not in template:
            logger.warning(
                "Messages of the %s dataset have %r, which nobody reads: it leaves no turn out of the loss. Set "
                "assistant_only_loss=True, or put what is not to be learned into 'prompt' and the rest into "
                "'completion'.",
                dataset_name, key,
            )  # fmt: skip
    has_system = any(message.get("role") == "system" for _, message in messages)
    if not has_system and any(isinstance(row.get("system"), str) and row["system"] for row in rows):
        logger.warning(
            "The %s dataset has a column 'system' beside %r, which nobody reads. Put its text into the messages, "
            'first: {"role": "system", "content": ...}.',
            dataset_name, messages[0][0] if messages else columns[0],
        )  # fmt: skip


def _has_null(value: object, keys: tuple[str, ...]) -> bool:
    """Whether a dict under `keys`, through lists and dicts, or a dict inside of it, has a null entry."""
    if isinstance(value, list):
        return any(_has_null(entry, keys) for entry in value)
    if not isinstance(value, dict):
        return False
    if keys:
        return _has_null(value.get(keys[0]), keys[1:])
    return any(entry is None or _has_null(entry, ()) for entry in value.values())
