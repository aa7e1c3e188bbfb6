"""Small steps whose outcome is seen at a glance, importable by worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, RowStep, Rule, SetStep, Values


@dataclass(frozen=True, kw_only=True)
class Shorten(RowStep):
    """Drop documents under three characters, cut the others at 40, add their length."""

    name: ClassVar[str] = "shorten"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("short", minimum=3),)

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        lengths = [len(text) for text in texts]
        return {"text": [text[:40] for text in texts], "length": lengths}, {"short": np.array(lengths, dtype=float)}


@dataclass(frozen=True, kw_only=True)
class Fatal(RowStep):
    """Nothing but the end, once, of the process that comes to the document "the end"."""

    marker: str

    name: ClassVar[str] = "fatal"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return ()

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        if "the end" in texts:
            with suppress(FileExistsError):
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return {}, {}


@dataclass(frozen=True, kw_only=True)
class FirstOfEach(SetStep):
    """Of equal first words the first document stays, cut where that is "cut"; all learn their word's number."""

    name: ClassVar[str] = "first_of_each"

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("again", maximum=1),)

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        return pa.table({"word": [text.split(" ")[0] for text in texts], "id": ["a name of ours"] * len(texts)})

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        counts: dict[str, int] = {}
        for table in tables:
            decisions = []
            for word in table["word"].to_pylist():
                counts[word] = counts.get(word, 0) + 1
                number = list(counts).index(word)
                drop = Drop("again", float(counts[word]), 1.0) if counts[word] > 1 else None
                decisions.append(Decision(drop, (0,) if word == "cut" else None, {"number": number}))
            yield decisions

    def rewrite(self, text: str, kept_pieces: tuple[int, ...]) -> str:
        return " ".join(text.split(" ")[piece] for piece in kept_pieces)
