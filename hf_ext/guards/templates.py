"""
Tokenise rows of messages, and name those that the chat template refuses.

A template may raise for single rows: roles that do not alternate, a system message it knows nothing of, a field that
only some messages have. The host meets it in the middle of `map`, and its error names no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset

from hf_ext.guards.row_errors import RowProblem, handle_bad_rows, row_number
from hf_ext.guards.row_rules import RowDefect, RowRules
from hf_ext.guards.row_text import excerpt_of, shorten
from hf_ext.guards.rows import IsGoodRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBLEM_LENGTH = 200  # characters of a template's own message

# Columns of one rendering, and whether it ends with the beginning of an answer; in the order of the host's.
RENDERINGS: dict[str, tuple[tuple[tuple[str, ...], bool], ...]] = {
    "preference": ((("prompt",), True), (("prompt", "chosen"), False), (("prompt", "rejected"), False)),
    "prompt_completion": ((("prompt",), True), (("prompt", "completion"), False)),
    "messages": ((("messages",), False),),
    "conversations": ((("conversations",), False),),
}


@dataclass(frozen=True)
class TemplateRules(RowRules):
    """
    What a chat template makes of the rows; call it with a row to get its first defect, or `None`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Its template renders the rows.
        chat_template (`str`, *optional*):
            The template in place of the tokenizer's, as the host passes it.
        renderings (`tuple`):
            Columns whose messages are rendered together, and whether the beginning of an answer is added.
        data_type (`str`), conversational (`bool`), text_field (`str`), assistant_only_loss (`bool`), columns
        (`tuple[str, ...]`):
            As in [`RowRules`].
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    renderings: tuple[tuple[tuple[str, ...], bool], ...]

    def __call__(self, row: Mapping[str, Any], roles: Mapping[str, Any] | None = None) -> RowDefect | None:
        """Render the row as the host does, and find what it would stop at."""
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        settings = {"chat_template": self.chat_template, "tools": tools, **(row.get("chat_template_kwargs") or {})}
        for columns, begins_answer in self.renderings:
            messages = [_as_chat(message) for column in columns for message in row[column]]
            try:
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=begins_answer, **settings
                )
            except Exception as error:  # a template is a program: it may fail in any way
                name = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
                reason = shorten(f"{name}{error}".rstrip("."), PROBLEM_LENGTH)
                return RowDefect(columns[-1], f"the chat template does not take this row: {reason}")
        if self.assistant_only_loss and not self._has_assistant_tokens(row, settings):
            return RowDefect(
                self.renderings[-1][0][-1],
                "assistant_only_loss needs tokens of the assistant, and the chat template marks none in this row: it "
                "must stand around them with {% generation %}",
            )
        return None

    def _has_assistant_tokens(self, row: Mapping[str, Any], settings: dict[str, Any]) -> bool:
        messages = [_as_chat(message) for column in self.renderings[-1][0] for message in row[column]]
        tokens = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **settings
        )
        return 1 in tokens["assistant_masks"]


def _as_chat(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with its speaker under `role`, as the host converts those of `from` and `value`."""
    if "role" in message or "from" not in message:
        return message
    return {"role": message["from"], "content": message["value"]}


def tokenise_named(
    dataset: Dataset | IterableDataset,
    tokenise: Callable[[Any], Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    assistant_only_loss: bool = False,
    on_bad_row: str = "raise",
    bad_rows_path: str | None = None,
    dataset_name: str = "train",
) -> Any:
    """
    Tokenise checked rows, where a row that the chat template does not take is a bad row like any other.

    Rows are rendered a second time only where that is needed: in a stream, with `on_bad_row="drop"`, and once the host
    failed.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Checked rows with their `__hf_ext_row__`, of any data type.
        tokenise (`Callable`):
            The host's way from rows to tokens.
        tokenizer (`PreTrainedTokenizerBase`), chat_template (`str`, *optional*):
            What the host renders messages with.
        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Whether a row without a token of the assistant is bad too, as for the host.
        on_bad_row (`str`), bad_rows_path (`str`, *optional*), dataset_name (`str`):
            As in [`check_sft_rows`].

    Returns:
        What `tokenise` returns.

    Raises:
        [`RowError`]: if a row cannot be rendered and `on_bad_row="raise"`.
        ValueError: if no row can be rendered.
    """
    rules = _rules(dataset, tokenizer, chat_template, assistant_only_loss)
    if rules is None:
        return tokenise(dataset)
    if not isinstance(dataset, Dataset):
        return tokenise(dataset.filter(IsGoodRow(rules, on_bad_row, bad_rows_path, dataset_name)))
    if on_bad_row == "drop":  # before the host begins: its processes wait for each other while they tokenise
        return tokenise(_without_refused(dataset, rules, on_bad_row, bad_rows_path, dataset_name))
    try:
        return tokenise(dataset)
    # was it a row? then that is the error; else the host's own
    except Exception:
        _without_refused(dataset, rules, on_bad_row, bad_rows_path, dataset_name)
        raise


def _rules(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    assistant_only_loss: bool,
) -> TemplateRules | None:
    """The rules of rows that are messages; `None` for other rows, and where there is no template at all."""
    if not (chat_template or getattr(tokenizer, "chat_template", None)):
        return None  # the host says so
    first: dict[str, Any] = next(iter(dataset), {})
    if "input_ids" in first:
        return None
    for renderings in RENDERINGS.values():
        columns = {column for names, _ in renderings for column in names}
        if columns <= set(first):
            break
    else:
        return None
    turns = first[renderings[-1][0][-1]]
    if not isinstance(turns, list):
        return None
    return TemplateRules(
        data_type="messages",
        conversational=True,
        text_field=renderings[0][0][0],
        assistant_only_loss=assistant_only_loss,
        columns=tuple(first),
        tokenizer=tokenizer,
        chat_template=chat_template,
        renderings=renderings,
    )


def _without_refused(
    dataset: Dataset, rules: TemplateRules, on_bad_row: str, bad_rows_path: str | None, dataset_name: str
) -> Dataset:
    refused = dict(_refused(dataset, rules))
    if not refused:
        return dataset
    problems = list(refused.values())
    if len(refused) == len(dataset) and on_bad_row == "drop":
        first = problems[0]
        raise ValueError(
            f"Every one of the {len(dataset):,} rows of the {dataset_name} dataset is bad; the first: row "
            f"{first.row_index:,}, column {first.column!r}: {first.problem}."
        )
    positions = {problem.row_index: position for position, problem in refused.items()}
    handle_bad_rows(problems, lambda index: dataset[positions[index]], on_bad_row, bad_rows_path, dataset_name)
    return dataset.select(np.delete(np.arange(len(dataset)), list(refused)))


def _refused(dataset: Dataset, rules: TemplateRules) -> Iterator[tuple[int, RowProblem]]:
    for position, row in enumerate(dataset.with_format(None)):
        defect = rules(row)
        if defect is not None:
            excerpt = excerpt_of(row, defect.column, rules.text_field)
            yield position, RowProblem(row_number(row), defect.column, defect.problem, excerpt)
