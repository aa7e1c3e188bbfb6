"""DCLM's rules of lines: boilerplate lines go, and with them documents that were little else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hf_ext.data.curation.steps import Batch, RowStep, Rule, Values
from hf_ext.data.curation.unicode_tables import unicode_versions
from hf_ext.data.curation.words import counters

_COUNTER_NOUNS = "like|share|comment|retweet|repost|quote|bookmark|upvote|downvote|download|view|follower"
_MAX_PHRASE_WORDS = 10  # longer lines are left alone
_ONE_IN_SO_MANY = 1_000_000  # DCLM's bound on digits is 0.999999


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
    | `numeric_lines` | lines that are all digits, but for one character in a million |
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
    revision: str = field(default="2", repr=False)

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
            lines = _Lines(text)
            deleted_shares = list(self._cut(text, lines))
            row[: len(deleted_shares)] = deleted_shares
            if not lines.num_filled:
                documents.append(text)
                continue
            document = lines.text()
            row[-1] = _removed_share(lines.marks.ft_words, text, document)
            documents.append(document)
        names = (*_EMPTYING_RULES, "removed_words")
        return {self.text_column: documents}, dict(zip(names, values.T, strict=True))

    def _cut(self, text: str, lines: _Lines) -> Iterator[float]:
        """Delete lines by each rule in turn, and say which share of those not blank; ends when nothing is left."""
        counter, phrases = _patterns(self.replicate_bugs)
        lowered = text.lower()
        for rule in _EMPTYING_RULES:
            num_filled = lines.num_filled
            if rule == "uppercase_lines":
                lines.delete(lines.marks.upper)
            elif rule == "numeric_lines":
                long_lines = (n for n in lines.marks.with_digits if len(lines.pieces[n]) > _ONE_IN_SO_MANY)
                lines.delete([n for n in (*lines.marks.short, *long_lines) if _is_numeric(lines.pieces[n])])
            elif rule == "counter_lines":
                lines.delete([n for n in lines.marks.with_digits if counter.match(lines.pieces[n].lower())])
            elif rule == "short_lines":
                lines.delete(lines.marks.short)
            elif phrases[rule].needle in lowered:
                lines.cut(phrases[rule].pattern)
                lowered = lines.text().lower()  # what is left may have closed up to another phrase
            if rule != "short_lines":  # DCLM strips the document after each rule but this one
                lines.strip()
            yield 1 - lines.num_filled / num_filled
            if not lines.num_filled:
                return


class _Lines:
    """The lines of a document, while rules delete some: the marks of each stay what they are."""

    def __init__(self, text: str) -> None:
        self.pieces = text.split("\n")
        self.marks = counters().mark_lines(text)
        self.num_filled = self.marks.filled
        self._deleted: set[int] = set()
        self._is_stripped = False
        self._first = 0
        self._end = len(self.pieces)

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete lines, some of which may be gone."""
        for number in numbers:
            if number not in self._deleted and self._first <= number < self._end:
                self._deleted.add(number)
                self._is_stripped = False
                self.num_filled -= not _is_blank(self.pieces[number])

    def cut(self, pattern: re.Pattern[str]) -> None:
        """Delete what matches from lines of up to ten words, and the lines of which nothing is left."""
        for number in range(self._first, self._end):
            line = self.pieces[number]
            if number in self._deleted or not line or len(line.split()) > _MAX_PHRASE_WORDS:
                continue
            remainder = pattern.sub("", line)
            if _is_blank(remainder):
                self.delete([number])
            self.pieces[number] = remainder
            self._is_stripped = False

    def strip(self) -> None:
        """As `str.strip` on the document: blank lines go from both ends, white space from the first line and last."""
        if self._is_stripped:
            return
        while self._first < self._end and self._is_absent(self._first):
            self._first += 1
        while self._first < self._end and self._is_absent(self._end - 1):
            self._end -= 1
        if self._first < self._end:
            self.pieces[self._first] = self.pieces[self._first].lstrip()
            self.pieces[self._end - 1] = self.pieces[self._end - 1].rstrip()
        self._is_stripped = True

    def text(self) -> str:
        """The document that is left."""
        numbers = range(self._first, self._end)
        if not self._deleted:
            return "\n".join(self.pieces[self._first : self._end])
        return "\n".join([self.pieces[number] for number in numbers if number not in self._deleted])

    def _is_absent(self, number: int) -> bool:
        return number in self._deleted or _is_blank(self.pieces[number])


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
    counter = re.compile(rf"\W*\d[,.\d]*[kmb]?\s+(?:{_COUNTER_NOUNS}){plural}\W*$")
    phrases = {}
    for rule, (needle, pattern) in _PHRASES.items():
        source = pattern.replace(r"\.", ".") if replicate_bugs else pattern
        phrases[rule] = _Phrase(needle, re.compile(source, re.IGNORECASE))
    return counter, phrases


def _is_blank(line: str) -> bool:
    return not line or line.isspace()


def _is_numeric(line: str) -> bool:
    if len(line) <= _ONE_IN_SO_MANY:
        return line.isdigit()
    return sum(map(str.isdigit, line)) / len(line) > 0.999999


def _removed_share(num_words: int, text: str, document: str) -> float:
    """Share of the words of `text` that `document` has no more; of no words all, as in DCLM."""
    if not num_words:
        return 1.0
    return 0.0 if document == text else (num_words - counters().count_ft_words(document)) / num_words
