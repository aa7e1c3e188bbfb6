# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""N-grams of folded texts and signatures of MinHash, compiled; both are had by whole arrays without numba, too."""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation.deduplication.folded_text import KIND_SHIFT, NO_WORD, NOTHING, PART, SEVERAL, WORD
from hf_ext.guards.compiling import compiled

_BLOCK = 512  # hash functions at a time: what they need stays in the nearest cache


@compiled
def _mixed(value):
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def folded_ngrams(points, table, length, seed, powers):
    """
    What the function of this name in [`hf_ext.data.curation.deduplication.folded_text`] gives; and whether a character
    is several, on which it stops.
    """
    base = powers[1]
    words = np.empty(len(points) + 1, np.uint64)
    num_words = 0
    total = seed
    power = np.uint64(1)
    previous = np.uint32(NO_WORD)
    for point in points:
        entry = table[point]
        kind = entry >> np.uint32(KIND_SHIFT)
        character = np.uint64(entry & np.uint32((1 << KIND_SHIFT) - 1)) + np.uint64(1)
        if kind == PART:
            if previous != PART:
                total = seed
                power = np.uint64(1)
            total += character * power
            power *= base
        else:
            if kind == NOTHING:
                continue
            if kind == SEVERAL:
                return np.empty(0, np.uint32), True
            if previous == PART:
                words[num_words] = total
                num_words += 1
            if kind == WORD:
                words[num_words] = seed + character
                num_words += 1
        previous = kind
    if previous == PART:
        words[num_words] = total
        num_words += 1
    for word in range(num_words):
        words[word] = _mixed(words[word])
    length = min(length, max(1, num_words))
    ngrams = np.empty(max(num_words - length + 1, 0), np.uint32)
    for start in range(len(ngrams)):
        total = np.uint64(length)
        for place in range(length):
            total += words[start + place] * powers[place + 1]
        ngrams[start] = _mixed(total) >> np.uint64(32)
    return ngrams, False


@compiled
def signatures(ngrams, ends, factors, addends):
    """The least value of each hash function over the n-grams of each document; `(documents, functions)`."""
    least = np.full((len(ends), len(factors)), 0xFFFFFFFF, np.uint32)
    start = 0
    for document in range(len(ends)):
        end = ends[document]
        for first in range(0, len(factors), _BLOCK):
            functions = slice(first, min(first + _BLOCK, len(factors)))
            row = least[document, functions]
            factor = factors[functions]
            addend = addends[functions]
            # Four n-grams a round, so that the loop over functions, which runs in vectors, loads and stores once for
            # four. Each product is cut to 32 bits at once, for numba would go on in 64.
            for position in range(start, end, 4):
                a = ngrams[position]
                b = ngrams[min(position + 1, end - 1)]  # the last n-gram may count again: it changes no minimum
                c = ngrams[min(position + 2, end - 1)]
                d = ngrams[min(position + 3, end - 1)]
                for k in range(len(row)):
                    value_a = np.uint32(np.uint32(factor[k] * a) + addend[k])
                    value_b = np.uint32(np.uint32(factor[k] * b) + addend[k])
                    value_c = np.uint32(np.uint32(factor[k] * c) + addend[k])
                    value_d = np.uint32(np.uint32(factor[k] * d) + addend[k])
                    row[k] = min(row[k], min(min(value_a, value_b), min(value_c, value_d)))
        start = end
    return least


def try_out():
    """Compile, or load, what is here: raises where that cannot be done."""
    single = np.ones(1, np.uint32)
    folded_ngrams(single, np.zeros(2, np.uint32), 1, np.uint64(0), np.ones(2, np.uint64))
    signatures(single, np.ones(1, np.int64), single, single)
