"""What a curation counts: rows and tokens after each step, and of each rule its drops and what it measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_ext.data.curation.steps import Notes, Rule, Values
from hf_ext.guards.inside import read_as

MOST_SOURCES = 1000
"""Sources that are counted by name; a set of a million hosts would not fit a report."""
OTHER_SOURCES = "(other sources)"
FILE_NAME = "counts.json"


def _edges() -> Values:
    """Numbers of two significant digits from 1e-6 up to 9.9e9, their negatives, and 0."""
    digits = np.arange(10, 100)
    # a division by a whole power of ten gives the very double that "0.30" is read as; 30 * 0.01 does not
    scales = [digits / 10**power for power in range(7, 0, -1)] + [digits * 10.0**power for power in range(9)]
    positive = np.concatenate(scales)
    return np.concatenate([[-np.inf], -positive[::-1], [0.0], positive])


EDGES = _edges()


@dataclass(frozen=True)
class Bin:
    """Of a histogram: values from `low` (with it) up to `high` (without it), and how many of them are `low` itself."""

    low: float
    high: float
    count: int
    count_at_low: int


class Histogram:
    """
    Counts of values between numbers of two significant digits.

    The grid is the same for every rule, so that the counts of any chunks add up, in any order. Values that are
    themselves such numbers are counted apart: a bound of two digits, as all of DCLM's but one are, parts them exactly.
    """

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}  # index of the edge below to how many are at it and above it

    def add(self, values: Values) -> None:
        """Count values; NaN, where a rule says nothing of a row, is left out."""
        numbers = values[~np.isnan(values)]
        edges = np.searchsorted(EDGES, numbers, side="right") - 1
        is_above = numbers != EDGES[edges]
        for code, count in zip(*np.unique(2 * edges + is_above, return_counts=True), strict=True):
            self._add(int(code) // 2, int(code) % 2, int(count))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another."""
        for edge, counts in other._counts.items():
            for side, count in enumerate(counts):
                self._add(edge, side, count)

    def _add(self, edge: int, side: int, count: int) -> None:
        self._counts.setdefault(edge, [0, 0])[side] += count

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(map(sum, self._counts.values()))

    def bins(self) -> list[Bin]:
        """The bins with something in them, from the smallest values to the largest."""
        upper = np.append(EDGES[1:], np.inf)
        return [
            Bin(float(EDGES[edge]), float(upper[edge]), sum(counts), counts[0])
            for edge, counts in sorted(self._counts.items())
        ]

    def num_beyond(self, rule: Rule) -> int:
        """
        How many values are beyond the bounds of a rule.

        Exact for bounds of two significant digits; for others, values in the same bin as the bound count as within.
        """
        count = 0
        for entry in self.bins():
            count_above_low = entry.count - entry.count_at_low
            if rule.maximum is not None:
                is_over = entry.low > rule.maximum or (rule.exclusive and entry.low == rule.maximum)
                count += entry.count_at_low * is_over + count_above_low * (entry.low >= rule.maximum)
            if rule.minimum is not None:
                is_under = entry.low < rule.minimum or (rule.exclusive and entry.low == rule.minimum)
                count += entry.count_at_low * is_under + count_above_low * (entry.high <= rule.minimum)
        return count

    def to_list(self) -> list[list[int]]:
        """For JSON: index of the edge, how many values are at it, how many between it and the next."""
        return [[edge, *counts] for edge, counts in sorted(self._counts.items())]

    @classmethod
    def from_list(cls, entries: Iterable[Sequence[int]]) -> Histogram:
        """What [`to_list`] gave."""
        histogram = cls()
        for edge, *counts in entries:
            for side, count in enumerate(counts):
                histogram._add(int(edge), side, int(count))
        return histogram


@dataclass
class RuleCounts:
    """
    Of one rule.

    Args:
        rule ([`Rule`]):
            Its bounds; none where documents go by it without a measurement, such as `empty`.
        num_dropped (`int`):
            Documents that go by it: it is the first in its step that they break.
        num_dropped_alone (`int`):
            Those of them that break no other rule of the step.
        values ([`Histogram`]):
            What it measured, of every document that came to the step.
    """

    rule: Rule
    num_dropped: int = 0
    num_dropped_alone: int = 0
    values: Histogram = field(default_factory=Histogram)

    def merge(self, other: RuleCounts) -> None:
        """Add the counts of other documents."""
        self.num_dropped += other.num_dropped
        self.num_dropped_alone += other.num_dropped_alone
        self.values.merge(other.values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        drops = {"num_dropped": self.num_dropped, "num_dropped_alone": self.num_dropped_alone}
        return {**vars(self.rule), **drops, "values": self.values.to_list()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RuleCounts:
        """What [`to_dict`] gave."""
        rule = Rule(values["name"], values["minimum"], values["maximum"], values["exclusive"])
        return cls(rule, values["num_dropped"], values["num_dropped_alone"], Histogram.from_list(values["values"]))


@dataclass
class StepCounts:
    """
    Of one step.

    Args:
        name (`str`):
            As the drop ledger has it.
        rows_in, rows_out (`int`):
            Documents before and after.
        tokens_in, tokens_out (`int`, *optional*):
            Their tokens, or words; `None` where there is no text yet, as before pages are extracted.
        seconds (`float`):
            Time in the step, summed over the processes.
        rules (`dict[str, RuleCounts]`):
            By the rule's name, in the order in which they are asked.
        notes (`dict[str, float | str]`):
            What a step over the whole set has to say of it, such as a filter's measured rate of errors.
    """

    name: str
    rows_in: int = 0
    rows_out: int = 0
    tokens_in: int | None = 0
    tokens_out: int | None = 0
    seconds: float = 0.0
    rules: dict[str, RuleCounts] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)

    def merge(self, other: StepCounts) -> None:
        """Add the counts of other documents."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.tokens_in = _sum(self.tokens_in, other.tokens_in)
        self.tokens_out = _sum(self.tokens_out, other.tokens_out)
        self.seconds += other.seconds
        for name, counts in other.rules.items():
            self.rules.setdefault(name, RuleCounts(counts.rule)).merge(counts)
        self.notes |= other.notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"rules": {name: counts.to_dict() for name, counts in self.rules.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepCounts:
        """What [`to_dict`] gave."""
        rules = {name: RuleCounts.from_dict(counts) for name, counts in values["rules"].items()}
        return cls(**{**values, "rules": rules})


@dataclass
class SourceCounts:
    """Of the documents of one source: how many were read, and how many each step dropped."""

    rows_read: int = 0
    drops_by_step: dict[str, int] = field(default_factory=dict)

    def merge(self, other: SourceCounts) -> None:
        """Add the counts of other documents."""
        self.rows_read += other.rows_read
        for step_name, count in other.drops_by_step.items():
            self.drops_by_step[step_name] = self.drops_by_step.get(step_name, 0) + count


@dataclass
class CurationCounts:
    """
    Of a whole curation, or a part of it: parts add up, in the order of the documents.

    Args:
        unit (`str`):
            What `tokens_in` and `tokens_out` count: `"words"` between white space, or `"tokens"` of a tokenizer.
        steps (`list[StepCounts]`):
            In their order; the first, `read`, is the reading of the files.
        sources (`dict[str, SourceCounts]`):
            By the value of the source's column; those past the first 1,000 are summed up under one name.
        peak_bytes (`int`):
            Most memory that one of the processes held.
    """

    unit: str = "words"
    steps: list[StepCounts] = field(default_factory=list)
    sources: dict[str, SourceCounts] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def rows_read(self) -> int:
        """Documents read, those that no step could see included."""
        return self.steps[0].rows_in if self.steps else 0

    @property
    def rows_kept(self) -> int:
        """Documents left after the last step."""
        return self.steps[-1].rows_out if self.steps else 0

    def rules(self) -> Iterator[tuple[str, RuleCounts]]:
        """Every rule with the name of its step."""
        for step in self.steps:
            for counts in step.rules.values():
                yield step.name, counts

    def merge(self, other: CurationCounts) -> None:
        """Add the counts of other documents, or of further steps on these."""
        by_name = {step.name: step for step in self.steps}
        for step in other.steps:
            if step.name not in by_name:
                by_name[step.name] = StepCounts(step.name)
                self.steps.append(by_name[step.name])
            by_name[step.name].merge(step)
        for source, counts in other.sources.items():
            name = source if source in self.sources or len(self.sources) < MOST_SOURCES else OTHER_SOURCES
            self.sources.setdefault(name, SourceCounts()).merge(counts)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sources = {name: asdict(counts) for name, counts in self.sources.items()}
        return vars(self) | {"steps": [step.to_dict() for step in self.steps], "sources": sources}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CurationCounts:
        """What [`to_dict`] gave."""
        steps = [StepCounts.from_dict(step) for step in values["steps"]]
        sources = {name: SourceCounts(**counts) for name, counts in values["sources"].items()}
        return cls(**{**values, "steps": steps, "sources": sources})

    @classmethod
    def read(cls, folder: str | Path) -> CurationCounts:
        """
        The counts of a folder that `curate` wrote.

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if the file is damaged or of something else.
        """
        return read_as(Path(folder) / FILE_NAME, cls.from_dict, "the counts of a curation")


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
