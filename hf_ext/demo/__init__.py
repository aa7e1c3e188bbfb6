"""The embedded default: a real small model, a generated task, one table."""
