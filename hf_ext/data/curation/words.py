"""Words as the rules count them: by Unicode's word boundaries (UAX#29), and as fastText splits them."""

from __future__ import annotations

import re

from hf_ext.data.curation import plain
from hf_ext.data.curation.text_counts import Counters, Spans
from hf_ext.guards.compiling import compiled_module

_FT_WORD = re.compile(r"[^ \n\r\t\v\f\0]+")


def counters() -> Counters:
    """What counts: the compiled functions, or the plain ones, with the same results, where numba cannot be used."""
    return compiled_module("hf_ext.data.curation.kernel") or plain


def segment_spans(text: str, *, words_only: bool = False) -> Spans:
    """
    Where the segments between word boundaries lie.

    Args:
        text (`str`):
            Any text; lone surrogates are characters like others.
        words_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out segments that begin with neither a letter nor a digit.

    Returns:
        Starts and ends, two arrays of shape `(segments,)`, in characters.

    Reference: Unicode Standard Annex #29, section 4, rules WB1 to WB999.
    """
    return counters().segment_spans(text, words_only=words_only)


def segments_uax(text: str) -> list[str]:
    """All segments between word boundaries, white space and punctuation too: together they are the text."""
    starts, ends = segment_spans(text)
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def words_uax(text: str) -> list[str]:
    """The segments between word boundaries that begin with a letter or a digit: DCLM's words for n-grams."""
    starts, ends = segment_spans(text, words_only=True)
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def words_ft(text: str) -> list[str]:
    """
    The words that fastText splits at ASCII white space and NUL, without those that begin with punctuation: `"(one` is
    no word. These are what DCLM counts.
    """
    return [word for word in _FT_WORD.findall(text) if word[0].isalnum()]
