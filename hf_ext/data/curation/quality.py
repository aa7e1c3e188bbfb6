"""Gopher's rules of quality, counted as DCLM counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_ext.data.curation.gopher import GopherStep
from hf_ext.data.curation.steps import Rule, Values
from hf_ext.data.curation.text_counts import QualityCounts
from hf_ext.data.curation.words import counters

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


@dataclass(frozen=True, kw_only=True)
class GopherQuality(GopherStep):
    """
    Drop documents that do not read like prose: too short, few stop words, mostly symbols or bullets.

    | rule | a document stays if | of |
    |---|---|---|
    | `word_count` | 50 to 100,000 | fastText's words that begin with a letter or digit: `"(one` is none |
    | `mean_word_len` | 3 to 10 | characters of the words between white space, punctuation included |
    | `symbol_ratio` | at most 0.1 | `#`, `...`, `. . .` and `…` together, to words between white space |
    | `bullet` | at most 0.9 | lines that begin with `●`, `•`, `*` or `-`, to lines that are not blank |
    | `ellipsis` | at most 0.3 | lines that end in `...`, `. . .` or `…` |
    | `alpha` | at most 0.2 | words between white space without any letter |
    | `stop_words` | at least 2 | the, be, to, of, and, that, have, with, in any case; `the,` is none |

    They are asked in this order. Column in: the text. No column is rewritten.

    Args:
        annotate (`bool`, *optional*, defaults to `False`):
            Write what each rule measures as `gopher_quality_<rule>` and drop nothing.
        min_words, max_words (`int`), min_mean_word_length, max_mean_word_length (`float`, characters):
            Bounds that a document may just meet, as the following.
        max_symbol_ratio, max_bullet_share, max_ellipsis_share, max_non_alpha_share (`float`):
            See above.
        min_stop_words (`int`, *optional*, defaults to 2):
            Occurrences, not distinct words.

    Reference: Rae et al. 2021, *Scaling Language Models: Methods, Analysis & Insights from Training Gopher*, section
    A.1.1 (arXiv 2112.11446); Li et al. 2024, *DataComp-LM*, section 4 (arXiv 2406.11794).
    """

    name: ClassVar[str] = "gopher_quality"

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3
    max_mean_word_length: float = 10
    max_symbol_ratio: float = 0.1
    max_bullet_share: float = 0.9
    max_ellipsis_share: float = 0.3
    max_non_alpha_share: float = 0.2
    min_stop_words: int = 2

    def _bounds(self) -> tuple[Rule, ...]:
        return (
            Rule("word_count", self.min_words, self.max_words),
            Rule("mean_word_len", self.min_mean_word_length, self.max_mean_word_length),
            Rule("symbol_ratio", maximum=self.max_symbol_ratio),
            Rule("bullet", maximum=self.max_bullet_share),
            Rule("ellipsis", maximum=self.max_ellipsis_share),
            Rule("alpha", maximum=self.max_non_alpha_share),
            Rule("stop_words", minimum=self.min_stop_words),
        )

    def _statistics(self, texts: list[str]) -> dict[str, Values]:
        count_quality = counters().count_quality
        counts = [count_quality(text, STOP_WORDS) for text in texts]
        table = np.array(counts, np.float64).reshape(-1, len(QualityCounts._fields))  # exact below 2^53
        by_field = dict(zip(QualityCounts._fields, table.T, strict=True))
        words = by_field["words"]  # never 0, nor are lines: what is all white space goes as empty
        return {
            "word_count": by_field["ft_words"],
            "mean_word_len": by_field["word_chars"] / words,
            "symbol_ratio": by_field["symbols"] / words,
            "bullet": by_field["bullets"] / by_field["lines"],
            "ellipsis": by_field["ellipses"] / by_field["lines"],
            "alpha": by_field["non_alpha"] / words,
            "stop_words": by_field["stop_words"],
        }
