"""DCLM's rules of lines: boilerplate lines go, and with them documents that were little else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hf_ext.data.curation.steps import Batch, RowStep, Rule, Values
from hf_ext.data.curation.unicode_tables import unicode_versions
from hf_ext.data.curation.words import counters

_COUNTED = "like|share|comment|retweet|repost|quote|bookmark|upvote|downvote|download|view|follower"
_MAX_PHRASE_WORDS = 10  # longer lines are left alone
_MIN_WORDS = 2


class _Line(NamedTuple):
    text: str
    num_upper: int
    num_digits: int
    num_words: int


class _Phrase(NamedTuple):
    """
    Words that are cut from lines, with the white space beside them.

    `needle` is in the lower case of every text that has them: it has none of the letters i, k and s, which stand for
    further characters where case is ignored. So most documents are not searched line by line.
    """

    needle: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class LineRules(RowStep):
    """
    Delete lines that are boilerplate, and drop documents that lose too much by it.

    | rule | deletes |
    |---|---|
    | `uppercase_lines` | lines more than half of whose characters are upper case |
    | `numeric_lines` | lines that are all digits |
    | `counter_lines` | lines such as `1.2k likes` |
    | `short_lines` | lines of one word |
    | `items_in_cart` | "items in cart" from lines of up to ten words, and the line if nothing is left |
    | `read_more`, `sign_in` | so "Read more..." at the end of a line, "Sign-in" at its start |
    | `removed_words` | nothing: drops documents that lost more than 0.05 of their words so far |

    They are applied in this order. Empty lines stay, but not at either end of the document. A rule's value is the
    share of the lines not blank that it deletes whole: at 1 the document goes. The value of `removed_words` is the
    share of [`words_ft`] that are gone. Column in and out: the text.

    Args:
        max_removed_words (`float`, *optional*, defaults to 0.05):
            Share of its words that a document may lose.
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            Match as DCLM's patterns do: the dots of "Read more..." stand for any three characters, so that ordinary
            words go ("read more of it" ends in them), and `1 like` is no counter.

    Reference: Li et al. 2024, *DataComp-LM*, section 4 (arXiv 2406.11794); Penedo et al. 2023, *The RefinedWeb
    Dataset*, appendix G.2 (arXiv 2306.01116).
    """

    name: ClassVar[str] = "line_rules"

    max_removed_words: float = 0.05
    replicate_bugs: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules, in the order in which they are asked."""
        emptying = tuple(Rule(name, maximum=1.0, exclusive=True) for name in _EMPTYING_RULES)
        return (*emptying, Rule("removed_words", maximum=self.max_removed_words))

    @property
    def versions(self) -> dict[str, str]:
        """Of the tables of characters."""
        return unicode_versions()

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """See [`RowStep`]. A document of which nothing is left keeps its text, for whoever looks into why."""
        values = np.full((len(texts), len(_EMPTYING_RULES) + 1), np.nan)
        documents = []
        for text, row in zip(texts, values, strict=True):
            lines = _lines_of(text)
            deleted_shares = list(self._cut(text, lines))
            row[: len(deleted_shares)] = deleted_shares
            if deleted_shares[-1] == 1:
                documents.append(text)
                continue
            document = "\n".join(line.text for line in lines)
            row[-1] = _removed_share(text, document)
            documents.append(document)
        names = (*_EMPTYING_RULES, "removed_words")
        return {self.text_column: documents}, dict(zip(names, values.T, strict=True))

    def _cut(self, text: str, lines: list[_Line]) -> Iterator[float]:
        """Delete from `lines` by each rule in turn, and say which share of those not blank; ends at nothing left."""
        counter, phrases = _patterns(self.replicate_bugs)
        num_lines = sum(line.num_words > 0 for line in lines)
        lowered = text.lower()
        for rule in _EMPTYING_RULES:
            if rule == "uppercase_lines":
                lines[:] = [line for line in lines if 2 * line.num_upper <= len(line.text)]
            elif rule == "numeric_lines":
                lines[:] = [line for line in lines if not line.text or line.num_digits / len(line.text) <= 0.999999]
            elif rule == "counter_lines":
                lines[:] = [line for line in lines if not (line.num_digits and counter.match(line.text.lower()))]
            elif rule == "short_lines":
                lines[:] = [line for line in lines if line.num_words >= _MIN_WORDS or not line.text]
            elif phrases[rule].needle in lowered:
                lines[:] = _without_phrase(lines, phrases[rule].pattern)
                lowered = "\n".join(line.text for line in lines).lower()  # what is left may close up to another phrase
            if rule != "short_lines":  # DCLM strips the document after each rule but this one
                _strip(lines)
            num_left = sum(line.num_words > 0 for line in lines)
            yield 1 - num_left / num_lines if num_left else 1.0
            if not num_left:
                return
            num_lines = num_left


_PHRASES = {
    "items_in_cart": (" cart", r"\s?items in cart"),
    "read_more": ("read more", r"\s?read more\.\.\.$"),
    "sign_in": ("gn-", r"^sign-in\s?"),
}
_EMPTYING_RULES = ("uppercase_lines", "numeric_lines", "counter_lines", "short_lines", *_PHRASES)


@cache
def _patterns(replicate_bugs: bool) -> tuple[re.Pattern[str], dict[str, _Phrase]]:
    """Of counters, to be matched with lines in lower case, and of the phrases."""
    plural = "s" if replicate_bugs else "s?"
    counter = re.compile(rf"\W*\d[,.\d]*[kmb]?\s+(?:{_COUNTED}){plural}\W*$")
    phrases = {}
    for rule, (needle, pattern) in _PHRASES.items():
        source = pattern.replace(r"\.", ".") if replicate_bugs else pattern
        phrases[rule] = _Phrase(needle, re.compile(source, re.IGNORECASE))
    return counter, phrases


def _lines_of(text: str) -> list[_Line]:
    counts = counters().count_lines(text)
    return [*map(_Line, text.split("\n"), counts.upper, counts.digits, counts.words)]


def _without_phrase(lines: list[_Line], pattern: re.Pattern[str]) -> list[_Line]:
    remaining = []
    for line in lines:
        if line.num_words <= _MAX_PHRASE_WORDS and line.text:
            text = pattern.sub("", line.text)
            if not text or text.isspace():
                continue
            line = line._replace(
                text=text
            )  # it is not blank, and had no more than ten words: what else it has is past
        remaining.append(line)
    return remaining


def _strip(lines: list[_Line]) -> None:
    """As `str.strip` on the document: blank lines go from both ends, white space from the first line and the last."""
    while lines and not lines[-1].num_words:
        lines.pop()
    num_blank = next((number for number, line in enumerate(lines) if line.num_words), 0)
    del lines[:num_blank]
    if lines:
        lines[0] = lines[0]._replace(text=lines[0].text.lstrip())
        lines[-1] = lines[-1]._replace(text=lines[-1].text.rstrip())


def _removed_share(text: str, document: str) -> float:
    """Share of the words that `document` has no more; of no words all, as in DCLM."""
    count_ft_words = counters().count_ft_words
    num_words = count_ft_words(text)
    if not num_words:
        return 1.0
    return 0.0 if document == text else (num_words - count_ft_words(document)) / num_words
