"""What the two sets of Gopher's rules share: writing down what they measure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.steps import Batch, Judgement, RowStep, Rule, Values
from hf_ext.data.curation.unicode_tables import unicode_versions


@dataclass(frozen=True, kw_only=True)
class GopherStep(RowStep):
    """
    Base of [`GopherQuality`] and [`GopherRepetition`].

    Args:
        profile (`str`, *optional*, defaults to `"dclm"`):
            `"dclm"`, or `"datatrove"`: its rules by their names, on spaCy's words, which must be installed.
        annotate (`bool`, *optional*, defaults to `False`):
            Write what each rule measures as a column `<step>_<rule>` and drop nothing. Where a document is empty, too
            long or no string, the columns hold `None`.
    """

    profile: str = "dclm"
    annotate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile not in ("dclm", "datatrove"):
            raise ValueError(f'profile must be "dclm" or "datatrove", got {self.profile!r}.')

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules, in the order in which they are asked; none that only annotates."""
        return () if self.annotate else self._bounds()

    @property
    def versions(self) -> dict[str, str]:
        """Of the tables of characters, and of spaCy where its words count."""
        if self.profile == "datatrove":
            datatrove_rules.spacy_english()  # says what is missing
            return unicode_versions() | {"spacy": version("spacy")}
        return unicode_versions()

    @abstractmethod
    def _bounds(self) -> tuple[Rule, ...]:
        """The rules by the profile."""

    @abstractmethod
    def _statistics(self, texts: list[str]) -> dict[str, Values]:
        """What each rule measures."""

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """See [`RowStep`]."""
        values = self._statistics(texts)
        if not self.annotate:
            return {}, values
        return {f"{self.name}_{rule}": numbers.tolist() for rule, numbers in values.items()}, values

    def judge(self, batch: Batch, indices: Sequence[int] | None = None) -> Judgement:
        """See [`RowStep`]."""
        judgement = super().judge(batch, indices)
        return judgement._replace(drops=[None] * len(judgement.drops)) if self.annotate else judgement


def columns_of(rows: Sequence[tuple[float, ...]], names: Sequence[str]) -> dict[str, Values]:
    """Rows of values as one array for each name."""
    return dict(zip(names, np.array(rows, np.float64).reshape(-1, len(names)).T, strict=True))
