"""Preference pairs as single labelled responses, for the unpaired trainers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from hf_ext.guards.preference_rows import prompt_stands_in_dialogues
from hf_ext.guards.rows import RowError, beginning_of
from hf_ext.guards.tokens import SayOnce, say_count

AnyData = TypeVar("AnyData", Dataset, IterableDataset, DatasetDict, IterableDatasetDict)

PAIR_COLUMNS = ("chosen", "rejected")
REPLACED = (*PAIR_COLUMNS, "completion", "label")
NO_PROMPT = (
    "There is no column 'prompt', and the responses of {rows} of the {name} dataset share no beginning: their prompt "
    "is empty. Name the column of your prompts 'prompt', or put them at the beginning of both responses."
)
REPEATED_PROMPT = (
    "Both responses of {rows} of the {name} dataset begin with their prompt, which then stands twice. Take it out of "
    "the responses, or remove the column 'prompt': the beginning that they share is their prompt then."
)


@dataclass(frozen=True)
class PairsToUnpaired:
    """
    One pair becomes two rows: the chosen response labelled true, then the rejected one labelled false.

    | column in | type | column out | type |
    |---|---|---|---|
    | `chosen`, `rejected` | string, or list of messages | `completion` | as they were |
    | | | `label` | bool |
    | any other (`prompt`, `weight`, ...) | any | the same | in both rows; not `label`, `completion` |

    A batched map changes the number of rows, so the columns it consumes must be removed:
    `dataset.map(PairsToUnpaired(), batched=True, remove_columns=["chosen", "rejected"])`. [`pairs_to_unpaired`] does
    that, and extracts prompts.

    Relations: the rows of [`~trl.unpair_preference_dataset`] in another order. There all chosen responses of a *map
    batch* come before its rejected ones, so that the order depends on `batch_size`; here the two rows of a pair stay
    together.
    """

    revision: str = "2"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Two rows for every pair of one batch."""
        _require_pairs(batch.keys())
        pairs = zip(batch["chosen"], batch["rejected"], strict=True)
        rows: dict[str, list] = {"completion": [response for pair in pairs for response in pair]}
        rows["label"] = [True, False] * (len(rows["completion"]) // 2)
        for name, values in batch.items():
            if name not in REPLACED:
                rows[name] = [value for value in values for _ in range(2)]
        return rows


def pairs_to_unpaired(dataset: AnyData, num_proc: int | None = None) -> AnyData:
    """
    Turn preference pairs into TRL's unpaired preference type: `prompt`, `completion`, `label`.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dict of them):
            Pairs with `chosen` and `rejected`, standard or conversational. Where there is no `prompt`, or a text that
            whole dialogues hold, the shared beginning of the two responses becomes it (see [`ExtractPrompt`]).
        num_proc (`int`, *optional*):
            Processes of `map`; not for streams.

    Returns:
        As given, with two rows a pair, the chosen one first; other columns are in both. Half of the rows are good: the
        unpaired trainer's `positive_fraction` is 0.5.

    Raises:
        ValueError: if `chosen` or `rejected` is missing.
        RowError: if there is no `prompt`, and two conversations share no message.

    Example:

    ```python
    >>> pairs = Dataset.from_dict({"prompt": ["2 + 2 ="], "chosen": [" 4"], "rejected": [" 5"]})
    >>> pairs_to_unpaired(pairs)[:]
    {'prompt': ['2 + 2 =', '2 + 2 ='], 'completion': [' 4', ' 5'], 'label': [True, False]}
    ```
    """
    processes = {} if num_proc is None else {"num_proc": num_proc}
    _require_pairs(_columns(dataset))
    first = beginning_of(next(iter(dataset.values())) if isinstance(dataset, dict) else dataset)
    if prompt_stands_in_dialogues(first):
        dataset = dataset.remove_columns("prompt")
    dataset = with_prompts(dataset, "pairs", num_proc)
    return dataset.map(PairsToUnpaired(), batched=True, remove_columns=list(PAIR_COLUMNS), **processes)


@dataclass(frozen=True)
class ExtractPrompt:
    """
    Split pairs without a prompt: the beginning that both responses share becomes it. For `map(..., batched=True)`.

    | column in | type | column out | type |
    |---|---|---|---|
    | `chosen`, `rejected` | string, or list of messages | `prompt` | what both begin with |
    | | | `chosen`, `rejected` | the rest, never empty |

    Messages are shared whole. Of strings the prompt ends where the first word that differs begins, without the space
    before it; it is empty where the first word differs.

    Relations: [`~trl.extract_prompt`] (trl 1.16), but for three cases. It cuts inside a word whose beginning is shared
    (`It is bl|ue` and `It is bl|ack`), or that is the end of one response; and where the first characters differ it
    takes a chosen response that ends with a space for the prompt.
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Split one batch."""
        chosen = batch["chosen"]
        rejected = batch["rejected"]
        places = [_end_of_prompt(first, second) for first, second in zip(chosen, rejected, strict=True)]
        return {
            "prompt": [response[:place] for response, place in zip(chosen, places, strict=True)],
            "chosen": [response[place:] for response, place in zip(chosen, places, strict=True)],
            "rejected": [response[place:] for response, place in zip(rejected, places, strict=True)],
        }


def _end_of_prompt(chosen: str | list[Any], rejected: str | list[Any]) -> int:
    """How many characters or messages of two responses are the prompt."""
    shorter = min(len(chosen), len(rejected))
    place = next((i for i in range(shorter) if chosen[i] != rejected[i]), max(shorter - 1, 0))
    if not isinstance(chosen, str):
        return place
    if place and _is_of_word(chosen[place - 1]) and (_is_of_word(chosen[place]) or _is_of_word(rejected[place])):
        while place and _is_of_word(chosen[place - 1]):
            place -= 1
    return place - 1 if place and chosen[place - 1] == " " else place


def _is_of_word(character: str) -> bool:
    """Whether a character stands inside words; not where a script writes them without spaces, as Chinese does."""
    joins = character.isalnum() or character == "_" or unicodedata.combining(character) > 0
    return joins and unicodedata.east_asian_width(character) not in ("W", "F")


def with_prompts(dataset: AnyData, dataset_name: str, num_proc: int | None = None) -> AnyData:
    """
    Pairs with a `prompt`: the beginning that both responses share, where there is none.

    Args:
        dataset (`Dataset`, `IterableDataset` or a dict of them):
            Pairs, or rows of another type, which come back as they are.
        dataset_name (`str`):
            Named in the warning of strings that share no beginning.
        num_proc (`int`, *optional*):
            Processes of `map`; not for streams.

    Returns:
        As given, each with `prompt`, and `chosen` and `rejected` without it.

    Raises:
        RowError: if two conversations share no message (in a stream the trainer's check of rows says so).
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: with_prompts(split, name, num_proc) for name, split in dataset.items()})
    names = _columns(dataset)
    if not set(PAIR_COLUMNS) <= set(names):
        return dataset
    if "prompt" in names:
        return _warn_of_repeated_prompts(dataset, dataset_name)
    features = dataset.features and Features({**dataset.features, "prompt": dataset.features["chosen"]})
    if not isinstance(dataset, Dataset):
        dataset = dataset.map(ExtractPrompt(), batched=True, features=features)
        return dataset.filter(SayOnce(_has_no_prompt, NO_PROMPT, dataset_name))
    dataset = dataset.map(ExtractPrompt(), batched=True, features=features, num_proc=num_proc)
    is_text = isinstance(features["prompt"], Value)
    length = pc.binary_length if is_text else pc.list_value_length
    tables = dataset.select_columns("prompt").with_format("arrow").iter(batch_size=10_000)
    lengths = np.concatenate([length(table["prompt"]).to_numpy() for table in tables] or [np.ones(0)])
    empty = np.flatnonzero(lengths == 0)
    if len(empty) and not is_text:
        raise RowError(
            f"row {empty[0]:,}, column 'rejected': 'chosen' and 'rejected' share no beginning, and there is no "
            "'prompt'. Fix the row, or drop it with dataset.filter.",
            row_index=int(empty[0]),
            column="rejected",
        )
    say_count(len(empty), len(dataset), NO_PROMPT, dataset_name, "pairs")
    return dataset


def _warn_of_repeated_prompts(dataset: AnyData, dataset_name: str) -> AnyData:
    """Pairs as they are, with a word on those whose two responses begin with the prompt, which stands there twice."""
    if not isinstance(dataset, Dataset):
        return dataset.filter(SayOnce(_repeats_prompt, REPEATED_PROMPT, dataset_name))
    columns = ["prompt", *PAIR_COLUMNS]
    tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000)
    count = sum(sum(map(_repeats_prompt, _alike(table).to_pylist())) for table in tables)
    say_count(count, len(dataset), REPEATED_PROMPT, dataset_name, "pairs")
    return dataset


def _alike(table: pa.Table) -> pa.Table:
    """The rows whose prompt and chosen response begin alike: reading rows one by one takes longer."""
    firsts = [_beginning(table[name]) for name in ("prompt", "chosen")]
    if any(first is None for first in firsts):
        return table
    return table.filter(pc.fill_null(pc.equal(*firsts), True))


def _beginning(column: pa.ChunkedArray) -> Any:
    """A text's first character, or the first message's content; `None` where a column holds neither in every row."""
    if pa.types.is_string(column.type):
        return pc.utf8_slice_codeunits(column, 0, 1)
    message: Any = getattr(column.type, "value_type", None)
    if message is None or not pa.types.is_struct(message) or message.get_field_index("content") < 0:
        return None
    if not pa.types.is_string(message.field("content").type) or not pc.min(pc.list_value_length(column)).as_py():
        return None
    return pc.struct_field(pc.list_element(column, 0), "content")


def _repeats_prompt(row: dict[str, Any]) -> bool:
    prompt = row["prompt"]
    if not prompt or (isinstance(prompt, str) and prompt.isspace()):
        return False
    return all(row[side] is not None and row[side][: len(prompt)] == prompt for side in PAIR_COLUMNS)


def _has_no_prompt(row: dict[str, Any]) -> bool:
    return row["prompt"] == ""


def _columns(dataset: AnyData) -> list[str]:
    split = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    return split.column_names or list(next(iter(split), {}))


def _require_pairs(names: Iterable[str]) -> None:
    for name in PAIR_COLUMNS:
        if name not in names:
            raise ValueError(f"column {name!r} is missing; the rows have {list(names)}. Pairs need {PAIR_COLUMNS}.")
