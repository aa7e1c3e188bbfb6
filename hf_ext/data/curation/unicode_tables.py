"""
What the rules need to know of a character: its class in word breaking (UAX#29), whether it is a letter or a digit.

The classes come from `regex`, the rest from Python's own `str` methods, which decide in DCLM too. Each of the two has
its Unicode version; [`unicode_versions`] names both.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.guards.extras import naming_extras

Codes = npt.NDArray[np.uint8]  # (1,114,112,), one a code point

NUM_CODE_POINTS = 0x110000

# Classes of UAX#29, table 3, numbered so that what the rules take together lies together. Extend, Format and ZWJ are
# what WB4 skips; CR, LF and Newline are what WB3a and WB3b always break at.
OTHER = 0
CR = 1
LF = 2
NEWLINE = 3
EXTEND = 4
FORMAT = 5
ZWJ = 6
A_LETTER = 7
HEBREW_LETTER = 8
NUMERIC = 9
KATAKANA = 10
EXTEND_NUM_LET = 11
SINGLE_QUOTE = 12
MID_NUM_LET = 13
MID_LETTER = 14
MID_NUM = 15
DOUBLE_QUOTE = 16
REGIONAL_INDICATOR = 17
W_SEG_SPACE = 18
WORD_BREAK_CLASSES = (
    "Other", "CR", "LF", "Newline", "Extend", "Format", "ZWJ", "ALetter", "Hebrew_Letter", "Numeric", "Katakana",
    "ExtendNumLet", "Single_Quote", "MidNumLet", "MidLetter", "MidNum", "Double_Quote", "Regional_Indicator",
    "WSegSpace",
)  # fmt: skip

# Bits of a character's traits.
IS_ALNUM = 1
IS_ALPHA = 2
IS_SPACE = 4
IS_UPPER = 8
IS_DIGIT = 16
IS_PICTOGRAPH = 32  # Extended_Pictographic, of rule WB3c


class UnicodeTables(NamedTuple):
    """
    Tables by code point.

    Args:
        word_break (`np.ndarray` of shape `(1114112,)`):
            Number of the class in word breaking.
        traits (`np.ndarray` of shape `(1114112,)`):
            Bits such as `IS_ALPHA`.
    """

    word_break: Codes
    traits: Codes


@cache
def unicode_tables() -> UnicodeTables:
    """
    The tables, made at the first call, in half a second, and kept.

    Raises:
        MissingExtraError: if `regex` is not installed.
    """
    with naming_extras():
        import regex

    characters = "".join(map(chr, range(NUM_CODE_POINTS)))  # lone surrogates too: they are of class Other
    word_break = np.zeros(NUM_CODE_POINTS, np.uint8)
    for number, name in enumerate(WORD_BREAK_CLASSES[1:], 1):
        for match in regex.finditer(rf"\p{{Word_Break={name}}}+", characters):
            word_break[slice(*match.span())] = number
    traits = np.zeros(NUM_CODE_POINTS, np.uint8)
    for bit, has_trait in (
        (IS_ALNUM, str.isalnum),
        (IS_ALPHA, str.isalpha),
        (IS_SPACE, str.isspace),
        (IS_UPPER, str.isupper),
        (IS_DIGIT, str.isdigit),
    ):
        traits |= bit * np.fromiter(map(has_trait, characters), np.uint8, NUM_CODE_POINTS)
    for match in regex.finditer(r"\p{Extended_Pictographic}+", characters):
        traits[slice(*match.span())] |= IS_PICTOGRAPH
    return UnicodeTables(word_break, traits)


@cache
def unicode_versions() -> dict[str, str]:
    """What decides the tables, for a fingerprint: Python's Unicode version, and the release of `regex`."""
    with naming_extras():
        import regex

    return {"unicodedata": unicodedata.unidata_version, "regex": regex.__version__}


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text, lone surrogates included; `(len(text),)`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
