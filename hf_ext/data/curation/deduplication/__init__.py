"""Duplicates: exact, near (MinHash) and by paragraph (Bloom)."""

from hf_ext.data.curation.deduplication.dataset import deduplicate
from hf_ext.data.curation.deduplication.exact import ExactDeduplication

__all__ = ["ExactDeduplication", "deduplicate"]
