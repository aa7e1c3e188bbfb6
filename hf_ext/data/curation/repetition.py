"""Gopher's rules of repetition, counted as DCLM counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_ext.data.curation import datatrove_rules
from hf_ext.data.curation.gopher import GopherStep, columns_of
from hf_ext.data.curation.steps import Rule, Values
from hf_ext.data.curation.text_counts import NGRAM_SIZES, REPEATED_NGRAM_SIZES, TOP_NGRAM_SIZES, PieceCounts
from hf_ext.data.curation.words import counters


@dataclass(frozen=True, kw_only=True)
class GopherRepetition(GopherStep):
    """
    Drop documents that say the same again and again.

    | rule | at most | share of |
    |---|---|---|
    | `line_count`, `paragraph_count` | 0.30 | lines (paragraphs) that occur more than once |
    | `line_chars`, `paragraph_chars` | 0.20 | characters in such lines (paragraphs) |
    | `top_2_gram`, `top_3_gram`, `top_4_gram` | 0.20, 0.18, 0.16 | characters of the top n-gram, times its count |
    | `repeated_5_gram` to `repeated_10_gram` | 0.15 to 0.10 | characters of words in repeated n-grams |

    They are asked in this order. Lines and paragraphs are what lies between `"\\n"` and between `"\\n\\n"`, stripped
    and not blank; a document of one has no repeated one. Every copy counts, the first one too, as in DCLM: of
    `a b c d a f a` three sevenths are repeated, where Gopher and datatrove say two. Words are [`words_uax`], and
    shares of n-grams are of the words' characters, without spaces and punctuation. Of several n-grams that are the
    most frequent the longest counts; its copies may overlap, so that the share may be over 1.

    Column in: the text. No column is rewritten.

    Args:
        profile (`str`, *optional*, defaults to `"dclm"`):
            `"datatrove"` counts as datatrove 0.10 does, under its names of the rules; needs spaCy.
        annotate (`bool`, *optional*, defaults to `False`):
            Write what each rule measures as `gopher_repetition_<rule>` and drop nothing.
        max_line_share, max_paragraph_share, max_line_char_share, max_paragraph_char_share (`float`):
            Bounds that a document may just meet, as the following.
        max_top_ngram_shares (`tuple[float, float, float]`):
            For n = 2, 3, 4.
        max_repeated_ngram_shares (`tuple` of six `float`):
            For n = 5 to 10.

    Reference: Rae et al. 2021, *Scaling Language Models: Methods, Analysis & Insights from Training Gopher*, table A1
    (arXiv 2112.11446); Li et al. 2024, *DataComp-LM*, section 4 (arXiv 2406.11794).
    """

    name: ClassVar[str] = "gopher_repetition"

    max_line_share: float = 0.30
    max_paragraph_share: float = 0.30
    max_line_char_share: float = 0.20
    max_paragraph_char_share: float = 0.20
    max_top_ngram_shares: tuple[float, ...] = (0.20, 0.18, 0.16)
    max_repeated_ngram_shares: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, sizes in (
            ("max_top_ngram_shares", TOP_NGRAM_SIZES),
            ("max_repeated_ngram_shares", REPEATED_NGRAM_SIZES),
        ):
            shares = tuple(getattr(self, name))  # a list, from YAML
            if len(shares) != len(sizes):
                raise ValueError(f"{name} must have {len(sizes)} shares, for n = {sizes}, got {shares!r}.")
            object.__setattr__(self, name, shares)

    def _bounds(self) -> tuple[Rule, ...]:
        shares = self.max_top_ngram_shares + self.max_repeated_ngram_shares
        if self.profile == "datatrove":
            bounds = {
                "dup_para_frac": self.max_paragraph_share,
                "dup_para_char_frac": self.max_paragraph_char_share,
                "dup_line_frac": self.max_line_share,
                "dup_line_char_frac": self.max_line_char_share,
            }
        else:
            bounds = {
                "line_count": self.max_line_share,
                "paragraph_count": self.max_paragraph_share,
                "line_chars": self.max_line_char_share,
                "paragraph_chars": self.max_paragraph_char_share,
            }
        bounds |= {self._ngram_rule(size): share for size, share in zip(NGRAM_SIZES, shares, strict=True)}
        return tuple(Rule(name, maximum=bound) for name, bound in bounds.items())

    def _ngram_rule(self, size: int) -> str:
        if size in TOP_NGRAM_SIZES:
            return f"top_{size}_gram"
        return f"duplicated_{size}_n_grams" if self.profile == "datatrove" else f"repeated_{size}_gram"

    def _statistics(self, texts: list[str]) -> dict[str, Values]:
        if self.profile == "datatrove":
            rows = [datatrove_rules.repetition_values(text, datatrove_rules.spacy_words(text)) for text in texts]
            return columns_of(rows, [rule.name for rule in self._bounds()])
        counts = list(map(counters().count_repetition, texts))
        lines = _shares([count.lines for count in counts])
        paragraphs = _shares([count.paragraphs for count in counts])
        chars = np.array([count.ngram_chars for count in counts], np.float64).reshape(-1, 1 + len(NGRAM_SIZES))
        ngrams = chars[:, 1:] / np.maximum(chars[:, :1], 1)  # without words nothing repeats
        values = [lines[0], paragraphs[0], lines[1], paragraphs[1], *ngrams.T]
        return dict(zip([rule.name for rule in self._bounds()], values, strict=True))


def _shares(counts: list[PieceCounts]) -> tuple[Values, Values]:
    """Shares of the pieces that repeat, by number and by characters; `(rows,)` each."""
    pieces, chars, repeated, repeated_chars = np.array(counts, np.float64).reshape(-1, 4).T
    return repeated / np.maximum(pieces, 1), repeated_chars / np.maximum(chars, 1)
