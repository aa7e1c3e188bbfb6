"""What is counted in a document, by the compiled functions and by the plain ones: integers alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

TOP_NGRAM_SIZES = (2, 3, 4)
REPEATED_NGRAM_SIZES = (5, 6, 7, 8, 9, 10)
NGRAM_SIZES = TOP_NGRAM_SIZES + REPEATED_NGRAM_SIZES

Spans = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # starts and ends, (segments,) each, in characters


class QualityCounts(NamedTuple):
    """
    Counts for the rules of quality.

    Args:
        ft_words (`int`):
            fastText's words that begin with a letter or a digit; see [`words_ft`].
        words, word_chars (`int`):
            Words between white space, and their characters.
        non_alpha (`int`):
            Words between white space without a letter.
        stop_words (`int`):
            Words between white space that are stop words, in any case.
        symbols (`int`):
            `#`, `...`, `. . .` and `…`, each counted by itself.
        lines, bullets, ellipses (`int`):
            Lines that are not blank, those that begin with a bullet and those that end in an ellipsis.
    """

    ft_words: int
    words: int
    word_chars: int
    non_alpha: int
    stop_words: int
    symbols: int
    lines: int
    bullets: int
    ellipses: int


class PieceCounts(NamedTuple):
    """Lines or paragraphs of a document, their characters, and both of those pieces that occur more than once."""

    pieces: int
    chars: int
    repeated: int
    repeated_chars: int


class RepetitionCounts(NamedTuple):
    """
    Counts for the rules of repetition.

    Args:
        lines, paragraphs (`PieceCounts`):
            Zeros but for `pieces` where there are fewer than two.
        ngram_chars (`tuple[int, ...]` of length 10):
            Characters of the words; for n = 2, 3, 4 those of the top n-gram times its count; for n = 5 to 10 those of
            the words that a repeated n-gram covers.
    """

    lines: PieceCounts
    paragraphs: PieceCounts
    ngram_chars: tuple[int, ...]


class LineMarks(NamedTuple):
    """
    What the rules of lines go by.

    Args:
        ft_words (`int`):
            As in [`QualityCounts`].
        filled (`int`):
            Lines that are not blank.
        upper (`list[int]`):
            Numbers of the lines more than half of whose characters are upper case.
        short (`list[int]`):
            Numbers of the lines that are not empty and have fewer than two words between white space.
        with_digits (`list[int]`):
            Numbers of the others that have a digit.
    """

    ft_words: int
    filled: int
    upper: list[int]
    short: list[int]
    with_digits: list[int]


class Counters(Protocol):
    """The compiled functions, and the plain ones: the same names, the same numbers."""

    def segment_spans(self, text: str, *, words_only: bool) -> Spans:
        """Where the segments between word boundaries lie."""

    def count_quality(self, text: str, stop_words: frozenset[str]) -> QualityCounts:
        """What the rules of quality go by."""

    def count_repetition(self, text: str) -> RepetitionCounts:
        """What the rules of repetition go by."""

    def mark_lines(self, text: str) -> LineMarks:
        """What the rules of lines go by."""

    def count_ft_words(self, text: str) -> int:
        """How many words `words_ft` would give."""
