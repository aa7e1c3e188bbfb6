"""Settings of `hf-ext data prune`."""
