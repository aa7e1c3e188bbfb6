"""Settings of `hf-ext data curate`."""
