"""
Gopher's rules as datatrove 0.10 counts them, on spaCy's words, for whoever must match its decisions.

The rules have datatrove's names, and the quirks are its own: punctuation marks are words, so that the share of words
with a letter is low; shares of n-grams are of all characters of the text; copies are counted without the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from hf_ext.data.curation.text_counts import REPEATED_NGRAM_SIZES, TOP_NGRAM_SIZES
from hf_ext.guards.extras import MissingExtraError, naming_extras

if TYPE_CHECKING:
    from spacy.language import Language

_SURROGATE = re.compile("[\ud800-\udfff]")
# Full-width signs are among them, and by a slip of datatrove's the full-width digit one.
_OTHER_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
# Sentence_Terminal of Unicode 15 and three Khmer signs; `regex` knows those of later versions, too.
_LATER_TERMINALS = "\u1b4e\u1b4f\u1b7f\u2024\u2cf9\u2cfa\u2cfb\u2e60\u2e61\ufe12\ufe15\ufe16\U000113d4\U000113d5"
_LATER_TERMINALS += "\U00016d6e\U00016d6f"


@cache
def punctuation() -> frozenset[str]:
    """Characters of which alone a token is no word to be counted or measured; control characters among them."""
    with naming_extras():
        import regex

    terminals = set(regex.findall(r"\p{Sentence_Terminal}", "".join(map(chr, range(0x20000)))))
    controls = {chr(point) for point in (*range(9), 11, 12, *range(13, 32), *range(127, 160))}
    return frozenset(terminals - set(_LATER_TERMINALS) | set("\u17d6\u17d9\u17da") | set(_OTHER_MARKS) | controls)


@cache
def spacy_english() -> Language:
    """
    spaCy's rules of English alone, without a model.

    Raises:
        MissingExtraError: if spaCy is not installed.
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        message = 'spacy is not installed, and profile="datatrove" needs its words. Run: pip install spacy'
        raise MissingExtraError(message, name="spacy") from error
    return spacy.blank("en")


def spacy_words(text: str) -> list[str]:
    """spaCy's tokens for English, stripped, without those of white space; a lone surrogate is read as U+FFFD."""
    language = spacy_english()
    with language.memory_zone():  # else the words of every document stay in memory
        # spaCy fails on a word named as one of its flags, but the first time; datatrove cuts it where that fails
        tokens = language.tokenizer(_SURROGATE.sub("\ufffd", text).replace("IS_ALPHA", ""))
        return [word for token in tokens if (word := token.text.strip())]


def quality_values(text: str, words: Sequence[str], stop_words: frozenset[str]) -> tuple[float, ...]:
    """What its rules of quality measure, in their order."""
    marks = punctuation()
    lengths = [len(word) for word in words if not marks.issuperset(word)]
    num_words = max(len(words), 1)
    lines = text.splitlines()
    mean_length = sum(lengths) / len(lengths) if lengths else float("nan")
    return (
        len(lengths),
        len(lengths),
        mean_length,
        mean_length,
        text.count("#") / num_words,
        (text.count("...") + text.count("…")) / num_words,
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        sum(any(map(str.isalpha, word)) for word in words) / num_words,
        len(stop_words.intersection(words)),  # distinct ones, in lower case
    )


def repetition_values(text: str, words: Sequence[str]) -> tuple[float, ...]:
    """What its rules of repetition measure, in their order: paragraphs, lines, n-grams."""
    values: list[float] = []
    for pieces in (re.split("\n{2,}", text.strip()), re.split("\n+", text)):
        copies = _later_copies(pieces)
        values += [len(copies) / len(pieces), sum(map(len, copies)) / len(text)]
    for size in TOP_NGRAM_SIZES:
        counts = Counter(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))
        top, count = max(counts.items(), key=lambda item: item[1], default=("", 0))  # of several, the first
        values.append(len(top) * count / len(text))
    for size in REPEATED_NGRAM_SIZES:
        values.append(_greedily_repeated_chars(words, size) / len(text))
    return tuple(values)


def _later_copies(pieces: list[str]) -> list[str]:
    counts = Counter(pieces)
    return [piece for piece, count in counts.items() for _ in range(count - 1)]


def _greedily_repeated_chars(words: Sequence[str], size: int) -> int:
    """Characters of n-grams seen before, from left to right, each copy skipped whole; words are glued together."""
    grams: set[str] = set()
    start = 0
    num_chars = 0
    while start <= len(words) - size:
        gram = "".join(words[start : start + size])
        if gram in grams:
            num_chars += len(gram)
            start += size
        else:
            grams.add(gram)
            start += 1
    return num_chars
