"""The card of a trainer of the SFT family."""

from __future__ import annotations

from typing import Any


def card_of_trainer(trainer: Any, folder: str, **kwargs: Any) -> None:
    """Write the card."""
