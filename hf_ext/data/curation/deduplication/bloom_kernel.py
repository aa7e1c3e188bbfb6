# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""Looking up and inserting in a Bloom filter, compiled; [`BloomFilter`] has the same by whole arrays without numba."""

from __future__ import annotations

import numpy as np

from hf_ext.guards.compiling import compiled


@compiled
def _step(value):
    """An odd number mixed from a hash, as [`hf_ext.data.curation.hashing.mixed`] does it."""
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) | np.uint64(1)


@compiled
def count_contained(bits, hashes, num_hashes):
    """How many of the hashes have all their bits set."""
    num_bits = np.uint64(len(bits)) << np.uint64(3)
    count = 0
    for number in range(len(hashes)):
        place = hashes[number]
        step = _step(place)
        for _ in range(num_hashes):
            bit = place % num_bits
            if not bits[bit >> np.uint64(3)] >> (bit & np.uint64(7)) & np.uint64(1):
                break
            place += step
        else:
            count += 1
    return count


@compiled
def insert(bits, hashes, num_hashes):
    """Set all bits of the hashes."""
    num_bits = np.uint64(len(bits)) << np.uint64(3)
    for number in range(len(hashes)):
        place = hashes[number]
        step = _step(place)
        for _ in range(num_hashes):
            bit = place % num_bits
            bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
            place += step


def try_out():
    """Compile, or load, what is here: raises where that cannot be done."""
    bits = np.zeros(1, np.uint8)
    insert(bits, np.zeros(1, np.uint64), 1)
    count_contained(bits, np.zeros(1, np.uint64), 1)
