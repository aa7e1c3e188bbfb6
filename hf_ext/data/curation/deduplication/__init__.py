"""Duplicates: exact, near (MinHash) and by paragraph (Bloom)."""

from hf_ext.data.curation.deduplication.bloom import BloomDeduplication
from hf_ext.data.curation.deduplication.bloom_filter import OverfullError, bloom_size
from hf_ext.data.curation.deduplication.dataset import deduplicate
from hf_ext.data.curation.deduplication.exact import ExactDeduplication
from hf_ext.data.curation.deduplication.minhash import MINHASH_PRESETS, MinHashDeduplication

__all__ = [
    "MINHASH_PRESETS",
    "BloomDeduplication",
    "ExactDeduplication",
    "MinHashDeduplication",
    "OverfullError",
    "bloom_size",
    "deduplicate",
]
