# mypy: disable-error-code="no-untyped-def, attr-defined"
# ruff: noqa: ANN001, ANN202, SIM109
"""
The counts behind the rules of quality, repetition and lines, compiled: one pass over code points for each.

[`hf_ext.data.curation.plain`] has the same functions without numba; both only count, and what follows from the counts
is worked out elsewhere, so the verdicts are the same.
"""

from __future__ import annotations

import numpy as np

from hf_ext.data.curation.text_counts import (
    NGRAM_SIZES,
    LineMarks,
    PieceCounts,
    QualityCounts,
    RepetitionCounts,
    Spans,
)
from hf_ext.data.curation.unicode_tables import (
    A_LETTER,
    CR,
    DOUBLE_QUOTE,
    EXTEND,
    EXTEND_NUM_LET,
    HEBREW_LETTER,
    IS_ALNUM,
    IS_ALPHA,
    IS_DIGIT,
    IS_PICTOGRAPH,
    IS_SPACE,
    IS_UPPER,
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
    code_points,
    unicode_tables,
)
from hf_ext.guards.compiling import compiled

_LONGEST_NGRAM = NGRAM_SIZES[-1]
_NEWLINE, _SPACE, _HASH, _DOT, _ELLIPSIS = map(ord, "\n #.…")
_UPPER, _SHORT, _WITH_DIGITS = 1, 2, 4
_KELVIN_SIGN = 0x212A  # the one character beyond ASCII whose lower case is in it: k


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
def _find_segments(points, classes, traits):
    return _segments(points, classes, traits, False)


@compiled
def _find_words(points, classes, traits):
    return _segments(points, classes, traits, True)


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
def _interned(points, starts, ends):
    """A number for each span, equal for equal texts, and how often each number occurs."""
    count = len(starts)
    slots = np.full(_table_size(count), -1, np.int32)
    mask = np.uint64(len(slots) - 1)
    numbers = np.empty(count, np.int32)
    firsts = np.empty(count, np.int32)  # of each number: the first span, its hash and how many there are
    hashes = np.empty(count, np.uint64)
    counts = np.zeros(count, np.int32)
    num_distinct = 0
    for span in range(count):
        start = starts[span]
        length = ends[span] - start
        code = np.uint64(length)
        for index in range(start, start + length):
            code = (code ^ np.uint64(points[index])) * np.uint64(0x9E3779B97F4A7C15)
        code ^= code >> np.uint64(32)
        slot = code & mask
        while True:
            number = slots[slot]
            if number < 0:
                number = num_distinct
                slots[slot] = number
                firsts[number] = span
                hashes[number] = code
                num_distinct += 1
                break
            if hashes[number] == code:  # equal hashes are no proof
                first = starts[firsts[number]]
                is_equal = ends[firsts[number]] - first == length
                index = 0
                while is_equal and index < length:
                    is_equal = points[first + index] == points[start + index]
                    index += 1
                if is_equal:
                    break
            slot = (slot + np.uint64(1)) & mask
        numbers[span] = number
        counts[number] += 1
    return numbers, counts


@compiled
def _repeated_pieces(points, traits, is_paragraph):
    """Number of lines (or paragraphs), their characters, and both again of those that occur more than once."""
    starts, ends = _stripped_lines(points, traits, is_paragraph)
    if len(starts) < 2:  # nothing to repeat: nearly always so for paragraphs
        return len(starts), 0, 0, 0
    numbers, counts = _interned(points, starts, ends)
    num_chars = 0
    num_repeated = 0
    repeated_chars = 0
    for piece in range(len(starts)):
        length = ends[piece] - starts[piece]
        num_chars += length
        if counts[numbers[piece]] > 1:  # the first copy counts, as in DCLM
            num_repeated += 1
            repeated_chars += length
    return len(starts), num_chars, num_repeated, repeated_chars


@compiled
def _ngram_chars(numbers, counts, starts, ends):
    """
    Characters of the words, then for each n from 2 to 10 those that the rule counts; `(10,)`.

    An n-gram repeats only where the (n-1)-grams that it begins and ends with do, and is known by their two numbers: so
    each round looks only at what repeats in the round before, and comparisons are exact.
    """
    num_words = len(numbers)
    chars_before = np.zeros(num_words + 1, np.int64)  # of the words before each
    for word in range(num_words):
        chars_before[word + 1] = chars_before[word] + ends[word] - starts[word]
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
    beginnings = np.empty(num_positions, np.int32)
    endings = np.empty(num_positions, np.int32)
    gram_counts = np.empty(num_positions, np.int32)
    for size in range(2, _LONGEST_NGRAM + 1):
        table_size = _table_size(num_positions)
        mask = np.uint64(table_size - 1)
        slots[:table_size] = -1
        num_grams = 0
        num_candidates = 0
        for index in range(num_positions):
            position = positions[index]
            beginning = grams[position]
            ending = grams[position + 1]  # of the round before: positions ascend
            if ending < 0:
                grams[position] = -1
                continue
            code = np.uint64(beginning) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(ending)
            code *= np.uint64(0xC2B2AE3D27D4EB4F)
            slot = (code ^ (code >> np.uint64(32))) & mask
            while True:
                gram = slots[slot]
                if gram < 0:
                    gram = num_grams
                    slots[slot] = gram
                    beginnings[gram] = beginning
                    endings[gram] = ending
                    gram_counts[gram] = 0
                    num_grams += 1
                    break
                if beginnings[gram] == beginning and endings[gram] == ending:
                    break
                slot = (slot + np.uint64(1)) & mask
            grams[position] = gram
            gram_counts[gram] += 1
            positions[num_candidates] = position
            num_candidates += 1
        num_positions = 0
        highest = 0
        longest = 0  # characters of the longest n-gram among the most frequent
        covered = 0
        covered_end = 0
        for index in range(num_candidates):
            position = positions[index]
            count = gram_counts[grams[position]]
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


@compiled
def _count_quality(points, traits, stop_words):
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
def _count_line_marks(points, traits):
    """Lines that are not blank, those that begin with a bullet and those that end in an ellipsis."""
    starts, ends = _stripped_lines(points, traits, False)
    bullets = 0
    ellipses = 0
    for line in range(len(starts)):
        first = points[starts[line]]
        bullets += first == 0x25CF or first == 0x2022 or first == 0x2A or first == 0x2D  # ● • * -
        start = starts[line]
        last = ends[line] - 1
        if points[last] == _ELLIPSIS:
            ellipses += 1
        elif points[last] == _DOT and last - start >= 2:
            if points[last - 1] == _DOT and points[last - 2] == _DOT:
                ellipses += 1
            elif last - start >= 4 and points[last - 1] == _SPACE and points[last - 2] == _DOT:
                ellipses += points[last - 3] == _SPACE and points[last - 4] == _DOT
    return len(starts), bullets, ellipses


@compiled
def _count_repetition(points, classes, traits):
    lines = _repeated_pieces(points, traits, False)
    paragraphs = _repeated_pieces(points, traits, True)
    starts, ends = _find_words(points, classes, traits)
    numbers, counts = _interned(points, starts, ends)
    return lines, paragraphs, _ngram_chars(numbers, counts, starts, ends)


@compiled
def _mark_lines(points, traits):
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
            mark = _UPPER if 2 * upper > length else 0
            if words >= 2:
                mark |= _WITH_DIGITS if all_traits & IS_DIGIT else 0
            elif length:
                mark |= _SHORT
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
def _count_ft_words(points, traits):
    count = 0
    in_word = False
    for point in points:
        if point == _SPACE or 9 <= point <= 13 or point == 0:
            in_word = False
        elif not in_word:
            in_word = True
            count += traits[point] & IS_ALNUM
    return count


def segment_spans(text: str, *, words_only: bool) -> Spans:
    """Where the segments of a text lie; see [`hf_ext.data.curation.words`]."""
    tables = unicode_tables()
    find = _find_words if words_only else _find_segments
    return find(code_points(text), tables.word_break, tables.traits)


def count_quality(text: str, stop_words: frozenset[str]) -> QualityCounts:
    """What the rules of quality go by; stop words are up to eight ASCII letters long."""
    points = code_points(text)
    traits = unicode_tables().traits
    packed = np.array([int.from_bytes(word.encode(), "big") for word in sorted(stop_words)], np.uint64)
    return QualityCounts(*_count_quality(points, traits, packed), *_count_line_marks(points, traits))


def count_repetition(text: str) -> RepetitionCounts:
    """What the rules of repetition go by."""
    tables = unicode_tables()
    lines, paragraphs, ngrams = _count_repetition(code_points(text), tables.word_break, tables.traits)
    return RepetitionCounts(PieceCounts(*lines), PieceCounts(*paragraphs), tuple(ngrams.tolist()))


def mark_lines(text: str) -> LineMarks:
    """What the rules of lines go by."""
    ft_words, filled, marks = _mark_lines(code_points(text), unicode_tables().traits)
    marked = [(number, mark) for number, mark in enumerate(marks.tolist()) if mark]
    numbers = ([number for number, mark in marked if mark & bit] for bit in (_UPPER, _SHORT, _WITH_DIGITS))
    return LineMarks(ft_words, filled, *numbers)


def count_ft_words(text: str) -> int:
    """How many words [`words_ft`] would give."""
    return _count_ft_words(code_points(text), unicode_tables().traits)
