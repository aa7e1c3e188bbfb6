# mypy: disable-error-code="no-untyped-def, attr-defined"
# ruff: noqa: ANN001, ANN201, ANN202
"""Lines, paragraphs and word n-grams that repeat, compiled. The number of a text is the place of its first copy."""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation.text_counts import NGRAM_SIZES
from hf_ext.data.curation.unicode_tables import IS_SPACE
from hf_ext.guards.compiling import compiled

_LONGEST_NGRAM = NGRAM_SIZES[-1]
_NEWLINE = ord("\n")
_SMALL_TABLE = 1 << 13  # slots: grown from there on, for a long text has few words that differ


@compiled
def _stripped_lines(points, traits, is_paragraph):
    """Starts and ends of the pieces between newlines, or between pairs of them, stripped; no empty ones."""
    starts = np.empty(len(points) // 16 + 16, np.int32)
    ends = np.empty(len(starts), np.int32)
    count = 0
    start = -1  # first and one past the last character of the piece that is no space
    end = -1
    position = 0
    while position <= len(points):
        is_cut = position == len(points) or points[position] == _NEWLINE
        if is_cut and is_paragraph and position < len(points):
            is_cut = position + 1 < len(points) and points[position + 1] == _NEWLINE
        if is_cut:
            if start >= 0:
                if count == len(starts):
                    starts = np.concatenate((starts, np.empty_like(starts)))
                    ends = np.concatenate((ends, np.empty_like(ends)))
                starts[count] = start
                ends[count] = end
                count += 1
            start = -1
            position += 2 if is_paragraph else 1
            continue
        if not traits[points[position]] & IS_SPACE:
            if start < 0:
                start = position
            end = position + 1
        position += 1
    return starts[:count], ends[:count]


@compiled
def _table_size(count):
    """Slots of a hash table that is at most half full: a power of two."""
    size = 64
    while size < 2 * count:
        size *= 2
    return size


@compiled
def _text_code(points, start, end):
    code = np.uint64(end - start)
    for index in range(start, end):
        code = (code ^ np.uint64(points[index])) * np.uint64(0x9E3779B97F4A7C15)
    return code ^ (code >> np.uint64(32))


@compiled
def _grown(slots, points, starts, ends):
    """A table of four times the slots with the same spans."""
    grown = np.full(4 * len(slots), -1, np.int32)
    mask = np.uint64(len(grown) - 1)
    for span in slots:
        if span >= 0:
            slot = _text_code(points, starts[span], ends[span]) & mask
            while grown[slot] >= 0:
                slot = (slot + np.uint64(1)) & mask
            grown[slot] = span
    return grown


@compiled
def interned(points, starts, ends):
    """
    Each span's number, how many spans have it (elsewhere 0), and the characters of the spans before each.

    The shapes are `(spans,)`, the same, and `(spans + 1,)`.
    """
    count = len(starts)
    slots = np.full(min(_table_size(count), _SMALL_TABLE), -1, np.int32)
    mask = np.uint64(len(slots) - 1)
    numbers = np.empty(count, np.int32)
    counts = np.zeros(count, np.int32)
    chars_before = np.zeros(count + 1, np.int32)
    num_distinct = 0
    for span in range(count):
        start = starts[span]
        length = ends[span] - start
        chars_before[span + 1] = chars_before[span] + length
        slot = _text_code(points, start, ends[span]) & mask
        while True:
            number = slots[slot]
            if number < 0:
                number = span
                slots[slot] = span
                num_distinct += 1
                break
            first = starts[number]
            is_equal = ends[number] - first == length
            index = 0
            while is_equal and index < length:
                is_equal = points[first + index] == points[start + index]
                index += 1
            if is_equal:
                break
            slot = (slot + np.uint64(1)) & mask
        numbers[span] = number
        counts[number] += 1
        if 2 * num_distinct > len(slots):
            slots = _grown(slots, points, starts, ends)
            mask = np.uint64(len(slots) - 1)
    return numbers, counts, chars_before


@compiled
def _repeated_pieces(points, traits, is_paragraph):
    """Number of lines (or paragraphs), their characters, and both again of those that occur more than once."""
    starts, ends = _stripped_lines(points, traits, is_paragraph)
    if len(starts) < 2:  # nothing to repeat: nearly always so for paragraphs
        return len(starts), 0, 0, 0
    numbers, counts, chars_before = interned(points, starts, ends)
    num_repeated = 0
    repeated_chars = 0
    for piece in range(len(starts)):
        if counts[numbers[piece]] > 1:  # the first copy counts, as in DCLM
            num_repeated += 1
            repeated_chars += ends[piece] - starts[piece]
    return len(starts), np.int64(chars_before[-1]), num_repeated, repeated_chars


@compiled
def count_pieces(points, traits):
    """Of lines and of paragraphs what [`PieceCounts`] has."""
    return _repeated_pieces(points, traits, False), _repeated_pieces(points, traits, True)


@compiled
def ngram_chars(numbers, counts, chars_before):
    """
    Characters of the words, then for each n from 2 to 10 those that the rule counts; `(10,)`.

    An n-gram repeats only where the (n-1)-grams that it begins and ends with do, so each round looks only at what
    repeats in the round before. Their two numbers give the hash; that the words are equal is looked up, word for word.
    Takes what [`interned`] gives of the words, and overwrites `counts`.
    """
    num_words = len(numbers)
    totals = np.zeros(_LONGEST_NGRAM, np.int64)
    totals[0] = chars_before[num_words]
    grams = np.full(num_words + 1, -1, np.int32)  # number of the n-gram that begins at a word, -1 if it is alone
    positions = np.empty(num_words, np.int32)
    num_positions = 0
    for word in range(num_words):
        if counts[numbers[word]] > 1:
            grams[word] = numbers[word]
            positions[num_positions] = word
            num_positions += 1
    slots = np.empty(_table_size(num_positions), np.int32)
    for size in range(2, _LONGEST_NGRAM + 1):
        table_size = _table_size(num_positions)
        mask = np.uint64(table_size - 1)
        slots[:table_size] = -1
        num_candidates = 0
        for index in range(num_positions):
            position = positions[index]
            ending = grams[position + 1]  # of the round before: positions ascend
            if ending < 0:
                grams[position] = -1
                continue
            code = np.uint64(grams[position]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(ending)
            code *= np.uint64(0xC2B2AE3D27D4EB4F)
            slot = (code ^ (code >> np.uint64(32))) & mask
            while True:
                gram = slots[slot]
                if gram < 0:
                    gram = position
                    slots[slot] = position
                    counts[position] = 0
                    break
                word = 0
                while word < size and numbers[gram + word] == numbers[position + word]:
                    word += 1
                if word == size:
                    break
                slot = (slot + np.uint64(1)) & mask
            grams[position] = gram
            counts[gram] += 1
            positions[num_candidates] = position
            num_candidates += 1
        num_positions = 0
        highest = 0
        longest = 0  # characters of the longest n-gram among the most frequent
        covered = 0
        covered_end = 0
        for index in range(num_candidates):
            position = positions[index]
            count = counts[grams[position]]
            if count == 1:
                grams[position] = -1
                continue
            positions[num_positions] = position
            num_positions += 1
            length = chars_before[position + size] - chars_before[position]
            if count > highest:
                highest = count
                longest = length
            elif count == highest:
                longest = max(longest, length)
            covered += chars_before[position + size] - chars_before[max(position, covered_end)]
            covered_end = position + size
        if num_positions == 0:
            break
        totals[size - 1] = highest * longest if size <= 4 else covered
    return totals
