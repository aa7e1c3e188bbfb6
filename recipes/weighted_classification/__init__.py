"""Launch weighted classification."""
