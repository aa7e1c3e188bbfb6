"""Exemplars and target query as one text, within a budget of tokens that never touches the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_ext.data.exemplars.rows import Exemplar
from hf_ext.data.exemplars.text import TokenCounter

ORDERS = ("nearest_last", "nearest_first")


@dataclass(frozen=True)
class Formatted:
    """
    A query with its exemplars.

    Attributes:
        body (`str`): what goes behind the model's query prompt.
        shown (`tuple[Exemplar, ...]`): exemplars in it, nearest first.
        dropped (`int`): exemplars that the budget left no room for, the farthest ones.
        prefix (`int`): characters of the body before the target query.
    """

    body: str
    shown: tuple[Exemplar, ...] = ()
    dropped: int = 0
    prefix: int = 0


@dataclass(frozen=True)
class RareFormatter:
    r"""
    Write exemplars before a query, as RARe's retriever checkpoints were trained to read them.

    With the prompt `Instruct: {task}\nQuery: ` and one exemplar the whole is

        Instruct: {task}
        Query: {exemplar's query}
        Positive Document: {exemplar's document}

        Query: {query}

    The prompt's own `Query: ` serves the first line, so that with no exemplar the body is the bare query: prompt and
    body are then the instruct baseline, byte for byte. Behind a prompt that does not end in the label, the first
    exemplar gets one.

    Budgets are in tokens of the model. An exemplar's texts are cut to their caps between tokens, their characters
    unchanged. Exemplars enter nearest first while prompt, exemplars, query and special tokens fit into `max_tokens`;
    the query is never cut. A query that is too long by itself comes back bare.

    Args:
        query_label, document_label, negative_label (`str`, *optional*):
            Before each text.
        separator (`str`, *optional*, defaults to a line break):
            Between the texts of an exemplar.
        example_separator (`str`, *optional*, defaults to a blank line):
            Behind an exemplar.
        brackets (`tuple[str, str]`, *optional*):
            Around every query, the target's too: `("[", "]")` for RAR-b. None by default.
        order (`str`, *optional*, defaults to `"nearest_last"`):
            `"nearest_last"` puts the nearest exemplar next to the query; or `"nearest_first"`.
        with_negatives (`bool`, *optional*, defaults to `False`):
            Show an exemplar's `negative` behind its document; in the paper it did not help.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest whole input. `None` is no limit.
        max_example_query_tokens (`int`, *optional*, defaults to `64`):
            Of an exemplar's query. `None` is no limit.
        max_example_document_tokens (`int`, *optional*, defaults to `128`):
            Of an exemplar's document, and of its negative. `None` is no limit.

    Reference: Tejaswi et al. 2024, *RARe* (arXiv 2410.20088), Equation 4; labels and order are those of its code.
    """

    query_label: str = "Query: "
    document_label: str = "Positive Document: "
    negative_label: str = "Negative Document: "
    separator: str = "\n"
    example_separator: str = "\n\n"
    brackets: tuple[str, str] = ("", "")
    order: str = "nearest_last"
    with_negatives: bool = False
    max_tokens: int | None = 512
    max_example_query_tokens: int | None = 64
    max_example_document_tokens: int | None = 128

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {self.order!r}.")
        object.__setattr__(self, "brackets", tuple(self.brackets))  # JSON has lists
        for name in ("max_tokens", "max_example_query_tokens", "max_example_document_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of tokens above 0, or None for no limit; got {value!r}.")

    @property
    def has_budget(self) -> bool:
        """Whether any limit is set, so that a tokenizer is needed."""
        limits = (self.max_tokens, self.max_example_query_tokens, self.max_example_document_tokens)
        return any(limit is not None for limit in limits)

    def counter(self, tokenizer: object) -> TokenCounter | None:
        """
        The tokenizer as budgets need it; make it once for many calls.

        Raises:
            ValueError: if a limit is set and there is no tokenizer.
        """
        if tokenizer is None and self.has_budget:
            raise ValueError("The formatter's budgets are in tokens: pass the model's tokenizer, or set them to None.")
        return tokenizer if tokenizer is None or isinstance(tokenizer, TokenCounter) else TokenCounter(tokenizer)

    def __call__(
        self, query: str, exemplars: Sequence[Exemplar] = (), *, prompt: str = "", tokenizer: object = None
    ) -> Formatted:
        """
        The body for a query.

        Args:
            query (`str`):
                The target.
            exemplars (`Sequence[Exemplar]`, *optional*):
                Nearest first, as [`ExemplarStore.search`] gives them.
            prompt (`str`, *optional*):
                What the model puts before the body; it counts towards `max_tokens`.
            tokenizer (*optional*):
                The model's, or a [`TokenCounter`] of it; needed where a limit is set.
        """
        counter = self.counter(tokenizer)
        blocks = [self._block(exemplar, counter) for exemplar in exemplars]
        for count in range(len(blocks), 0, -1):  # the farthest exemplar goes first
            body = self._joined(blocks[:count], query, prompt)
            if self.max_tokens is None or counter is None or counter.count(prompt + body) <= self.max_tokens:
                prefix = len(body) - len(self._bracketed(query))
                return Formatted(body, tuple(exemplars[:count]), len(blocks) - count, prefix)
        return Formatted(self._bracketed(query), (), len(blocks))

    def clip_documents(self, texts: Iterable[str | None], tokenizer: object) -> list[str | None]:
        """Texts cut to `max_example_document_tokens`."""
        counter = self.counter(tokenizer)
        limit = self.max_example_document_tokens
        return [None if text is None else _clipped(text, limit, counter) for text in texts]

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON has them; `RareFormatter(**settings)` is the way back."""
        return dataclasses.asdict(self) | {"brackets": list(self.brackets)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RareFormatter:
        """
        A formatter from [`to_dict`]'s settings.

        Raises:
            ValueError: if this version does not know one of the settings.
        """
        unknown = set(settings) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"The formatter has no setting {sorted(unknown)[0]!r}. Upgrade hf-ext, or remove it.")
        return cls(**settings)

    def _bracketed(self, query: str) -> str:
        return self.brackets[0] + query + self.brackets[1]

    def _block(self, exemplar: Exemplar, counter: TokenCounter | None) -> str:
        """An exemplar without its first label, with what follows it."""
        query = _clipped(exemplar.query, self.max_example_query_tokens, counter)
        parts = [
            self._bracketed(query),
            self.document_label + _clipped(exemplar.document, self.max_example_document_tokens, counter),
        ]
        if self.with_negatives and exemplar.negative is not None:
            parts.append(self.negative_label + _clipped(exemplar.negative, self.max_example_document_tokens, counter))
        return self.separator.join(parts) + self.example_separator

    def _joined(self, blocks: Sequence[str], query: str, prompt: str) -> str:
        ordered = list(reversed(blocks)) if self.order == "nearest_last" else list(blocks)
        first = "" if prompt.endswith(self.query_label) else self.query_label
        return first + self.query_label.join([*ordered, self._bracketed(query)])


def _clipped(text: str, limit: int | None, counter: TokenCounter | None) -> str:
    return text if limit is None or counter is None else counter.clip(text, limit)
