"""The card of a model that was trained beside anchor rows: which ones they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_ext.data.starts import seed_lines
from hf_ext.trainers.base.card import TrainerCard

KINDS = {
    "contextual": "samples of the original model after prompts",
    "replay": "real texts, no samples of the model",
}


def words_of(manifest: Mapping[str, Any]) -> str:
    """What the rows of a store are, from its manifest."""
    kind = manifest.get("kind", "context_free")
    if kind != "context_free":
        return KINDS.get(kind, f"{kind} rows")
    seeds = ", ".join(f"{share} from {name}" for name, _, share in seed_lines(manifest))
    temperature = manifest.get("temperature", 1.0)
    at = "" if temperature == 1.0 else f", at temperature {temperature:g}"
    return f"samples of the original model: {seeds}{at}"


class ContextFreeCard(TrainerCard):
    """The card of a model that was trained beside anchor rows."""

    def facts(self) -> dict[str, Any]:
        """Which rows anchored the model."""
        return super().facts() | {"anchor_rows": words_of(self.trainer.store.manifest)}
