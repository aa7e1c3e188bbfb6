"""
The counts behind the rules of quality, repetition and lines by compiled functions: a pass over code points for each.

[`hf_ext.data.curation.plain`] has the same functions without numba; both only count, and what follows from the counts
is worked out elsewhere, so the verdicts are the same.
"""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation import quality_kernel, repetition_kernel, word_kernel
from hf_ext.data.curation.text_counts import LineMarks, PieceCounts, QualityCounts, RepetitionCounts, Spans
from hf_ext.data.curation.unicode_tables import code_points, unicode_tables

_MARKS = (quality_kernel.UPPER, quality_kernel.SHORT, quality_kernel.WITH_DIGITS)


def segment_spans(text: str, *, words_only: bool) -> Spans:
    """Where the segments of a text lie; see [`hf_ext.data.curation.words`]."""
    tables = unicode_tables()
    find = word_kernel.find_words if words_only else word_kernel.find_segments
    return find(code_points(text), tables.word_break, tables.traits)


def count_quality(text: str, stop_words: frozenset[str]) -> QualityCounts:
    """What the rules of quality go by; stop words are up to eight ASCII letters long."""
    points = code_points(text)
    traits = unicode_tables().traits
    packed = np.array([int.from_bytes(word.encode(), "big") for word in sorted(stop_words)], np.uint64)
    words = quality_kernel.count_quality(points, traits, packed)
    return QualityCounts(*words, *quality_kernel.count_line_marks(points, traits))


def count_repetition(text: str) -> RepetitionCounts:
    """What the rules of repetition go by. Needs up to 18 bytes a character: words of one letter are the worst."""
    tables = unicode_tables()
    points = code_points(text)
    lines, paragraphs = repetition_kernel.count_pieces(points, tables.traits)
    starts, ends = word_kernel.find_words(points, tables.word_break, tables.traits)
    words = repetition_kernel.interned(points, starts, ends)
    del points, starts, ends  # a third of the memory, which n-grams need as much of
    ngrams = repetition_kernel.ngram_chars(*words)
    return RepetitionCounts(PieceCounts(*lines), PieceCounts(*paragraphs), tuple(ngrams.tolist()))


def mark_lines(text: str) -> LineMarks:
    """What the rules of lines go by."""
    ft_words, filled, marks = quality_kernel.mark_lines(code_points(text), unicode_tables().traits)
    marked = [(number, mark) for number, mark in enumerate(marks.tolist()) if mark]
    numbers = ([number for number, mark in marked if mark & bit] for bit in _MARKS)
    return LineMarks(ft_words, filled, *numbers)


def count_ft_words(text: str) -> int:
    """How many words [`words_ft`] would give."""
    return quality_kernel.count_ft_words(code_points(text), unicode_tables().traits)


def try_out() -> None:
    """Compile, or load, what is here: raises where that cannot be done."""
    segment_spans("", words_only=False)
    count_quality("", frozenset({"the"}))
    count_repetition("")
    mark_lines("")
