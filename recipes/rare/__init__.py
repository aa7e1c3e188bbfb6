"""RARe: retrievers that use in-context examples."""
