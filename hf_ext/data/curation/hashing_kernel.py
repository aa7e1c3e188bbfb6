# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""The hashes of [`hf_ext.data.curation.hashing`], compiled: the same numbers."""

from __future__ import annotations

import numpy as np

from hf_ext.guards.compiling import compiled


@compiled
def _mixed(value):
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def word_hashes(points, starts, ends, seed, base):
    """A number for each word."""
    hashes = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        total = seed
        power = np.uint64(1)  # multiplied, not looked up: the compiler would take words for long rows of numbers
        for place in range(starts[word], ends[word]):
            total += (np.uint64(points[place]) + np.uint64(1)) * power
            power *= base
        hashes[word] = _mixed(total)
    return hashes


@compiled
def ngram_hashes(words, length, powers):
    """A number for each run of words."""
    hashes = np.empty(len(words) - length + 1, np.uint64)
    for start in range(len(hashes)):
        total = np.uint64(length)
        for offset in range(length):
            total += words[start + offset] * powers[offset + 1]
        hashes[start] = _mixed(total)
    return hashes


def try_out():
    """Compile, or load, what is here: raises where that cannot be done."""
    places = np.zeros(1, np.int32), np.ones(1, np.int32)
    words = word_hashes(np.zeros(1, np.uint32), *places, np.uint64(0), np.uint64(1))
    ngram_hashes(words, 1, np.ones(2, np.uint64))
