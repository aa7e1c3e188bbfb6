"""Words and word n-grams of a text as 64-bit numbers: for classifiers, benchmarks' rows and duplicates."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from hf_ext.guards.compiling import compiled_module

Points = npt.NDArray[np.uint32]  # code points
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.integer]

_PERIOD = 4096  # powers in a table; those of longer words are products of two
_BLOCK = 1 << 18  # characters taken at once, so that a long line needs little memory
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
    kernel = compiled_module("hf_ext.data.curation.hashing_kernel")
    if kernel is not None:
        return kernel.word_hashes(points, starts, ends, np.uint64(seed), powers()[1])
    lengths = ends - starts
    lasts = np.cumsum(lengths)  # where each word ends among the characters of all words
    total = int(lasts[-1]) if len(lasts) else 0
    sums = np.full(len(lengths), seed, np.uint64)
    longest = int(lengths.max(initial=0))
    further = np.array([pow(_BASE, start, 1 << 64) for start in range(0, longest + 1, _PERIOD)], np.uint64)
    for begin in range(0, total, _BLOCK):
        end = min(begin + _BLOCK, total)
        first = int(np.searchsorted(lasts, begin, side="right"))
        last = int(np.searchsorted(lasts, end, side="left"))
        words = slice(first, last + 1)
        word_begins = lasts[words] - lengths[words]
        counts = np.minimum(lasts[words], end) - np.maximum(word_begins, begin)  # of each, in this block
        offsets = np.arange(begin, end) - np.repeat(word_begins, counts)
        # one more than the code point: otherwise NUL at the end of a word would not count
        characters = points[offsets + np.repeat(starts[words], counts)].astype(np.uint64) + np.uint64(1)
        characters *= powers()[offsets % _PERIOD] * further[offsets // _PERIOD]
        sums[words] += np.add.reduceat(characters, np.maximum(word_begins - begin, 0))
    return mixed(sums)


def ngram_hashes(words: Hashes, length: int) -> Hashes:
    """A number for each run of `length` words, `(words - length + 1,)`, from the words' own."""
    count = max(len(words) - length + 1, 0)
    kernel = compiled_module("hf_ext.data.curation.hashing_kernel")
    if kernel is not None and count:
        return kernel.ngram_hashes(words, length, powers())
    return hashes_from(words, slice(0, count), length)


def hashes_from(words: Hashes, starts: Positions | slice, length: int) -> Hashes:
    """What [`ngram_hashes`] gives at some positions; none is so late that the words end before the n-gram does."""
    # every offset looks at its own words: those from the first start on, shifted by the offset
    total = np.full_like(words[starts], length)
    for offset in range(length):
        total += words[offset:][starts] * powers()[offset + 1]
    return mixed(total)


@cache
def powers() -> Hashes:
    """What the characters of a word, and the words of an n-gram, are multiplied with; `(4096,)`."""
    numbers = [1]
    while len(numbers) < _PERIOD:
        numbers.append(numbers[-1] * _BASE & _MASK)
    return np.array(numbers, np.uint64)


def mixed(values: Hashes) -> Hashes:
    """Spread over all bits, one to one: the last step of splitmix64 (Steele, Lea and Flood 2014, figure 16)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
