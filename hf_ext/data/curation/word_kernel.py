# mypy: disable-error-code="no-untyped-def, attr-defined"
# ruff: noqa: ANN001, ANN201, ANN202, SIM109
"""Word boundaries by UAX#29, compiled: a state machine over code points."""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation.unicode_tables import (
    A_LETTER,
    CR,
    DOUBLE_QUOTE,
    EXTEND,
    EXTEND_NUM_LET,
    HEBREW_LETTER,
    IS_ALNUM,
    IS_PICTOGRAPH,
    KATAKANA,
    LF,
    MID_LETTER,
    MID_NUM,
    MID_NUM_LET,
    NEWLINE,
    NUMERIC,
    OTHER,
    REGIONAL_INDICATOR,
    SINGLE_QUOTE,
    W_SEG_SPACE,
    WORD_BREAK_CLASSES,
    ZWJ,
)
from hf_ext.guards.compiling import compiled

_LETTERS = (A_LETTER, HEBREW_LETTER)
_INSIDE_WORDS = (SINGLE_QUOTE, MID_NUM_LET, MID_LETTER)
_INSIDE_NUMBERS = (SINGLE_QUOTE, MID_NUM_LET, MID_NUM)
_SPLIT, _JOIN, _ASK = range(3)


def _pair_table():
    """What two classes that meet say, `(19, 19)`: no boundary, one (WB999), or to ask what is around them."""
    table = np.full((len(WORD_BREAK_CLASSES),) * 2, _SPLIT, np.uint8)
    for befores, afters, answer in (
        (_LETTERS, (*_LETTERS, NUMERIC, EXTEND_NUM_LET), _JOIN),  # WB5, WB9, WB13a
        ((NUMERIC,), (NUMERIC, *_LETTERS, EXTEND_NUM_LET), _JOIN),  # WB8, WB10, WB13a
        ((KATAKANA,), (KATAKANA, EXTEND_NUM_LET), _JOIN),  # WB13, WB13a
        ((EXTEND_NUM_LET,), (EXTEND_NUM_LET, *_LETTERS, NUMERIC, KATAKANA), _JOIN),  # WB13a, WB13b
        (_LETTERS, _INSIDE_WORDS, _ASK),  # WB6
        (_INSIDE_WORDS, _LETTERS, _ASK),  # WB7
        ((HEBREW_LETTER,), (SINGLE_QUOTE,), _JOIN),  # WB7a, which needs no letter after it
        ((HEBREW_LETTER,), (DOUBLE_QUOTE,), _ASK),  # WB7b
        ((DOUBLE_QUOTE,), (HEBREW_LETTER,), _ASK),  # WB7c
        ((NUMERIC,), _INSIDE_NUMBERS, _ASK),  # WB12
        (_INSIDE_NUMBERS, (NUMERIC,), _ASK),  # WB11
        ((REGIONAL_INDICATOR,), (REGIONAL_INDICATOR,), _ASK),  # WB15, WB16
    ):
        table[np.ix_(befores, afters)] = answer
    return table


_PAIRS = _pair_table()  # a constant to the compiler, where an argument would be counted as a reference at each call


@compiled
def _is_letter(word_break):
    return word_break == A_LETTER or word_break == HEBREW_LETTER


@compiled
def _is_skipped(word_break):
    return EXTEND <= word_break <= ZWJ  # Extend, Format, ZWJ: WB4


@compiled
def _joins_by_context(earlier, previous, current, points, position, classes):
    """
    Whether no boundary lies before `position` where the two classes that meet do not say.

    `earlier` and `previous` are the classes of the two characters before it in the segment that WB4 does not skip.
    """
    if previous == REGIONAL_INDICATOR:
        return earlier != REGIONAL_INDICATOR  # WB15, WB16: flags are pairs, a third indicator begins the next one
    if _is_letter(current):  # WB7, WB7c
        return (
            earlier == HEBREW_LETTER and current == HEBREW_LETTER if previous == DOUBLE_QUOTE else _is_letter(earlier)
        )
    if current == NUMERIC:
        return earlier == NUMERIC  # WB11
    following = OTHER  # of the next character that WB4 does not skip
    for index in range(position + 1, len(points)):
        if not _is_skipped(classes[points[index]]):
            following = classes[points[index]]
            break
    if previous == NUMERIC:
        return following == NUMERIC  # WB12
    return following == HEBREW_LETTER if current == DOUBLE_QUOTE else _is_letter(following)  # WB7b, WB6


@compiled
def _segments(points, classes, traits, words_only):
    """Starts and ends of the segments, or of those alone that begin with a letter or a digit."""
    starts = np.empty(len(points) // 4 + 16, np.int32)
    ends = np.empty(len(starts), np.int32)
    count = 0
    start = 0
    earlier = OTHER  # no rule looks back beyond a boundary
    previous = OTHER
    last = OTHER  # of the character just before, skipped or not
    if len(points):
        previous = last = classes[points[0]]
    for position in range(1, len(points) + 1):
        is_boundary = True
        current = OTHER
        if position < len(points):
            point = points[position]
            current = classes[point]
            if current == A_LETTER and last == A_LETTER:
                continue  # WB5, nearly always; `earlier` is set anew before anything asks for it
            if CR <= last <= NEWLINE or CR <= current <= NEWLINE:
                is_boundary = last != CR or current != LF  # WB3, WB3a, WB3b
            elif last == ZWJ and traits[point] & IS_PICTOGRAPH:
                is_boundary = False  # WB3c
            elif last == W_SEG_SPACE and current == W_SEG_SPACE:
                is_boundary = False  # WB3d
            elif _is_skipped(current):
                last = current
                continue
            else:
                answer = _PAIRS[previous, current]
                is_boundary = answer == _SPLIT
                if answer == _ASK:
                    is_boundary = not _joins_by_context(earlier, previous, current, points, position, classes)
        earlier = previous
        if is_boundary:
            if not words_only or traits[points[start]] & IS_ALNUM:
                if count == len(starts):  # a text of short segments, such as one in Chinese
                    starts = np.concatenate((starts, np.empty_like(starts)))
                    ends = np.concatenate((ends, np.empty_like(ends)))
                starts[count] = start
                ends[count] = position
                count += 1
            start = position
            earlier = OTHER
        previous = current
        last = current
    return starts[:count], ends[:count]


# Compiled for one answer each: the loop with the question inside takes twice as long.


@compiled
def find_segments(points, classes, traits):
    """Starts and ends of all segments."""
    return _segments(points, classes, traits, False)


@compiled
def find_words(points, classes, traits):
    """Starts and ends of the segments that begin with a letter or a digit."""
    return _segments(points, classes, traits, True)
