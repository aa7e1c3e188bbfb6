"""Hashes of segments of a text and of n-grams of segments, seeded, by whole arrays."""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.integer]

_BASE = np.uint64(0xD1342543DE82EF95)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_BLOCK = 1 << 16  # values; what is longer by itself is hashed as bytes


def mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers after which each bit hangs on all: the finaliser of SplitMix64."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def segment_hashes(points: npt.NDArray[np.uint32], starts: Positions, ends: Positions, seed: int) -> Hashes:
    """The hash of each segment of a text, given its code points and where the segments lie; `(segments,)`."""
    return span_hashes(_point_hashes(seed)[points], starts, ends)


def span_hashes(values: Hashes, starts: Positions, ends: Positions) -> Hashes:
    r"""
    A 64-bit hash of each span of a sequence.

    With $x$ the values and $B$ an odd constant, a span's hash is
    $\operatorname{mix}(\sum_{i=s}^{e-1} x_i B^{i-s})$ modulo $2^{64}$. Sums up to each place give every span at once,
    however long the spans and however much they overlap.

    Args:
        values (`np.ndarray` of shape `(length,)`):
            Hashes of the sequence's items: of code points, or of segments.
        starts, ends (`np.ndarray` of shape `(spans,)`):
            Both ascending; no span is empty.

    Returns:
        `np.ndarray` of shape `(spans,)`, unsigned 64-bit.
    """
    powers, inverses = _powers()
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        origin = int(starts[first])
        stop = int(np.searchsorted(ends, origin + _BLOCK, side="right"))
        if stop <= first:
            span = values[origin : int(ends[first])].tobytes()
            hashes[first] = int.from_bytes(blake2b(span, digest_size=8).digest(), sys.byteorder)
            first += 1
            continue
        block = values[origin : int(ends[stop - 1])]
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * powers[: len(block)], out=sums[1:])
        block_starts = starts[first:stop] - origin
        hashes[first:stop] = mixed((sums[ends[first:stop] - origin] - sums[block_starts]) * inverses[block_starts])
        first = stop
    return hashes


def ngram_hashes(tokens: Hashes, size: int) -> Hashes:
    """The hash of each run of `size` tokens, or of all of them together where there are fewer, but some."""
    count = max(1, len(tokens) - size + 1) if len(tokens) else 0
    starts = np.arange(count)
    return span_hashes(tokens, starts, np.minimum(starts + size, len(tokens)))


@lru_cache(maxsize=4)  # 9 MB each
def _point_hashes(seed: int) -> Hashes:
    """A random number for each code point."""
    salt = mixed(np.array([seed], np.uint64))
    return mixed(np.arange(sys.maxunicode + 1, dtype=np.uint64) + salt)


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse."""
    exponents = []
    for base in (_BASE, _INVERSE):
        factors = np.full(_BLOCK, base, np.uint64)
        factors[0] = 1
        exponents.append(np.multiply.accumulate(factors))
    return exponents[0], exponents[1]
