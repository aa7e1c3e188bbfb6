"""Callables and functions on datasets: weighting rows, context-free rows."""
