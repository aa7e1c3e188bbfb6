"""Raw SFT rows as `SFTTrainer` may see them: checked, of one data type, with nothing that it would misread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Json, List
from trl import SFTConfig

from hf_ext._columns import ROW_INDEX, column_names, columns_of_other_types
from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.chat_columns import without_filled_nulls
from hf_ext.data.problem_rows import PROBLEM, drop_problem_rows
from hf_ext.guards.row_rules import MESSAGE_KEYS, SHAREGPT_KEYS, SHAREGPT_ROLES, RowRules, tool_calls_of
from hf_ext.guards.row_text import describe
from hf_ext.guards.rows import check_by_rules, sft_rules

logger = logging.getLogger(__name__)

TEXT = "__hf_ext_text__"
TOKENISED = ("labels", "completion_mask", "assistant_masks", "seq_lengths")  # go with `input_ids`
DATASET_OPTIONS = ("skip_prepare_dataset",)  # all that TRL 1.16 reads of `dataset_kwargs`


@dataclass(frozen=True)
class FormatRows:
    """
    The text that a `formatting_func` makes of each row, and what is wrong with it.

    | column in | type | column out | type |
    |---|---|---|---|
    | any | any | `__hf_ext_text__` | str |
    | | | `__hf_ext_problem__` | str, empty where the text is a non-empty string |
    """

    formatting_func: Callable[[dict[str, Any]], str]
    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Format one row."""
        text: Any = None
        try:
            text = self.formatting_func({name: value for name, value in row.items() if name != ROW_INDEX})
        except Exception as error:  # a fault of this row, by whatever its function raises
            problem = f"it raised {type(error).__name__}: {error}"
        else:
            good = isinstance(text, str) and text
            problem = "" if good else f"expected a non-empty string for the row, got {describe(text)}"
        return {TEXT: text if isinstance(text, str) else "", PROBLEM: problem and f"formatting_func: {problem}"}


@dataclass(frozen=True)
class ShareGPTMessages:
    """
    The turns of ShareGPT rows as messages of a chat template, batched.

    | column in | type | column out | type |
    |---|---|---|---|
    | `conversations` | list of `from`, `value` | `messages` | list of `role`, `content`, and `tool_calls` |

    A `function_call` becomes a tool call of the assistant, an `observation` a message of `tool`.
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Convert one batch."""
        return {"messages": [[_message(turn) for turn in turns] for turns in batch["conversations"]]}


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    speaker, text = (turn[key] for key in SHAREGPT_KEYS)
    others = {key: value for key, value in turn.items() if key not in SHAREGPT_KEYS and value is not None}
    message = {"role": SHAREGPT_ROLES[speaker], "content": text} | others
    if speaker == "function_call":
        message |= {"content": None, "tool_calls": tool_calls_of(text)}
    return message


def host_rows(
    dataset: AnyDataset,
    args: SFTConfig,
    formatting_func: Callable[..., Any] | None,
    dataset_name: str,
    *,
    on_bad_row: str = "raise",
    bad_rows_path: str | None = None,
) -> AnyDataset:
    """
    Check raw rows, and make of them what the host trainer may see.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows of any TRL SFT data type.
        args (`SFTConfig`):
            The training config: a setting that these rows leave without effect is refused.
        formatting_func (`Callable`, *optional*):
            Makes the text of a row; its texts take the place of the columns of every data type.
        dataset_name (`str`):
            Used in messages; `"train"` are the rows that the settings are meant for.
        on_bad_row (`str`), bad_rows_path (`str`, *optional*):
            As in [`check_sft_rows`].

    Returns:
        The same kind of dataset, its rows numbered in `__hf_ext_row__`: the columns of one data type, `weight`, and
        those that no host reads. ShareGPT rows are messages; keys that Arrow filled with null are gone from messages.

    Raises:
        RowError: with `on_bad_row="raise"`, for the first bad row.
        ValueError: if a setting has no effect on these rows, or is out of range.
    """
    check_settings(args)
    rules = sft_rules(
        dataset, args.dataset_text_field, args.assistant_only_loss, formatting_func is not None, dataset_name
    )
    _refuse_unused(args, formatting_func, rules, dataset_name)
    dataset = check_by_rules(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
    processes = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    columns = list(rules.roles())
    if rules.data_type == "formatted":
        assert formatting_func is not None
        dataset = dataset.map(FormatRows(formatting_func), **processes)
        none_left = "has no row left: formatting_func gave no row a text."
        dataset = drop_problem_rows(dataset, on_bad_row, bad_rows_path, dataset_name, none_left)
        dataset = _without(dataset, [*columns_of_other_types(column_names(dataset), ["weight"]), rules.text_field])
        return dataset.rename_column(TEXT, rules.text_field)
    if rules.data_type == "conversations":
        dataset = _without(dataset, ["messages"])
        if rules.keys == MESSAGE_KEYS:
            dataset = dataset.rename_column("conversations", "messages")
        else:
            dataset = _sharegpt_messages(dataset, processes)
        columns = ["messages" if name == "conversations" else name for name in columns]
    elif rules.data_type == "input_ids":
        columns += TOKENISED
    dataset = _without(dataset, columns_of_other_types(column_names(dataset), columns))
    if "messages" in rules.roles().values():
        dataset = without_filled_nulls(dataset, dataset_name, args.dataset_num_proc)
    return dataset


def _without(dataset: AnyDataset, columns: list[str]) -> AnyDataset:
    present = set(column_names(dataset))
    unwanted = [name for name in dict.fromkeys(columns) if name in present]
    return dataset.remove_columns(unwanted) if unwanted else dataset


def _sharegpt_messages(dataset: AnyDataset, processes: dict[str, Any]) -> AnyDataset:
    convert: dict[str, Any] = {"batched": True, "remove_columns": ["conversations"]}
    if isinstance(dataset, Dataset):
        others = {name: feature for name, feature in dataset.features.items() if name != "conversations"}
        # Json, since Arrow gives every message the keys of all others.
        convert |= {"features": Features(others | {"messages": List(Json())}), **processes}
    return dataset.map(ShareGPTMessages(), **convert)


# --- settings --------------------------------------------------------------------------------------------------------


def check_settings(args: SFTConfig) -> None:
    """
    Refuse settings of the rows that are out of range, or without effect whatever the rows are.

    Raises:
        ValueError: if there is such a setting; the message names it.
    """
    if args.max_length is not None and args.max_length < 2:
        raise ValueError(
            f"max_length must be at least 2 tokens, got {args.max_length}: the first token of a row is not predicted. "
            "Set max_length=None for rows of any length."
        )
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise ValueError(f"truncation_mode must be 'keep_start' or 'keep_end', got {args.truncation_mode!r}.")
    if args.packing and args.truncation_mode == "keep_end" and args.max_length is not None:
        raise ValueError("truncation_mode='keep_end' has no effect with packing=True. Leave one of them out.")
    unknown = sorted(set(args.dataset_kwargs or {}) - set(DATASET_OPTIONS))
    if unknown:
        raise ValueError(
            f"dataset_kwargs has {', '.join(map(repr, unknown))}, which SFTTrainer does not read. It reads "
            f"{', '.join(map(repr, DATASET_OPTIONS))}; leave the others out."
        )


def _refuse_unused(
    args: SFTConfig, formatting_func: Callable[..., Any] | None, rules: RowRules, dataset_name: str
) -> None:
    """Refuse a setting that is without effect on the train rows; of other rows, which it was not set for, say it."""
    is_chat = "messages" in rules.roles().values()
    is_masked = not {"labels", "completion_mask"}.isdisjoint(rules.roles())
    has_speakers = rules.data_type == "input_ids" and not {"labels", "assistant_masks"}.isdisjoint(rules.roles())
    of_chat = "Set assistant_only_loss=True for messages" if is_chat else "Leave it out"
    if rules.data_type == "formatted":
        of_chat = "formatting_func makes one text of both; leave one of the settings out"
    unused = {
        "completion_only_loss=True": (
            bool(args.completion_only_loss)
            and not (rules.data_type == "prompt_completion" or (rules.data_type == "input_ids" and is_masked)),
            f"a completion is told from its prompt by columns 'prompt' and 'completion'. {of_chat}, or make these two",
        ),
        "assistant_only_loss=True": (
            args.assistant_only_loss and not is_chat and not has_speakers,
            "only messages have a speaker. Leave it out, or give 'messages' (or 'assistant_masks' beside 'input_ids')",
        ),
        "formatting_func": (
            formatting_func is not None and rules.data_type == "input_ids",
            "the rows have token ids already. Leave it out, or remove the column 'input_ids'",
        ),
        f"dataset_text_field={args.dataset_text_field!r}": (
            args.dataset_text_field not in ("text", *rules.columns) and rules.data_type != "formatted",
            "there is no such column. Name one, or leave it out",
        ),
    }
    for setting, (hit, remedy) in unused.items():
        if not hit:
            continue
        listing = ", ".join(repr(name) for name in rules.columns if name != ROW_INDEX)
        message = f"{setting} has no effect on the {dataset_name} dataset, whose columns are {listing}: {remedy}."
        if dataset_name == "train" or setting == "formatting_func":
            raise ValueError(message)
        logger.warning(message)
