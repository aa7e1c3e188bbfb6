"""The `hf-ext` command: one module a verb."""
