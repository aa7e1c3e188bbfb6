"""What an encoder does with its exemplars, as `rare_config.json` holds it. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_ext.data.exemplars import RareFormatter


@dataclass(frozen=True)
class EncoderSettings:
    """
    How queries are shown exemplars at inference.

    Args:
        k (`int`, *optional*, defaults to `5`):
            Exemplars of a query.
        formatter ([`RareFormatter`], *optional*):
            The text; that of training.
        floor (`float`, *optional*):
            The gate: a query whose nearest exemplar has a lower score is read bare. One number, tuned on dev. BM25
            scores are not comparable between pools: tune it again for another one.
        min_score (`float`, *optional*):
            Exemplars of a lower score are not shown; the nearer ones still are.
        mmr (`float`, *optional*):
            As in [`ExemplarStore.search`].
        example_weight (`float`, *optional*, defaults to `1.0`):
            The blend: share of a query's vector, in (0, 1], that comes from its text with exemplars; the rest comes
            from the bare query. It bounds the worst case and costs one more short forward. Tuned on dev.
        pool_examples (`bool`, *optional*, defaults to `False`):
            Whether the exemplars' tokens enter the vector of a model that pools many tokens; as in training. One whose
            pooling takes the first or the last token reads them alone in any case.
        training (`dict`, *optional*):
            What training did: `example_rate`, `exclude`, and the like.
        provenance (`dict`, *optional*):
            Of the exemplars: data sets, revisions, `license`.
    """

    k: int = 5
    formatter: RareFormatter = field(default_factory=RareFormatter)
    floor: float | None = None
    min_score: float | None = None
    mmr: float | None = None
    example_weight: float = 1.0
    pool_examples: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k is a number of exemplars, 0 or more; got {self.k!r}.")
        if not (math.isfinite(self.example_weight) and 0 < self.example_weight <= 1):
            raise ValueError(
                f"example_weight is a share in (0, 1], got {self.example_weight!r}. For none, pass examples=False."
            )
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise ValueError(f"mmr lies in [0, 1], got {self.mmr!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON has them."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return values | {"formatter": self.formatter.to_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EncoderSettings:
        """
        Settings from [`to_dict`]'s result.

        Raises:
            ValueError: a setting that this version does not know.
        """
        unknown = set(settings) - {entry.name for entry in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"rare_config.json has a setting {sorted(unknown)[0]!r} unknown here. Upgrade hf-ext.")
        values = dict(settings)
        if "formatter" in values:
            values["formatter"] = RareFormatter.from_dict(values["formatter"])
        return cls(**values)
