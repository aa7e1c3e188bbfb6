# mypy: disable-error-code="no-untyped-def, attr-defined"
# ruff: noqa: ANN001, ANN201, SIM109
"""The counts behind the rules of quality and of lines, compiled."""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation.unicode_tables import IS_ALNUM, IS_ALPHA, IS_DIGIT, IS_SPACE, IS_UPPER
from hf_ext.guards.compiling import compiled

_NEWLINE, _SPACE, _HASH, _DOT, _ELLIPSIS = map(ord, "\n #.…")
UPPER, SHORT, WITH_DIGITS = 1, 2, 4
_KELVIN_SIGN = 0x212A  # the one character beyond ASCII whose lower case is in it: k


@compiled
def count_quality(points, traits, stop_words):
    """The counts of [`QualityCounts`] that go by words and symbols; `stop_words` are packed letters."""
    ft_words = 0
    words = 0
    word_chars = 0
    non_alpha = 0
    num_stop_words = 0
    symbols = 0
    in_ft_word = False
    in_word = False
    has_alpha = False
    letters = np.uint64(0)  # the word so far, lower-cased, a byte a letter
    length = 0
    num_dots = 0
    free = 0  # where the next ". . ." may begin
    for position in range(len(points) + 1):
        point = points[position] if position < len(points) else np.uint32(_SPACE)
        trait = traits[point]
        if point == _SPACE or 9 <= point <= 13 or point == 0:  # fastText's separators: NBSP is none
            in_ft_word = False
        elif not in_ft_word:
            in_ft_word = True
            ft_words += trait & IS_ALNUM
        if trait & IS_SPACE:
            if in_word:
                non_alpha += not has_alpha
                if 0 < length <= 8:
                    for stop_word in stop_words:
                        num_stop_words += letters == stop_word
            in_word = False
            num_dots = 0
            continue
        if not in_word:
            in_word = True
            has_alpha = False
            letters = np.uint64(0)
            length = 0
            words += 1
        word_chars += 1
        if trait & IS_ALPHA:
            has_alpha = True
        if 0x41 <= point <= 0x5A:
            point += np.uint32(32)
        elif point == _KELVIN_SIGN:
            point = np.uint32(0x6B)
        length += 1 if 0 < point < 0x80 else 9  # no stop word
        letters = (letters << np.uint64(8)) | np.uint64(point & np.uint32(0x7F))
        if point == _DOT:
            num_dots += 1
            if num_dots == 3:  # "..."
                symbols += 1
                num_dots = 0
            is_spaced = position >= free + 4 and points[position - 1] == _SPACE and points[position - 2] == _DOT
            if is_spaced and points[position - 3] == _SPACE and points[position - 4] == _DOT:  # ". . ."
                symbols += 1
                free = position + 1
        else:
            num_dots = 0
            symbols += point == _HASH or point == _ELLIPSIS
    return ft_words, words, word_chars, non_alpha, num_stop_words, symbols


@compiled
def count_line_marks(points, traits):
    """Lines that are not blank, those that begin with a bullet and those that end in an ellipsis."""
    lines = 0
    bullets = 0
    ellipses = 0
    first = -1  # and last character of the line that is no space
    last = -1
    for position in range(len(points) + 1):
        if position < len(points) and points[position] != _NEWLINE:
            if not traits[points[position]] & IS_SPACE:
                if first < 0:
                    first = position
                last = position
            continue
        if first < 0:
            continue
        lines += 1
        point = points[first]
        bullets += point == 0x25CF or point == 0x2022 or point == 0x2A or point == 0x2D  # ● • * -
        if points[last] == _ELLIPSIS:
            ellipses += 1
        elif points[last] == _DOT and last - first >= 2:
            if points[last - 1] == _DOT and points[last - 2] == _DOT:
                ellipses += 1
            elif last - first >= 4 and points[last - 1] == _SPACE and points[last - 2] == _DOT:
                ellipses += points[last - 3] == _SPACE and points[last - 4] == _DOT
        first = -1
    return lines, bullets, ellipses


@compiled
def mark_lines(points, traits):
    """fastText's words, lines not blank, and for each line which of the marks of [`LineMarks`] it has, as bits."""
    num_lines = 1
    for point in points:
        num_lines += point == _NEWLINE
    marks = np.zeros(num_lines, np.uint8)
    line = 0
    ft_words = 0
    in_ft_word = False
    filled = 0
    length = 0
    upper = 0
    words = 0
    all_traits = 0
    in_word = False
    for position in range(len(points) + 1):
        if position == len(points) or points[position] == _NEWLINE:
            filled += words > 0
            mark = UPPER if 2 * upper > length else 0
            if words >= 2:
                mark |= WITH_DIGITS if all_traits & IS_DIGIT else 0
            elif length:
                mark |= SHORT
            marks[line] = mark
            line += 1
            length = upper = words = all_traits = 0
            in_word = False
            in_ft_word = False
            continue
        point = points[position]
        trait = traits[point]
        if point == _SPACE or 9 <= point <= 13 or point == 0:
            in_ft_word = False
        elif not in_ft_word:
            in_ft_word = True
            ft_words += trait & IS_ALNUM
        all_traits |= trait
        length += 1
        upper += trait & IS_UPPER != 0
        is_inside = trait & IS_SPACE == 0
        words += is_inside and not in_word
        in_word = is_inside
    return ft_words, filled, marks


@compiled
def count_ft_words(points, traits):
    """fastText's words that begin with a letter or a digit."""
    count = 0
    in_word = False
    for point in points:
        if point == _SPACE or 9 <= point <= 13 or point == 0:
            in_word = False
        elif not in_word:
            in_word = True
            count += traits[point] & IS_ALNUM
    return count
