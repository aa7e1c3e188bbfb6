"""Words and word n-grams of a text as 64-bit numbers, in numpy: for the classifier and the search for benchmarks."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.uint32]  # code points
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.intp]

_PERIOD = 4096  # of the powers below: a longer word takes them anew, so that no text needs a longer table
_BASE = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def word_spans(is_word: npt.NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Starts and ends of the runs of characters that belong to words; each `(words,)`."""
    edges = np.diff(is_word.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def word_hashes(points: Points, starts: Positions, ends: Positions, seed: int = 0) -> Hashes:
    """
    A number for each word, the same wherever it stands; `(words,)`.

    Args:
        points (`np.ndarray` of shape `(characters,)`):
            The text.
        starts, ends (`np.ndarray` of shape `(words,)`):
            Where its words lie; none is empty.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives other numbers.
    """
    lengths = ends - starts
    firsts = np.cumsum(lengths) - lengths  # of each word among the characters of all words
    if not len(lengths):
        return np.zeros(0, np.uint64)
    offsets = np.arange(firsts[-1] + lengths[-1]) - np.repeat(firsts, lengths)
    # one more than the code point: otherwise NUL at the end of a word would not count
    characters = points[offsets + np.repeat(starts, lengths)].astype(np.uint64) + np.uint64(1)
    return _mixed(np.add.reduceat(characters * _powers()[offsets % _PERIOD], firsts) + np.uint64(seed))


def ngram_hashes(words: Hashes, length: int) -> Hashes:
    """A number for each run of `length` words, `(words - length + 1,)`, from the words' own."""
    count = len(words) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.full(count, length, np.uint64)
    for offset in range(length):
        total += words[offset : offset + count] * _powers()[offset + 1]
    return _mixed(total)


@cache
def _powers() -> Hashes:
    powers = [1]
    while len(powers) < _PERIOD:
        powers.append(powers[-1] * _BASE & _MASK)
    return np.array(powers, np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """Spread over all bits: the last step of splitmix64 (Steele, Lea and Flood 2014, figure 16)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
