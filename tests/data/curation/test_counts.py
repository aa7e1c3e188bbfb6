"""Counts add up, whatever the chunks; a histogram tells what another bound would drop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.curation.counts import (
    EDGES,
    MOST_SOURCES,
    OTHER_SOURCES,
    CurationCounts,
    Histogram,
    RuleCounts,
    SourceCounts,
    StepCounts,
)
from hf_ext.data.curation.steps import Rule


def histogram_of(*chunks):
    histogram = Histogram()
    for values in chunks:
        histogram.add(np.array(values, dtype=float))
    return histogram


def test_edges_are_the_very_numbers_that_two_digits_are_read_as():
    positive = {float(f"{digits}e{power}") for digits in range(10, 100) for power in range(-7, 9)}
    assert set(EDGES[1:]) == positive | {-edge for edge in positive} | {0.0}
    assert (np.diff(EDGES) > 0).all()


two_digits = st.builds(lambda digits, power: float(f"{digits}e{power}"), st.integers(10, 99), st.integers(-6, 6))
numbers = st.one_of(two_digits, st.floats(-1e8, 1e8), st.integers(-10, 2000).map(float), st.just(float("nan")))


@settings(deadline=None)
@given(st.lists(numbers), two_digits, st.booleans(), st.sampled_from(["minimum", "maximum"]))
def test_the_number_beyond_a_bound_of_two_digits_is_exact(values, bound, exclusive, side):
    rule = Rule("r", **{side: bound}, exclusive=exclusive)
    assert histogram_of(values).num_beyond(rule) == rule.broken_by(np.array(values, dtype=float)).sum()


@settings(deadline=None)
@given(st.lists(numbers), st.integers(0, 100))
def test_histograms_of_parts_add_up_and_survive_json(values, cut):
    whole = histogram_of(values)
    parts = histogram_of(values[cut:])
    parts.merge(Histogram.from_list(json.loads(json.dumps(histogram_of(values[:cut]).to_list()))))
    assert parts.to_list() == whole.to_list()
    assert whole.total == sum(entry.count for entry in whole.bins()) == int(np.sum(~np.isnan(values)))
    for entry in whole.bins():
        assert sum(entry.low <= value < entry.high for value in values) == entry.count
        assert sum(value == entry.low for value in values) == entry.count_at_low


def test_infinite_and_tiny_values_have_a_bin():
    lows = [entry.low for entry in histogram_of([np.inf, -np.inf, 1e-300, 1e300]).bins()]
    assert lows == [-np.inf, 0.0, 9.9e9]


def part(rows_in, rows_out, tokens, source="a"):
    rule = RuleCounts(Rule("short", minimum=3.0), rows_in - rows_out, 1, histogram_of([2.0, 5.0]))
    step = StepCounts("shorten", rows_in, rows_out, tokens, tokens, 0.5, {"short": rule})
    sources = {source: SourceCounts(rows_in, {"shorten": rows_in - rows_out})}
    return CurationCounts("words", [step], sources, peak_bytes=rows_in)


def test_parts_of_a_curation_add_up_and_survive_json():
    counts = CurationCounts()
    for other in (part(10, 8, 100), part(5, 5, 50, "b"), CurationCounts("words", [StepCounts("later", 13, 12)])):
        counts.merge(CurationCounts.from_dict(json.loads(json.dumps(other.to_dict()))))
    shorten, later = counts.steps
    assert (shorten.rows_in, shorten.rows_out, shorten.tokens_in, shorten.seconds) == (15, 13, 150, 1.0)
    assert (later.name, later.rows_out) == ("later", 12)
    assert (counts.rows_read, counts.rows_kept, counts.peak_bytes) == (15, 12, 10)
    assert [(name, rule.num_dropped, rule.num_dropped_alone, rule.values.total) for name, rule in counts.rules()] == [
        ("shorten", 2, 2, 4)
    ]
    assert counts.sources["b"] == SourceCounts(5, {"shorten": 0})


def test_tokens_are_unknown_where_a_part_has_none():
    counts = part(3, 3, 7)
    counts.merge(part(3, 3, None))
    assert counts.steps[0].tokens_out is None


def test_sources_past_a_thousand_are_summed_up_under_one_name():
    counts = CurationCounts()
    for number in range(MOST_SOURCES + 5):
        counts.merge(part(2, 1, 0, f"source {number}"))
    counts.merge(part(2, 0, 0, "source 3"))
    assert len(counts.sources) == MOST_SOURCES + 1
    assert counts.sources[OTHER_SOURCES] == SourceCounts(10, {"shorten": 5})
    assert counts.sources["source 3"] == SourceCounts(4, {"shorten": 3})


@pytest.mark.parametrize("text", ["", "[]", '{"unit": "words"}', '{"steps": [{}]}'])
def test_damaged_counts_are_refused_by_name(tmp_path, text):
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(ValueError, match=r"counts\.json"):
        CurationCounts.read(tmp_path)
