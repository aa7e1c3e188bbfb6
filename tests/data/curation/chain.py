"""A chain whose decisions are seen at a glance: a step by row, one over the set, and a step by row behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, RowStep, Rule, SetStep, Values


@dataclass(frozen=True, kw_only=True)
class Words(RowStep):
    """Drop documents of fewer than `min_words` or more than ten words, strip the others, count their words."""

    min_words: int = 2
    name: ClassVar[str] = "words"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("few", minimum=self.min_words), Rule("many", maximum=10))

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        counts = np.array([len(text.split()) for text in texts], dtype=float)
        columns = {"text": [text.strip() for text in texts], "num_words": [int(count) for count in counts]}
        return columns, {"few": counts, "many": counts}


@dataclass(frozen=True, kw_only=True)
class FirstLines(SetStep):
    """Keep of each document the lines that no earlier document has; drop it where none is left."""

    name: ClassVar[str] = "first_lines"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("repeated", maximum=0.99),)

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        return pa.table({"lines": pa.array([text.split("\n") for text in texts], pa.list_(pa.string()))})

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        lines_so_far: set[str] = set()
        for table in tables:
            decisions = []
            for lines in table["lines"].to_pylist():
                places = tuple(place for place, line in enumerate(lines) if line not in lines_so_far)
                lines_so_far.update(lines)
                pieces = places if 0 < len(places) < len(lines) else None
                drop = None if places else Drop("repeated", 1.0, 0.99)
                decisions.append(Decision(drop, pieces, {"num_lines": len(places)}))
            yield decisions
        if notes is not None:
            notes["lines"] = len(lines_so_far)

    def rewrite(self, text: str, kept_pieces: tuple[int, ...]) -> str:
        lines = text.split("\n")
        return "\n".join(lines[place] for place in kept_pieces)


CHAIN = (Words(), FirstLines(), Words(min_words=3))


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of one to three lines of a few words from a small alphabet: many lines repeat."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        lines = [" ".join(rng.choice(list("abcdefg"), rng.integers(1, 6))) for _ in range(rng.integers(1, 4))]
        texts.append(" " * int(rng.integers(0, 3)) + "\n".join(lines))
    return texts


def plainly(texts: list[str]) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """What [`CHAIN`] leaves by position, and by which step and rule the others go, in one plain loop."""
    left: dict[int, str] = {}
    gone: dict[int, tuple[str, str]] = {}
    lines_so_far: set[str] = set()
    for row, text in enumerate(texts):
        count = len(text.split())
        if not text.strip():
            gone[row] = ("words", "empty")
        elif not 2 <= count <= 10:
            gone[row] = ("words", "few" if count < 2 else "many")
        else:
            lines = text.strip().split("\n")
            fresh = [line for line in lines if line not in lines_so_far]
            lines_so_far.update(lines)
            shortened = "\n".join(fresh).strip()
            if not fresh:
                gone[row] = ("first_lines", "repeated")
            elif len(shortened.split()) < 3:
                gone[row] = ("words_2", "few")
            else:
                left[row] = shortened
    return left, gone
