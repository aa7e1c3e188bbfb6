"""The page of a report: one HTML file that needs no other, in which data is text and never an element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_ext.data.curation.counts import Bin, RuleCounts
from hf_ext.guards.markdown import one_line

NUM_BARS = 40
_TAIL = 0.005  # share of the values at either end that the first and the last bar gather
_LOG_SPAN = 50  # a wider span than this is drawn on a logarithmic axis


class Table(NamedTuple):
    """
    A table of a report.

    Args:
        title (`str`):
            Its heading.
        names (`tuple[str, ...]`):
            Of the columns.
        rows (`list[list[str]]`):
            A cell for each column.
        note (`str`):
            A sentence below; may be empty.
        num_texts (`int`):
            How many columns, from the first, hold texts; the others hold numbers.
    """

    title: str
    names: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    num_texts: int = 1


class Bar(NamedTuple):
    """A bar of a histogram: its place and height in per cent of the chart, and whether its documents go."""

    left: float
    width: float
    height: float
    is_beyond: bool


class Chart(NamedTuple):
    """A histogram: its heading, the ends of its axis, its bars, and the bounds with their place in per cent."""

    title: str
    low: str
    high: str
    bars: list[Bar]
    bounds: list[tuple[float, str]]


def histogram_chart(title: str, counts: RuleCounts) -> Chart | None:
    """The chart of what a rule measured; `None` where it measured nothing, or of every document the same."""
    bins = counts.values.bins()
    bounds = [bound for bound in (counts.rule.minimum, counts.rule.maximum) if bound is not None]
    if not bins or not bounds or counts.values.total in (bins[0].count_at_low, bins[-1].count_at_low):
        return None
    low, high = _span(bins, bounds)
    is_log = low > 0 and high / low > _LOG_SPAN
    scale = math.log if is_log else float
    place = lambda value: (scale(min(max(value, low), high)) - scale(low)) / (scale(high) - scale(low))  # noqa: E731
    heights = np.zeros((2, NUM_BARS))  # of what stays, and of what goes
    for entry in bins:
        middle = min(entry.high, high) if entry.low < low else (entry.low + min(entry.high, high)) / 2
        for value, count in ((entry.low, entry.count_at_low), (middle, entry.count - entry.count_at_low)):
            bar = min(int(place(value) * NUM_BARS), NUM_BARS - 1)
            heights[int(counts.rule.broken_bound(value) is not None), bar] += count
    most = math.sqrt(heights.max())
    # a root, so that a rare value beside a common one can still be seen
    bars = [
        Bar(100 * index / NUM_BARS, 100 / NUM_BARS, 100 * math.sqrt(height) / most, bool(goes))
        for goes, row in enumerate(heights)
        for index, height in enumerate(row)
        if height
    ]
    marks = [(100 * place(bound), f"{bound:g}") for bound in bounds]
    axis = " (logarithmic)" if is_log else ""
    return Chart(title + axis, f"{low:.3g}", f"{high:.3g}", bars, marks)


def _span(bins: Sequence[Bin], bounds: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: all values but the rarest at either end, and every bound."""
    totals = np.cumsum([entry.count for entry in bins])
    first = bins[int(np.searchsorted(totals, _TAIL * totals[-1], side="right"))]
    last = bins[min(int(np.searchsorted(totals, (1 - _TAIL) * totals[-1])), len(bins) - 1)]
    low = min(first.low if math.isfinite(first.low) else first.high, *bounds)
    high = max(last.high if math.isfinite(last.high) else last.low, *bounds)
    return (low, high) if high > low else (low, low + 1.0)


def render_page(
    title: str,
    summary: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    funnel: Sequence[tuple[str, float, float | None]],
    unit: str,
    tables: Sequence[Table],
    charts: Sequence[Chart],
) -> str:
    """
    The page.

    Args:
        title (`str`):
            Its heading.
        summary (`Sequence[tuple[str, str]]`):
            Name and value of the figures at its head.
        warnings (`Sequence[str]`):
            Sentences.
        funnel (`Sequence[tuple[str, float, float | None]]`):
            A step, and the shares of documents and of tokens or words left after it, from 0 to 1.
        unit (`str`):
            `"tokens"` or `"words"`.
        tables, charts (`Sequence`):
            What follows.

    Returns:
        `str`: HTML without a script, a link or anything to load.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {"title": title, "summary": summary, "warnings": warnings, "funnel": funnel, "unit": unit}
    return environment.get_template("report_page.jinja").render(**values, tables=tables, charts=charts) + "\n"


def _shown(value: object) -> object:
    """Texts on one line, without what cannot be seen or turns the line; Jinja escapes them next."""
    return one_line(value) if isinstance(value, str) else value
