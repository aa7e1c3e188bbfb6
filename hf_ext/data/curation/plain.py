"""
The counts behind the rules without numba: several times slower than [`hf_ext.data.curation.kernel`], the same numbers.

Words are found by one regular expression over the characters' classes, a letter a class, in place of a loop.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.text_counts import (
    NGRAM_SIZES,
    TOP_NGRAM_SIZES,
    LineMarks,
    PieceCounts,
    QualityCounts,
    RepetitionCounts,
    Spans,
)
from hf_ext.data.curation.unicode_tables import IS_ALNUM, IS_PICTOGRAPH, code_points, unicode_tables

# A letter for each class of unicode_tables.WORD_BREAK_CLASSES, in lower case if the character is a pictograph, too.
_CLASS_LETTERS = np.frombuffer(b"OCLWEFZAHNKUSBMIDRG", np.uint8)
_LOWER = 32
# What follows decides whether a character joins the next: so no alternative is ever taken back, and the possessive +
# keeps memory flat on a word of millions of letters.
_SEGMENT = r"""
    CL | [CLW]  # WB3, WB3a, WB3b
    | <joined>*+ <last>
      (?: (?<=Z) (?-i:(?=[a-z])) <joined>*+ <last> )*+  # WB3c: a pictograph after ZWJ
"""
_JOINED = r"""(?:
      [AH]+<x> (?=[AHNU])                        # WB5, WB9, WB13a
    | [AH]<x> [SBM]<x> (?=[AH])                  # WB6, WB7
    | H<x> D<x> (?=H)                            # WB7b, WB7c
    | N+<x> (?=[NAHU])                           # WB8, WB10, WB13a
    | N<x> [SBI]<x> (?=N)                        # WB11, WB12
    | K<x> (?=[KU])                              # WB13, WB13a
    | U<x> (?=[AHNKU])                           # WB13a, WB13b
)"""
_LAST = r"""(?:
      H<x> S<x>                                  # WB7a
    | R<x> R<x>                                  # WB15, WB16
    | G+ <x>                                     # WB3d
    | [^CLW] <x>                                 # WB999
)"""
_Integers = npt.NDArray[np.int64]
_FT_WORD = re.compile(r"[^ \n\r\t\v\f\0]+")
_SYMBOLS = ("#", "...", ". . .", "…")
_BULLETS = ("●", "•", "*", "-")
_ELLIPSES = ("...", ". . .", "…")


@cache
def _segment_pattern() -> re.Pattern[str]:
    pattern = _SEGMENT.replace("<joined>", _JOINED).replace("<last>", _LAST).replace("<x>", "[EFZ]*")  # WB4
    return re.compile(pattern, re.VERBOSE | re.IGNORECASE)


def segment_spans(text: str, *, words_only: bool) -> Spans:
    """Where the segments of a text lie; see [`hf_ext.data.curation.words`]."""
    tables = unicode_tables()
    points = code_points(text)
    traits = tables.traits[points]
    letters = _CLASS_LETTERS[tables.word_break[points]] + np.where(traits & IS_PICTOGRAPH, _LOWER, 0).astype(np.uint8)
    matches = _segment_pattern().finditer(letters.tobytes().decode("ascii"))
    spans = np.fromiter(chain.from_iterable(map(re.Match.span, matches)), np.int32).reshape(-1, 2)
    if words_only:
        spans = spans[traits[spans[:, 0]] & IS_ALNUM != 0]
    return spans[:, 0], spans[:, 1]


def count_quality(text: str, stop_words: frozenset[str]) -> QualityCounts:
    """What the rules of quality go by; stop words are up to eight ASCII letters long."""
    words = text.split()
    lines = _stripped(text.split("\n"))
    return QualityCounts(
        ft_words=count_ft_words(text),
        words=len(words),
        word_chars=sum(map(len, words)),
        non_alpha=sum(not any(map(str.isalpha, word)) for word in words),
        stop_words=sum(word in stop_words for word in text.lower().split()),
        symbols=sum(map(text.count, _SYMBOLS)),
        lines=len(lines),
        bullets=sum(line.startswith(_BULLETS) for line in lines),
        ellipses=sum(line.endswith(_ELLIPSES) for line in lines),
    )


def _stripped(pieces: list[str]) -> list[str]:
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _count_pieces(pieces: list[str]) -> PieceCounts:
    if len(pieces) < 2:
        return PieceCounts(len(pieces), 0, 0, 0)
    repeated = [(piece, count) for piece, count in Counter(pieces).items() if count > 1]
    return PieceCounts(
        pieces=len(pieces),
        chars=sum(map(len, pieces)),
        repeated=sum(count for _, count in repeated),
        repeated_chars=sum(len(piece) * count for piece, count in repeated),
    )


def count_repetition(text: str) -> RepetitionCounts:
    """What the rules of repetition go by."""
    starts, ends = segment_spans(text, words_only=True)
    numbers: dict[str, int] = {}
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    words = [numbers.setdefault(text[start:end], len(numbers)) for start, end in spans]
    lines = _count_pieces(_stripped(text.split("\n")))
    ngrams = _ngram_chars(np.array(words, np.int64), ends - starts)
    return RepetitionCounts(lines, _count_pieces(_stripped(text.split("\n\n"))), ngrams)


def _ngram_chars(words: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> tuple[int, ...]:
    """
    Characters of the words, then for each n from 2 to 10 those that the rule counts.

    A round goes only by what repeats in the round before. `words` are numbers, equal for equal words.
    """
    chars_before = np.concatenate(([0], np.cumsum(lengths)))  # of the words before each
    totals = [int(chars_before[-1])]
    positions, grams = _repeated(np.arange(len(words)), words)[:2]
    for size in NGRAM_SIZES:
        follows = np.flatnonzero(np.diff(positions) == 1)  # where the next word begins a repeated (n-1)-gram, too
        pairs = grams[follows] * len(words) + grams[follows + 1]
        positions, grams, counts = _repeated(positions[follows], pairs)
        ends = positions + size
        if not len(positions):
            total = 0
        elif size in TOP_NGRAM_SIZES:
            highest = counts == counts.max()
            total = counts.max() * (chars_before[ends] - chars_before[positions])[highest].max()
        else:
            total = (chars_before[ends] - chars_before[np.maximum(positions, np.append(0, ends[:-1]))]).sum()
        totals.append(int(total))
    return tuple(totals)


def _repeated(positions: _Integers, grams: _Integers) -> tuple[_Integers, _Integers, _Integers]:
    """Of n-grams at some positions those that occur more than once: positions, numbers and how often they occur."""
    _, numbers, counts = np.unique(grams, return_inverse=True, return_counts=True)
    is_repeated = counts[numbers] > 1
    return positions[is_repeated], numbers[is_repeated], counts[numbers][is_repeated]


def mark_lines(text: str) -> LineMarks:
    """What the rules of lines go by."""
    marks = LineMarks(count_ft_words(text), 0, [], [], [])
    num_filled = 0
    for number, line in enumerate(text.split("\n")):
        num_words = len(line.split())
        num_filled += num_words > 0
        if 2 * sum(map(str.isupper, line)) > len(line):
            marks.upper.append(number)
        if num_words >= 2:
            if any(map(str.isdigit, line)):
                marks.with_digits.append(number)
        elif line:
            marks.short.append(number)
    return marks._replace(filled=num_filled)


def count_ft_words(text: str) -> int:
    """How many words [`words_ft`] would give."""
    return sum(token[0].isalnum() for token in _FT_WORD.findall(text))
