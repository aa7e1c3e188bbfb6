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
def word_hashes(points, starts, ends, seed, powers):
    """A number for each word."""
    hashes = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        total = seed
        for offset in range(ends[word] - starts[word]):
            character = np.uint64(points[starts[word] + offset]) + np.uint64(1)
            total += character * powers[offset % len(powers)]
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


@compiled
def kind_spans(kinds):
    """Starts and ends of runs of kind 1, and of each item of kind 2."""
    starts = np.empty(len(kinds), np.int32)
    ends = np.empty(len(kinds), np.int32)
    count = 0
    previous = 0
    for place in range(len(kinds)):
        kind = kinds[place]
        if kind and previous == 1 and kind == 1:
            ends[count - 1] = place + 1
        elif kind:
            starts[count] = place
            ends[count] = place + 1
            count += 1
        previous = kind
    return starts[:count], ends[:count]


def try_out():
    """Compile, or load, what is here: raises where that cannot be done."""
    places = np.zeros(1, np.int32), np.ones(1, np.int32)
    words = word_hashes(np.zeros(1, np.uint32), *places, np.uint64(0), np.ones(2, np.uint64))
    ngram_hashes(words, 1, np.ones(2, np.uint64))
    kind_spans(np.zeros(1, np.uint8))
