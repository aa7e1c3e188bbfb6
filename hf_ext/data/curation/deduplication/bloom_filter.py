"""A Bloom filter over 64-bit hashes: seeded by them, sized for a number of them, with its rate of errors measured."""

from __future__ import annotations

import math

import numpy as np

from hf_ext.data.curation.hashing import Hashes, mixed
from hf_ext.guards.compiling import compiled_module

_KERNEL = "hf_ext.data.curation.deduplication.bloom_kernel"
_PROBES = 1 << 17


class OverfullError(ValueError):
    """More was put, or would have to be put, into a Bloom filter than it can tell apart at its rate of errors."""


def bloom_size(num_items: int, fp_rate: float) -> tuple[int, int]:
    r"""
    The smallest filter for a number of items.

    With $m$ bits, $n$ items and $k = \lceil (m/n) \ln 2 \rceil$ hash functions, an item that is not in the full filter
    is found there with probability $(1-(1-1/m)^{kn})^k$.

    Args:
        num_items (`int`):
            $n$.
        fp_rate (`float`):
            Greatest probability of a false positive.

    Returns:
        Its size in bytes, and its number of hash functions.

    Reference: Bloom 1970, *Space/time trade-offs in hash coding with allowable errors*; sized as by BFF, the tool of
    *DataComp-LM* (arXiv 2406.11794).
    """
    if num_items == 0:
        return 1, 1
    low, high = 0, 1 + math.ceil(-2 * num_items * math.log(fp_rate) / math.log(2) ** 2 / 8)
    while high - low > 1:
        middle = (low + high) // 2
        if false_positive_rate(middle, num_items) > fp_rate:
            low = middle
        else:
            high = middle
    return high, _num_hashes(high, num_items)


def false_positive_rate(num_bytes: int, num_items: int) -> float:
    """What a filter of this size, full with this number of items, answers wrongly, by the formula."""
    num_hashes = _num_hashes(num_bytes, num_items)
    return (-math.expm1(num_hashes * num_items * math.log1p(-1 / (8 * num_bytes)))) ** num_hashes


def _num_hashes(num_bytes: int, num_items: int) -> int:
    return math.ceil(8 * num_bytes / num_items * math.log(2))


class BloomFilter:
    """
    A set of 64-bit hashes that never forgets one and takes a small share of others for its own.

    Its bits come by double hashing: the hash, and steps of a second one mixed from it.

    Args:
        capacity (`int`):
            Number of hashes that will be inserted, repeated ones counted.
        fp_rate (`float`):
            Greatest probability that another hash is taken for one of them, in (0, 1).

    Raises:
        OverfullError: from [`insert`], if more than `capacity` are inserted.
    """

    def __init__(self, capacity: int, fp_rate: float) -> None:
        num_bytes, self.num_hashes = bloom_size(capacity, fp_rate)
        self.capacity = capacity
        self.bits = np.zeros(num_bytes, np.uint8)
        self.num_inserted = 0

    def count(self, hashes: Hashes) -> int:
        """How many of the hashes are in the filter, or seem to be."""
        kernel = compiled_module(_KERNEL)
        if kernel is not None:
            return int(kernel.count_contained(self.bits, hashes, self.num_hashes))
        places = self._places(hashes)
        is_set = self.bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & 1
        return int(is_set.all(axis=1).sum())

    def insert(self, hashes: Hashes) -> None:
        """Put hashes into the filter."""
        self.num_inserted += len(hashes)
        if self.num_inserted > self.capacity:
            raise OverfullError(f"A Bloom filter made for {self.capacity:,} hashes got {self.num_inserted:,}.")
        kernel = compiled_module(_KERNEL)
        if kernel is not None:
            kernel.insert(self.bits, hashes, self.num_hashes)
            return
        places = self._places(hashes).reshape(-1)
        masks = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
        np.bitwise_or.at(self.bits, places >> np.uint64(3), masks)  # unlike |= it does not lose bits of one byte

    @property
    def fill(self) -> float:
        """Share of its bits that are set."""
        return float(np.bitwise_count(self.bits).sum(dtype=np.int64)) / (8 * len(self.bits))

    def measured_fp_rate(self, seed: int) -> float:
        """Share of random hashes, which are not in it, that it takes for its own."""
        probes = np.random.default_rng(seed).integers(0, 1 << 64, _PROBES, dtype=np.uint64)
        return self.count(probes) / _PROBES

    def _places(self, hashes: Hashes) -> Hashes:
        """The bits of each hash; `(hashes, num_hashes)`."""
        steps = mixed(hashes) | np.uint64(1)  # never zero, which would leave one bit
        rounds = np.arange(self.num_hashes, dtype=np.uint64)
        return (hashes[:, None] + rounds * steps[:, None]) % np.uint64(8 * len(self.bits))
