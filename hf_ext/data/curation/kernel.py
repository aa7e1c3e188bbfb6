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
    LineCounts,
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
    ZWJ,
    code_points,
    unicode_tables,
)
from hf_ext.guards.compiling import compiled

_LONGEST_NGRAM = NGRAM_SIZES[-1]
_NEWLINE, _SPACE, _HASH, _DOT, _ELLIPSIS = map(ord, "\n #.…")
_KELVIN_SIGN = 0x212A  # the one character beyond ASCII whose lower case is in it: k


@compiled
def _is_letter(word_break):
    return word_break == A_LETTER or word_break == HEBREW_LETTER


@compiled
def _is_skipped(word_break):
    return EXTEND <= word_break <= ZWJ  # Extend, Format, ZWJ: WB4


@compiled
def _class_after(points, position, classes):
    """Class of the next character that WB4 does not skip, `OTHER` at the end."""
    for index in range(position + 1, len(points)):
        word_break = classes[points[index]]
        if not _is_skipped(word_break):
            return word_break
    return OTHER


@compiled
def _joins(earlier, previous, current, points, position, classes):
    """
    Whether no boundary lies before `position`, by rules WB5 to WB16.

    `earlier` and `previous` are the classes of the two characters before it in the segment that WB4 does not skip.
    """
    if _is_letter(previous):
        if _is_letter(current) or current == NUMERIC or current == EXTEND_NUM_LET:
            return True  # WB5, WB9, WB13a
        if current == SINGLE_QUOTE and previous == HEBREW_LETTER:
            return True  # WB7a
        if current == SINGLE_QUOTE or current == MID_LETTER or current == MID_NUM_LET:
            return _is_letter(_class_after(points, position, classes))  # WB6
        if current == DOUBLE_QUOTE and previous == HEBREW_LETTER:
            return _class_after(points, position, classes) == HEBREW_LETTER  # WB7b
        return False
    if previous == NUMERIC:
        if current == NUMERIC or _is_letter(current) or current == EXTEND_NUM_LET:
            return True  # WB8, WB10, WB13a
        if current == SINGLE_QUOTE or current == MID_NUM or current == MID_NUM_LET:
            return _class_after(points, position, classes) == NUMERIC  # WB12
        return False
    if previous == KATAKANA:
        return current == KATAKANA or current == EXTEND_NUM_LET  # WB13, WB13a
    if previous == EXTEND_NUM_LET:  # WB13a, WB13b
        return current == EXTEND_NUM_LET or _is_letter(current) or current == NUMERIC or current == KATAKANA
    if previous == DOUBLE_QUOTE:
        return earlier == HEBREW_LETTER and current == HEBREW_LETTER  # WB7c
    if previous == SINGLE_QUOTE or previous == MID_NUM_LET or previous == MID_LETTER or previous == MID_NUM:
        if previous != MID_NUM and _is_letter(earlier) and _is_letter(current):
            return True  # WB7
        return previous != MID_LETTER and earlier == NUMERIC and current == NUMERIC  # WB11
    # WB15, WB16: flags are pairs, so a third indicator begins the next one
    return previous == REGIONAL_INDICATOR and current == REGIONAL_INDICATOR and earlier != REGIONAL_INDICATOR


@compiled
def _segment_end(points, start, classes, traits):
    """Where the segment that begins at `start` ends: no rule looks back beyond a boundary."""
    previous = classes[points[start]]
    if CR <= previous <= NEWLINE:  # WB3, WB3a
        is_pair = previous == CR and start + 1 < len(points) and classes[points[start + 1]] == LF
        return start + 2 if is_pair else start + 1
    earlier = OTHER
    last = previous  # of the character just before, skipped or not
    for position in range(start + 1, len(points)):
        point = points[position]
        current = classes[point]
        if current == A_LETTER and last == A_LETTER:
            continue  # WB5, nearly always; `earlier` is set anew before anything asks for it
        if CR <= current <= NEWLINE:
            return position  # WB3b
        is_picture = last == ZWJ and traits[point] & IS_PICTOGRAPH != 0  # WB3c
        is_space_run = last == W_SEG_SPACE and current == W_SEG_SPACE  # WB3d
        if not is_picture and not is_space_run:
            if _is_skipped(current):
                last = current
                continue
            if not _joins(earlier, previous, current, points, position, classes):
                return position
        earlier = previous
        previous = current
        last = current
    return len(points)


@compiled
def _segments(points, classes, traits, words_only):
    """Starts and ends of the segments, or of those alone that begin with a letter or a digit."""
    starts = np.empty(len(points) // 4 + 16, np.int32)
    ends = np.empty(len(starts), np.int32)
    count = 0
    start = 0
    while start < len(points):
        end = _segment_end(points, start, classes, traits)
        if not words_only or traits[points[start]] & IS_ALNUM:
            if count == len(starts):  # a text of short segments, such as one in Chinese
                starts = np.concatenate((starts, np.empty_like(starts)))
                ends = np.concatenate((ends, np.empty_like(ends)))
            starts[count] = start
            ends[count] = end
            count += 1
        start = end
    return starts[:count], ends[:count]


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
    starts, ends = _segments(points, classes, traits, True)
    numbers, counts = _interned(points, starts, ends)
    return lines, paragraphs, _ngram_chars(numbers, counts, starts, ends)


@compiled
def _count_lines(points, traits):
    """Of each line: characters that are upper case, digits, and words between white space; `(3, lines)`."""
    num_lines = 1
    for point in points:
        num_lines += point == _NEWLINE
    counts = np.zeros((3, num_lines), np.int32)
    line = 0
    in_word = False
    for point in points:
        trait = traits[point]
        if point == _NEWLINE:
            line += 1
        counts[0, line] += (trait & IS_UPPER) != 0
        counts[1, line] += (trait & IS_DIGIT) != 0
        is_space = (trait & IS_SPACE) != 0
        if not is_space and not in_word:
            counts[2, line] += 1
        in_word = not is_space
    return counts


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
    return _segments(code_points(text), tables.word_break, tables.traits, words_only)


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


def count_lines(text: str) -> LineCounts:
    """What the rules of lines go by."""
    return LineCounts(*_count_lines(code_points(text), unicode_tables().traits).tolist())


def count_ft_words(text: str) -> int:
    """How many words [`words_ft`] would give."""
    return _count_ft_words(code_points(text), unicode_tables().traits)
