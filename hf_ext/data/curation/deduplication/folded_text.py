"""A text as near copies are compared: without case, accents, punctuation and other ways to write a character."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.hashing import Points, Positions, ngram_hashes, powers, word_hashes
from hf_ext.data.curation.unicode_tables import EXTEND, IS_ALNUM, NUM_CODE_POINTS, OTHER, code_points, unicode_tables
from hf_ext.guards.compiling import compiled_module

NO_WORD, PART, WORD, NOTHING, SEVERAL = range(5)
KIND_SHIFT = 24  # beyond the 21 bits of a code point
_KERNEL = "hf_ext.data.curation.deduplication.minhash_kernel"
_ACCENT = re.compile("[\u0300-\u036f]")
_END = 0x30000  # no character beyond has a case or another form


class Folding(NamedTuple):
    """
    What each character is compared as.

    Args:
        table (`np.ndarray` of shape `(1114112,)`):
            A code point, and its kind from bit 24 on: no part of a word, a part of one, a word by itself, nothing at
            all, or several characters.
        several (`dict[str, str]`):
            These several characters.
    """

    table: npt.NDArray[np.uint32]
    several: dict[str, str]


@cache
def folding() -> Folding:
    """The table, made at the first call, in a fifth of a second, and kept."""
    tables = unicode_tables()
    is_alnum = (tables.traits & IS_ALNUM) != 0
    kinds = np.where(is_alnum | (tables.word_break == EXTEND), PART, NO_WORD).astype(np.uint32)
    # word boundaries put no class on letters of scripts without spaces: each is by itself
    kinds[is_alnum & (tables.word_break == OTHER)] = WORD
    table = np.arange(NUM_CODE_POINTS, dtype=np.uint32) | kinds << np.uint32(KIND_SHIFT)
    several: dict[str, str] = {}
    for point, character in enumerate(map(chr, range(_END))):
        form = _form(character)
        form_points = list(map(ord, form))
        if form == character or not kinds[[point, *form_points]].any():
            continue  # punctuation parts words, whatever its form
        if len(form) == 1:
            table[point] = table[form_points[0]]
        elif form:
            several[character] = form
            table[point] = SEVERAL << KIND_SHIFT
        else:
            table[point] = NOTHING << KIND_SHIFT
    return Folding(table, several)


def _form(character: str) -> str:
    if character.islower() and character.isascii():
        return character
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).lower())
    # which small sigma a capital one is depends on its neighbours; a syllable of Hangul is one character again
    return unicodedata.normalize("NFC", _ACCENT.sub("", decomposed).replace("\u03c2", "\u03c3"))


def folded_words(text: str) -> tuple[Points, Positions, Positions]:
    """
    A text's folded characters, and where its words lie in them: runs of letters, marks and digits, and each character
    of a script without spaces.

    Returns:
        Arrays of shape `(characters,)`, `(words,)` and `(words,)`.
    """
    entries = folding().table[code_points(_spelled_out(text))]
    kinds = entries >> np.uint32(KIND_SHIFT)
    entries = entries[kinds != NOTHING]
    padded = np.pad(kinds[kinds != NOTHING], 1)
    is_word = padded > 0
    is_edge = (is_word[1:] != is_word[:-1]) | (is_word[1:] & ((padded[1:] == WORD) | (padded[:-1] == WORD)))
    edges = np.flatnonzero(is_edge)
    points = entries & np.uint32((1 << KIND_SHIFT) - 1)
    return points, edges[is_word[1:][edges]], edges[is_word[:-1][edges]]


def folded_ngrams(text: str, length: int, seed: int) -> npt.NDArray[np.uint32]:
    """
    A number for each run of `length` words of the folded text, or for all its words if they are fewer.

    Args:
        text (`str`):
            As it is.
        length (`int`):
            Words of an n-gram.
        seed (`int`):
            Of the words' numbers; see [`word_hashes`].
    """
    kernel = compiled_module(_KERNEL)
    if kernel is None:
        words = word_hashes(*folded_words(text), seed)
        return (ngram_hashes(words, min(length, max(1, len(words)))) >> np.uint64(32)).astype(np.uint32)
    settings = (folding().table, length, np.uint64(seed), powers())
    ngrams, has_several = kernel.folded_ngrams(code_points(text), *settings)
    if has_several:
        ngrams, _ = kernel.folded_ngrams(code_points(_spelled_out(text)), *settings)
    return ngrams


def _spelled_out(text: str) -> str:
    """With the characters for each that is compared as several."""
    several = folding().several
    for character in set(text) & several.keys():
        text = text.replace(character, several[character])
    return text
