"""A text as benchmarks are searched for in it: words without case and punctuation, and where each came from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.hashing import Hashes, Positions, word_hashes, word_spans
from hf_ext.data.curation.unicode_tables import code_points

_COMPOSING = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")


class NormalisedText(NamedTuple):
    """
    A text as it is compared, and where its words lie in the text as it was.

    Args:
        text (`str`):
            In folded case and compatible characters (NFKC).
        bounds (`np.ndarray` of shape `(words, 2)`):
            Where each word begins and ends in `text`.
        starts, ends (`np.ndarray` of shape `(words,)`):
            Characters of the text as it was from which the word comes.
        hashes (`np.ndarray` of shape `(words,)`):
            A number for each word.
    """

    text: str
    bounds: npt.NDArray[np.intp]
    starts: Positions
    ends: Positions
    hashes: Hashes

    def words(self, start: int, end: int) -> str:
        """The words from one to another, each followed by a space."""
        return "".join([f"{self.text[first:last]} " for first, last in self.bounds[start:end].tolist()])


def normalised(text: str) -> NormalisedText:
    """
    The words of a text, free of case, punctuation, and of how characters are composed.

    Words are runs of letters, marks and numbers: all else parts them, so that `well-known` is the two words that
    `well known` is. A language that is written without spaces has few, long ones.
    """
    compatible, first, last = _compatible(text)
    points = code_points(compatible)
    starts, ends = word_spans(_word_characters()[points])
    hashes = word_hashes(points, starts, ends)
    return NormalisedText(compatible, np.stack([starts, ends], axis=1), first[starts], last[ends - 1] + 1, hashes)


def _compatible(text: str) -> tuple[str, Positions, Positions]:
    """The text in NFKC and folded case, and of each character of it the first and last of `text` it comes from."""
    folded = text.casefold()
    places = np.arange(len(text))
    if len(folded) == len(text) and unicodedata.is_normalized("NFKC", text):
        return folded, places, places
    pieces: list[str] = []
    first: list[Positions] = []
    last: list[Positions] = []
    end = 0
    # An ASCII character composes with nothing before it, so that these pieces can be normalised one by one. Case is
    # folded rather than lowered: which small sigma a capital one becomes would depend on its neighbours.
    for match in [*_COMPOSING.finditer(text), None]:
        start, stop = (len(text), len(text)) if match is None else match.span()
        pieces.append(text[end:start].casefold())
        first.append(places[end:start])
        last.append(places[end:start])
        for cluster_start, cluster_end, cluster in _clusters(text[start:stop]):
            pieces.append(cluster)
            first.append(np.full(len(cluster), start + cluster_start))
            last.append(np.full(len(cluster), start + cluster_end - 1))
        end = stop
    return "".join(pieces), np.concatenate(first), np.concatenate(last)


def _clusters(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and normal form of the parts of a text whose characters compose with each other alone."""
    folded_text = _folded(text)
    # a mark belongs to the character before it, and so do the vowels and final consonants of Hangul
    starts = [place for place, character in enumerate(text) if place == 0 or not _joins(character)]
    bounds = list(pairwise([*starts, len(text)]))
    clusters = [_folded(text[start:end]) for start, end in bounds]
    if "".join(clusters) != folded_text:
        yield 0, len(text), folded_text
        return
    for (start, end), cluster in zip(bounds, clusters, strict=True):
        yield start, end, cluster


@lru_cache(maxsize=100_000)
def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _joins(character: str) -> bool:
    return unicodedata.combining(character) > 0 or "\u1160" <= character <= "\u11ff"


@cache
def _word_characters() -> npt.NDArray[np.bool_]:
    """Which code points belong to words: letters, marks and numbers of any script."""
    categories = map(unicodedata.category, map(chr, range(0x110000)))
    return np.fromiter((category[0] in "LMN" for category in categories), bool, 0x110000)
