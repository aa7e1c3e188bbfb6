"""Gopher's rules of quality, counted as DCLM counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.gopher import GopherStep, columns_of
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
        profile (`str`, *optional*, defaults to `"dclm"`):
            `"datatrove"` counts as datatrove 0.10 does, under its names of the rules; needs spaCy. It takes
            punctuation marks for words: 461 of 600 web documents stay where DCLM's rules keep 542.
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
        if self.profile == "datatrove":
            return (
                Rule("gopher_short_doc", minimum=self.min_words),
                Rule("gopher_long_doc", maximum=self.max_words),
                Rule("gopher_below_avg_threshold", minimum=self.min_mean_word_length),
                Rule("gopher_above_avg_threshold", maximum=self.max_mean_word_length),
                Rule("gopher_too_many_hashes", maximum=self.max_symbol_ratio),
                Rule("gopher_too_many_ellipsis", maximum=self.max_symbol_ratio),
                Rule("gopher_too_many_bullets", maximum=self.max_bullet_share),
                Rule("gopher_too_many_end_ellipsis", maximum=self.max_ellipsis_share),
                Rule("gopher_below_alpha_threshold", minimum=1 - self.max_non_alpha_share),
                Rule("gopher_enough_stop_words", minimum=self.min_stop_words),
            )
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
        if self.profile == "datatrove":
            rows = [
                datatrove_rules.quality_values(text, datatrove_rules.spacy_words(text), STOP_WORDS) for text in texts
            ]
            return columns_of(rows, [rule.name for rule in self._bounds()])
        count_quality = counters().count_quality
        by_field = columns_of([count_quality(text, STOP_WORDS) for text in texts], QualityCounts._fields)
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
