"""What a retriever with exemplars needs at inference. `QueryAugmenter` and `EncoderSettings` import no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_ext.retrieval.augmenter import EncoderSettings, QueryAugmenter

if TYPE_CHECKING:
    from hf_ext.retrieval.encoder import RareEncoder

__all__ = ["EncoderSettings", "QueryAugmenter", "RareEncoder"]


def __getattr__(name: str) -> Any:
    if name == "RareEncoder":
        from hf_ext.retrieval.encoder import RareEncoder

        return RareEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
