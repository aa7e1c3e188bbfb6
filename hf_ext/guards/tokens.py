"""From checked rows to tokens: padding goes, an end token must be there, special tokens that stand twice are counted.

The host tokenises row by row and reads neither `attention_mask` nor what its tokenizer already added.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.templates import tokenise_named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]
BATCH_SIZE = 10_000
PER_TOKEN = ("input_ids", "labels", "completion_mask", "assistant_masks", "weight")

# Sequences of a tokenised row: columns that stand one after another, and the column whose end is the sequence's.
SEQUENCES: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "chosen_ids": ((("prompt_ids", "chosen_ids"), "chosen_ids"), (("prompt_ids", "rejected_ids"), "rejected_ids")),
    "completion_ids": ((("prompt_ids", "completion_ids"), "completion_ids"),),
    "input_ids": ((("input_ids",), "labels"),),  # what is not supervised at the end does no harm
}

BEGINS = (
    "The beginning token {token!r} stands twice at the beginning of {rows} of the {name} dataset. A text that a chat "
    "template rendered holds it already, and the tokenizer adds another: give the messages in place of the text, or "
    "remove the token from the text."
)
ENDS = (
    "The end token {token!r} stands twice at the end of {rows} of the {name} dataset. The tokenizer adds it, or the "
    "text ends with it and a line end, as a rendered one may, and so does the trainer, which ends every text with it; "
    "or the rows were padded with it. Let the tokenizer add none (add_eos_token=False), strip the text (or give the "
    "messages in place of it), and give padded rows an attention_mask."
)
PADDED = (
    "The padding token {token!r} stands more than once at the beginning or the end of {rows} of the {name} dataset, "
    "and it is trained on. Give the rows an attention_mask with zeros there, or labels of -100."
)


def require_end_token(tokenizer: PreTrainedTokenizerBase, remedy: str = "set tokenizer.eos_token") -> None:
    """
    Refuse a tokenizer without end token, where texts are to end with it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer of the rows.
        remedy (`str`, *optional*):
            What to do.

    Raises:
        ValueError: if `tokenizer.eos_token` is `None`.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer has no end token, and every text must end with it: {remedy}, to a token of its vocabulary."
        )


def require_padding_token(tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None, args: TrainingArguments) -> None:
    """
    Refuse a tokenizer that a batch cannot be padded with: the host's own message names a token 'None'.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer, or what holds one; nothing is known of one that the host loads itself.
        args (`SFTConfig` or `DPOConfig` or `KTOConfig`):
            Its `pad_token` and `eos_token` are read, where it has them.

    Raises:
        ValueError: if neither a padding nor an end token is known.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    named_tokens = [getattr(args, name, None) for name in ("pad_token", "eos_token")]
    if tokenizer is not None and not any((*named_tokens, tokenizer.pad_token, tokenizer.eos_token)):
        raise ValueError(
            "The tokenizer has no end token and no padding token. Set tokenizer.eos_token, with which batches are "
            "padded too, or pass pad_token in the config."
        )


@dataclass(frozen=True)
class RemovePadding:
    """
    Take the tokens out of pretokenised rows whose `attention_mask` is 0, batched; removes the mask.

    | column in | type | column out | type |
    |---|---|---|---|
    | `attention_mask` | list of 0 or 1 | | |
    | `input_ids`, `labels`, `completion_mask`, `assistant_masks`, lists of `weight` | list | the same | shorter |
    """

    revision: str = "1"  # changes whenever the output would: datasets hashes this object, not the code behind it

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Shorten the rows of one batch."""
        masks = [np.asarray(mask, dtype=bool) for mask in batch["attention_mask"]]
        shorter: dict[str, list] = {}
        for name in PER_TOKEN:
            if name in batch:
                shorter[name] = [
                    values
                    if mask.all() or not np.ndim(values)
                    else [value for value, is_visible in zip(values, mask, strict=True) if is_visible]
                    for values, mask in zip(batch[name], masks, strict=True)
                ]
        return shorter


def without_padding(dataset: Dataset | IterableDataset, dataset_name: str = "train") -> Any:
    """
    Pretokenised rows without the tokens that their `attention_mask` hides; other rows as they are.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Checked rows.
        dataset_name (`str`, *optional*):
            Named in messages.

    Returns:
        As given. Where a token is hidden, the column `attention_mask` is gone.

    Raises:
        ValueError: if packed rows hold padding, which `seq_lengths` would count as a document's.
    """
    names = dataset.column_names or list(next(iter(dataset), {}))
    if not {"input_ids", "attention_mask"} <= set(names):
        return dataset
    if isinstance(dataset, Dataset) and not _hides_tokens(dataset):
        return dataset
    if "seq_lengths" in names:
        if isinstance(dataset, Dataset):
            raise ValueError(
                f"The {dataset_name} dataset has packed rows (column 'seq_lengths') whose attention_mask hides some. "
                "Pack rows without padding, or remove the column."
            )
        return dataset
    features = dataset.features and Features({k: v for k, v in dataset.features.items() if k != "attention_mask"})
    return dataset.map(RemovePadding(), batched=True, remove_columns=["attention_mask"], features=features)


def _hides_tokens(dataset: Dataset) -> bool:
    tables = dataset.select_columns(["attention_mask"]).with_format("arrow").iter(batch_size=BATCH_SIZE)
    return any(_has_zero(table.column("attention_mask").combine_chunks()) for table in tables)


def _has_zero(column: pa.ListArray) -> bool:
    return not bool(np.asarray(column.flatten().to_numpy(zero_copy_only=False)).all())


def tokenise_checked(
    dataset: Dataset | IterableDataset,
    tokenise: Callable[[Any], Any],
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    *,
    chat_template: str | None = None,
    dataset_name: str = "train",
) -> Any:
    """
    Tokenise checked rows as the host does, with what it overlooks.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Checked rows of any data type, with their `__hf_ext_row__`.
        tokenise (`Callable`):
            The host's way from rows to tokens.
        tokenizer (`PreTrainedTokenizerBase`):
            As the host uses it.
        args (`SFTConfig` or `DPOConfig` or `KTOConfig`):
            Its `on_bad_row` and `bad_rows_path` are read, where it has them.
        chat_template (`str`, *optional*):
            What the host renders messages with in place of the tokenizer's.
        dataset_name (`str`, *optional*):
            Named in messages.

    Returns:
        What `tokenise` returns, with padding gone. Special tokens that stand twice are counted in one warning.

    Raises:
        [`RowError`]: if the chat template does not take a row.
        ValueError: if rows are texts and the tokenizer has no end token.
    """
    first: dict[str, Any] = next(iter(dataset), {})
    if _is_text(first):
        by_config = "pass eos_token in the config or " if hasattr(args, "eos_token") else ""
        require_end_token(tokenizer, f"{by_config}set tokenizer.eos_token")
    dataset = without_padding(dataset, dataset_name)
    tokenised = tokenise_named(
        dataset,
        tokenise,
        tokenizer,
        chat_template=chat_template,
        assistant_only_loss=getattr(args, "assistant_only_loss", False),
        on_bad_row=getattr(args, "on_bad_row", "raise"),
        bad_rows_path=getattr(args, "bad_rows_path", None),
        dataset_name=dataset_name,
    )
    return count_doubled(tokenised, tokenizer, dataset_name)


def _is_text(row: dict[str, Any]) -> bool:
    """Whether the host ends a row's text with the end token: not where it is tokenised, nor where it is messages."""
    if not row or "input_ids" in row:
        return False
    turns = [row[name] for name in ("messages", "conversations", "chosen", "completion") if name in row]
    return not any(isinstance(turn, list) for turn in turns)


# --- special tokens that stand twice ---------------------------------------------------------------------------------


def count_doubled(dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, dataset_name: str) -> Any:
    """
    Warn of tokenised rows that begin with the beginning token twice, end with the end token twice, or hold padding.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenised rows: `input_ids` and `labels`, or `prompt_ids` with `chosen_ids` and `rejected_ids` or
            `completion_ids`, before truncation.
        tokenizer (`PreTrainedTokenizerBase`):
            Says which tokens they are.
        dataset_name (`str`):
            Named in messages.

    Returns:
        The rows as they are. In a stream the first such row a process reads is named when it passes.
    """
    first: dict[str, Any] = next(iter(dataset), {})
    key = next((name for name in SEQUENCES if name in first), None)
    if key is None or "seq_lengths" in first:
        return dataset
    begin, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    # a tokenizer may pad with the token that ends documents: then only the warning of the end token is true
    checks = (
        (BEGINS, begin, tokenizer.bos_token, (0,)),
        (ENDS, end, tokenizer.eos_token, (-1,)),
        (PADDED, None if padding in (begin, end) or key != "input_ids" else padding, tokenizer.pad_token, (0, -1)),
    )
    for text, token, name, sides in checks:
        if token is None:
            continue
        spaces = line_ends(tokenizer) if text is ENDS else ()
        is_doubled = Doubled(token, sides, SEQUENCES[key], text is PADDED, spaces)
        warning = text.replace("{token!r}", repr(str(name)))
        if not isinstance(dataset, Dataset):
            dataset = dataset.filter(SayOnce(is_doubled, warning, dataset_name))
        else:
            say_count(is_doubled.count(dataset), len(dataset), warning, dataset_name)
    return dataset


@dataclass(frozen=True)
class Doubled:
    """
    Whether a tokenised row begins or ends with a token twice; call it with a row.

    Args:
        token (`int`):
            The token's id.
        sides (`tuple[int, ...]`):
            0 for the beginning, -1 for the end.
        sequences (`tuple`):
            As the values of `SEQUENCES`.
        supervised (`bool`):
            Whether the beginning, too, is looked for among the supervised tokens.
        spaces (`tuple[int, ...]`, *optional*):
            Tokens of which one may stand between the two at the end.
    """

    token: int
    sides: tuple[int, ...]
    sequences: tuple[tuple[tuple[str, ...], str], ...]
    supervised: bool
    spaces: tuple[int, ...] = ()
    revision: str = "2"

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether one row begins or ends with the token twice."""
        twice = [self.token] * 2
        for beginning, ending in self.sequences:
            parts = (ending,) if self.supervised else beginning
            if 0 in self.sides and [token for name in parts for token in row[name][:2]][:2] == twice:
                return True
            last = list(row[ending][-3:])
            if -1 in self.sides and (last[-2:] == twice or last in [[self.token, i, self.token] for i in self.spaces]):
                return True
        return False

    def count(self, dataset: Dataset) -> int:
        """Number of rows that begin or end with the token twice."""
        tables = dataset.select_columns(self._names()).with_format("arrow").iter(batch_size=BATCH_SIZE)
        return sum(int(self._of(table).sum()) for table in tables)

    def _names(self) -> list[str]:
        names = [name for columns, ending in self.sequences for name in (*columns, ending)]
        return list(dict.fromkeys(names))

    def _of(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        columns = {name: table.column(name).combine_chunks() for name in self._names()}
        doubled = np.zeros(table.num_rows, dtype=bool)
        for beginning, ending in self.sequences:
            if 0 in self.sides:
                parts = [columns[name] for name in ((ending,) if self.supervised else beginning)]
                doubled |= (_from_start(parts, 0) == self.token) & (_from_start(parts, 1) == self.token)
            if -1 in self.sides:
                last, middle, first = (token_at(columns[ending], place) == self.token for place in (-1, -2, -3))
                # a rendered text ends with the end token and a line end, before the tokenizer adds its own
                spaced = np.isin(token_at(columns[ending], -2), self.spaces)
                doubled |= last & (middle | (first & spaced))
        return doubled


def line_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that write one line end or two."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-1:] for text in ("\n", "\n\n")]
    return tuple({token for token_ids in ids for token in token_ids} - {tokenizer.unk_token_id})


def _from_start(parts: Sequence[pa.ListArray], place: int) -> Tokens:
    """The token at a place of the rows' joined lists, -1 where they are too short."""
    places = np.full(len(parts[0]), place)
    tokens = np.full(len(parts[0]), -1, dtype=np.int64)
    for part in parts:
        # where the lists so far were too short, the next one goes on
        tokens = np.where(tokens == -1, token_at(part, places), tokens)
        places = places - np.diff(part.offsets.to_numpy())
    return tokens


def token_at(column: pa.ListArray, place: int | Tokens) -> Tokens:
    """The token of each row's list at `place` (from its end where negative), -1 where there is none."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    starts, ends = offsets[:-1], offsets[1:]
    positions = np.where(np.asarray(place) < 0, ends + place, starts + place)
    inside = (positions >= starts) & (positions < ends)
    tokens = np.full(len(starts), -1, dtype=np.int64)
    tokens[inside] = column.values.to_numpy(zero_copy_only=False)[positions[inside]]
    return tokens


# --- one warning for many rows ---------------------------------------------------------------------------------------


def say_count(count: int, total: int, text: str, dataset_name: str, noun: str = "rows") -> None:
    """Warn of `count` of `total` rows, unless there is none; `text` has the fields `{rows}` and `{name}`."""
    if count:
        rows = f"{count:,} of {total:,} {noun} ({100 * count / total:.1f} %)"
        logger.warning("%s", text.format(rows=rows, name=dataset_name))


class SayOnce:
    """
    Filter of a stream that keeps every row, and warns at the first that is meant: there is no count before the end.

    Args:
        is_meant (`Callable`):
            Whether a row is meant.
        text (`str`), dataset_name (`str`):
            The warning, with fields as for [`say_count`], and the data set's name.
    """

    def __init__(self, is_meant: Callable[[dict[str, Any]], bool], text: str, dataset_name: str) -> None:
        self.is_meant = is_meant
        self.text = text
        self.dataset_name = dataset_name
        self.is_said = False

    def __call__(self, row: dict[str, Any]) -> bool:
        """Look at one row."""
        if not self.is_said and self.is_meant(row):
            self.is_said = True
            rows = f"row {row[ROW_INDEX]:,} (the first such row)" if ROW_INDEX in row else "a row"
            logger.warning("%s", self.text.format(rows=rows, name=self.dataset_name))
        return True
