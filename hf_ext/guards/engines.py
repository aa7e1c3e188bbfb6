"""The error of an engine that samples rows."""

from __future__ import annotations


class BackendError(RuntimeError):
    """An engine could not sample, answered nonsense, or samples from another distribution than the model's."""
