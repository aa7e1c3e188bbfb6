"""What sampled rows begin with: a bare token, a chat's header, a thinking prefix, or several of them by shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.sampling import end_ids, start_ids

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

StartName: TypeAlias = str | Sequence[int]
USER, ANSWER = "hf-ext-user-text", "hf-ext-answer-text"  # stand where a chat template puts texts
THINK = "<think>"
NAMED = {
    "bos": "bos (the beginning token)",
    "chat": "chat (the header of a user's turn; the model makes up the turn, and answers)",
    "separator": "separator (what stands between documents)",
    "think": "think (a thinking prefix)",
}
MOST_SHOWN, LONGEST_NAME = 16, 80  # tokens and letters of a seed in a card
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Start:
    """
    What some of the rows begin with.

    Args:
        name (`str`):
            As it was asked for.
        ids (`list[int]`):
            Tokens, never supervised.
        ends (`int`):
            End tokens after which a row is over: a chat ends two turns.
        share (`float`):
            Of the rows; all shares sum to 1.
    """

    name: str
    ids: list[int]
    ends: int = 1
    share: float = 1.0


def starts_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    start: StartName | Mapping[Any, float],
    max_new_tokens: int,
) -> list[Start]:
    """
    Return the starts of rows; `start` as in [`generate_context_free`].

    Raises:
        ValueError: if a share is not positive, or the tokenizer or the model has no such start.
    """
    if not isinstance(start, Mapping):
        return [_start(model, tokenizer, start, max_new_tokens, 1.0)]
    shares = {name: float(share) for name, share in start.items()}
    bad = {name: share for name, share in shares.items() if not (math.isfinite(share) and share > 0)}
    if not shares or bad:
        raise ValueError(
            f"start must give each seed a share above 0, such as {{'bos': 0.5, 'chat': 0.5}}; got {start}."
        )
    total = math.fsum(shares.values())
    return [_start(model, tokenizer, name, max_new_tokens, share / total) for name, share in shares.items()]


def starts_of_words(words: str | Sequence[str]) -> str | dict[str, float]:
    """
    A start, or shares of several, from words of a command: one word as it is, several as `START=SHARE`.

    Raises:
        ValueError: if one of several has no share.
    """
    words = [words] if isinstance(words, str) else list(words)
    if len(words) == 1:
        return words[0]
    shares: dict[str, float] = {}
    for word in words:
        name, _, share = word.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{word!r}: of several starts each needs its share, as in bos=0.5 chat=0.5.")
    return shares


def numbers_of_starts(starts: Sequence[Start], rows: range) -> NDArray[np.intp]:
    """
    Which start each of the rows has, `(rows,)`: a function of its number, close to the shares in every stretch.

    A row's place in [0, 1) is its number times the golden ratio, which spreads any stretch evenly; the shares cut it.
    """
    places = (np.arange(rows.start, rows.stop) + 0.5) * GOLDEN % 1.0
    borders = np.cumsum([start.share for start in starts])[:-1]
    return np.searchsorted(borders, places, side="right")


def as_settings(starts: Sequence[Start]) -> list[dict[str, Any]] | None:
    """What a store's manifest says of its starts; `None` where its `start_ids` say it all."""
    if len(starts) == 1 and starts[0].ends == 1:
        return None
    return [asdict(start) for start in starts]


def from_settings(settings: Mapping[str, Any]) -> list[Start]:
    """The starts of a manifest."""
    entries = settings.get("starts")
    if entries is None:
        return [Start("start", list(settings["start_ids"]))]
    return [Start(**entry) for entry in entries]


def seed_lines(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """
    What a card says of the seeds of a store: of each its name, its tokens, and its share of the rows.

    A store with one plain seed does not hold its name: it is called after its tokens.
    """
    lines = []
    for start in from_settings(manifest):
        ids = " ".join(map(str, start.ids[:MOST_SHOWN])) + (" ..." if len(start.ids) > MOST_SHOWN else "")
        name = NAMED.get(start.name, start.name)
        if manifest.get("starts") is None:
            name = "a bare token" if len(start.ids) == 1 else f"{len(start.ids)} tokens"
        lines.append((name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...", ids, f"{start.share:.1%}"))
    return lines


def _start(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: StartName, max_new_tokens: int, share: float
) -> Start:
    if isinstance(name, str) and name == "chat":
        header, ends = _chat_header(tokenizer, end_ids(model, tokenizer))
        return Start("chat", start_ids(model, tokenizer, header, max_new_tokens), ends, share)
    if isinstance(name, str) and name == "think":
        ids = start_ids(model, tokenizer, _thinking_ids(tokenizer), max_new_tokens)
        return Start("think", ids, share=share)
    ids = start_ids(model, tokenizer, name, max_new_tokens)
    return Start(name if isinstance(name, str) else " ".join(map(str, ids)), ids, share=share)


def _chat_header(tokenizer: PreTrainedTokenizerBase, eos: list[int]) -> tuple[list[int], int]:
    """What stands before a user's words, and the end tokens of a conversation of two turns."""
    if tokenizer.chat_template is None:
        raise ValueError(
            'The tokenizer has no chat template, so start="chat" names nothing. Leave it out for a base model.'
        )
    turns = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # whatever a template raises
        raise ValueError(f'start="chat": the chat template refuses a user\'s turn and an answer ({error}).') from error
    header, user, rest = text.partition(USER)
    between, answer, _ = rest.partition(ANSWER)
    if not (user and answer and header):
        raise ValueError(
            'start="chat": the chat template does not show what stands before a user\'s words. Pass that text as '
            "start."
        )
    ids = tokenizer(header, add_special_tokens=False)["input_ids"]
    ends = sum(token in eos for token in tokenizer(between, add_special_tokens=False)["input_ids"])
    return ids, 1 + ends


def _thinking_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning token, where there is one, and that of thinking."""
    if THINK not in tokenizer.get_vocab():
        raise ValueError(
            f'The tokenizer has no token {THINK!r}, so start="think" names nothing. For a reasoning model with '
            "another prefix pass that text as start."
        )
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*first, *tokenizer(f"{THINK}\n", add_special_tokens=False)["input_ids"]]
