"""What the quality classifier sees of a document: hashed word n-grams, and twelve statistics."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.hashing import ngram_hashes, word_hashes, word_spans
from hf_ext.data.curation.quality import STOP_WORDS
from hf_ext.data.curation.unicode_tables import IS_DIGIT, IS_SPACE, IS_UPPER, code_points, unicode_tables
from hf_ext.data.curation.words import counters

STATISTICS = (
    "log_words", "mean_word_length", "symbol_ratio", "bullet_ratio", "non_alpha_ratio", "stop_word_ratio",
    "repeated_line_ratio", "repeated_5gram_ratio", "log_words_per_line", "upper_ratio", "digit_ratio",
    "distinct_words",
)  # fmt: skip
"""Names of the statistics, in the order of [`Features`]."""


class Features(NamedTuple):
    """
    Of one document.

    Args:
        buckets (`np.ndarray` of shape `(distinct n-grams,)`):
            Where its n-grams fall, increasing.
        values (`np.ndarray` of shape `(distinct n-grams,)`):
            How often, over the length of the vector of these counts.
        statistics (`list[float]`):
            As [`STATISTICS`] names them.
        num_words (`int`):
            Words between white space.
    """

    buckets: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    statistics: list[float]
    num_words: int


def features_of(text: str, *, longest_ngram: int, log_buckets: int, seed: int) -> Features:
    """
    Features of a text.

    Args:
        text (`str`):
            Words are what lies between white space, in lower case.
        longest_ngram (`int`):
            In words; shorter n-grams count as well.
        log_buckets (`int`):
            Base-two logarithm of the number of buckets.
        seed (`int`):
            Of the hash.
    """
    points = code_points(text.lower())
    starts, ends = word_spans((unicode_tables().traits[points] & IS_SPACE) == 0)
    words = word_hashes(points, starts, ends, seed)
    hashes = np.concatenate([ngram_hashes(words, length) for length in range(1, longest_ngram + 1)])
    # the upper bits, which the mixing leaves as good as the lower ones
    buckets, counts = np.unique(hashes >> np.uint64(64 - log_buckets), return_counts=True)
    norm = math.sqrt(int((counts * counts).sum()))
    values = counts / norm if norm else counts.astype(float)
    return Features(buckets.astype(np.int64), values, _statistics(text, words), len(words))


def _statistics(text: str, words: npt.NDArray[np.uint64]) -> list[float]:
    quality = counters().count_quality(text, STOP_WORDS)
    repetition = counters().count_repetition(text)
    traits = unicode_tables().traits[code_points(text)]
    num_words = max(quality.words, 1)
    num_lines = max(quality.lines, 1)
    num_chars = max(len(text), 1)
    return [
        math.log1p(quality.words),
        quality.word_chars / num_words,
        quality.symbols / num_words,
        quality.bullets / num_lines,
        quality.non_alpha / num_words,
        quality.stop_words / num_words,
        repetition.lines.repeated / num_lines,
        repetition.ngram_chars[4] / max(repetition.ngram_chars[0], 1),  # of the words that a repeated 5-gram covers
        math.log1p(quality.words / num_lines),
        np.count_nonzero(traits & IS_UPPER) / num_chars,
        np.count_nonzero(traits & IS_DIGIT) / num_chars,
        # over the root of the length: by Heaps' law the share of distinct words alone would be the length again
        len(np.unique(words)) / math.sqrt(num_words),
    ]
