"""Duplicates: exact, near (MinHash) and by paragraph (Bloom)."""
