"""Documents with a benchmark's rows in them: dropped, cut, or only reported."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_ext.data.curation.ngram_index import NGramIndex, Span
from hf_ext.data.curation.steps import Batch, Judgement, RowStep, Rule, Values

MODES = ("drop", "mask_span", "report")


@dataclass(frozen=True, kw_only=True)
class Decontaminate(RowStep):
    """
    Find the rows of benchmarks in documents.

    | column in | type | column out | type |
    |---|---|---|---|
    | `text_column` | str | `contamination` | str: a JSON list of `start`, `end`, `task`, `row`, `num_ngrams` |
    | | | `text_column`, with `mode="mask_span"` | str, without the spans |

    `start` and `end` are characters of the document as it came in.

    Args:
        index (`NGramIndex`):
            Of the benchmarks.
        mode (`str`, *optional*, defaults to `"drop"`):
            `"drop"` drops a document with a span, naming its task and row in the drop ledger; `"mask_span"` cuts the
            spans out of it; `"report"` leaves it as it is.
    """

    index: NGramIndex
    mode: str = "drop"

    name: ClassVar[str] = "decontaminate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """`ngrams`: how many of the document's n-grams are a benchmark's, where such documents are dropped."""
        return (Rule("ngrams", maximum=0),) if self.mode == "drop" else ()

    @property
    def versions(self) -> dict[str, str]:
        """The index's fingerprint, and the version of Unicode that normalises texts."""
        return {"index": self.index.fingerprint, "unicodedata": unicodedata.unidata_version}

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Find the spans of every document."""
        documents = [self.index.find(text) for text in texts]
        columns: dict[str, list[Any]] = {
            "contamination": [json.dumps([span._asdict() for span in spans]) for spans in documents]
        }
        if self.mode == "mask_span":
            columns[self.text_column] = [_cut(text, spans) for text, spans in zip(texts, documents, strict=True)]
        if self.mode != "drop":
            return columns, {}
        return columns, {"ngrams": np.array([sum(span.num_ngrams for span in spans) for spans in documents], float)}

    def judge(self, batch: Batch, indices: Sequence[int] | None = None) -> Judgement:
        """As every step does; a drop says which row was found, and where."""
        judgement = super().judge(batch, indices)
        for number, drop in enumerate(judgement.drops):
            if drop is not None and drop.rule == "ngrams":
                span, *others = json.loads(judgement.columns["contamination"][number])
                more = f" and {len(others)} more" if others else ""
                detail = f"{span['task']} {span['row']} at characters {span['start']}-{span['end']}{more}"
                judgement.drops[number] = drop._replace(detail=detail)
        return judgement


def _cut(text: str, spans: list[Span]) -> str:
    """The text without the spans."""
    bounds = [0, *(bound for span in spans for bound in (span.start, span.end)), len(text)]
    return "".join(text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
