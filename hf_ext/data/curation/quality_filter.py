"""Documents kept by a quality classifier: from a score on, or the best share of a set; and what lies at the cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from hf_ext.data.curation.classifier import Classifier, QualityClassifier
from hf_ext.data.curation.documents import texts_of
from hf_ext.data.curation.fasttext_file import FastTextClassifier
from hf_ext.data.curation.steps import Batch, Decision, Drop, Notes, RowStep, Rule, SetStep, Values
from hf_ext.data.curation.thresholds import Cut, share_cut
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.numbers import PROBABILITY, SHARE
from hf_ext.guards.row_text import shorten

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_UNITS = ("words", "documents")
_TABLE_SCHEMA = pa.schema([("score", pa.float64()), ("words", pa.int64()), ("key", pa.uint64())])


@dataclass(frozen=True, kw_only=True)
class QualityFilter(RowStep):
    """
    Keep documents from a score on.

    | column in | type | column out | type |
    |---|---|---|---|
    | `text_column` | str | `quality_score` | float, the probability of quality |

    Args:
        classifier (`QualityClassifier` or `FastTextClassifier`):
            What scores.
        threshold (`float`, *optional*):
            A document at it stays; by default the classifier's own.

    Raises:
        ValueError: if neither has a threshold.
    """

    classifier: Classifier
    threshold: float | None = None

    name: ClassVar[str] = "quality"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None and self.classifier.threshold is None:
            raise ValueError(
                "The classifier has no threshold. Pass threshold=, or let find_cut choose one for a share of your "
                "documents: one that others published was chosen for theirs."
            )
        problem = PROBABILITY.problem_of(self._threshold)
        if problem is not None:
            raise ValueError(f"threshold {problem}.")

    @property
    def _threshold(self) -> float:
        threshold = self.classifier.threshold if self.threshold is None else self.threshold
        assert threshold is not None
        return threshold

    @property
    def rules(self) -> tuple[Rule, ...]:
        """`score` alone."""
        return (Rule("score", minimum=self._threshold),)

    @property
    def versions(self) -> dict[str, str]:
        """The classifier's fingerprint."""
        return {"classifier": self.classifier.fingerprint}

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Score every document."""
        scores = self.classifier.score(texts)
        return {"quality_score": scores.tolist()}, {"score": scores}


@dataclass(frozen=True, kw_only=True)
class QualityShare(SetStep):
    """
    Keep the share of a set that a classifier scores highest.

    The score at which that share is reached is not known before every document is scored; it is noted as `threshold`,
    beside the `kept_share`. Of documents with that very score those stay that the hashes of their texts put first, so
    the same texts stay however the set is split or ordered; the others go by the rule `tie`. Takes 24 bytes a
    document in memory.

    Args:
        classifier (`QualityClassifier` or `FastTextClassifier`):
            What scores.
        keep_share (`float`):
            Above 0 and at most 1.
        unit (`str`, *optional*, defaults to `"words"`):
            What it is a share of: `"words"` between white space, or `"documents"`.
    """

    classifier: Classifier
    keep_share: float
    unit: str = "words"

    name: ClassVar[str] = "quality"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.keep_share, self.unit)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """`score`, and `tie` for documents at the threshold for which there was no room."""
        return (Rule("score"), Rule("tie"))

    @property
    def versions(self) -> dict[str, str]:
        """The classifier's fingerprint."""
        return {"classifier": self.classifier.fingerprint}

    def features(self, texts: list[str], batch: Batch) -> pa.Table:
        """Score, words and the hash of each document."""
        return _scored(self.classifier, texts)

    def decide(self, tables: Sequence[pa.Table], notes: Notes | None = None) -> Iterator[list[Decision]]:
        """Cut at the share, then go through the documents."""
        # an empty table of the same columns, for a set without documents
        scored = pa.concat_tables([_TABLE_SCHEMA.empty_table(), *tables])
        if not len(scored):
            yield from ([] for _ in tables)
            return
        cut = _cut(scored, self.keep_share, self.unit)
        if notes is not None:
            notes.update(threshold=cut.threshold, kept_share=cut.kept_share)
        scores = scored["score"].to_numpy()
        start = 0
        for table in tables:
            stop = start + len(table)
            decisions = []
            for score, is_kept in zip(scores[start:stop].tolist(), cut.is_kept[start:stop].tolist(), strict=True):
                rule = "tie" if score == cut.threshold else "score"
                drop = None if is_kept else Drop(rule, score, cut.threshold)
                decisions.append(Decision(drop, columns={"quality_score": score}))
            yield decisions
            start = stop


class CutExample(NamedTuple):
    """A document near the cut: its id (its position where the set has no ids), score and the beginning of its text."""

    id: str
    score: float
    is_kept: bool
    excerpt: str


class CutReport(NamedTuple):
    """
    What a share of a set is cut at.

    Args:
        threshold (`float`):
            Lowest score that is kept.
        kept_share (`float`):
            Share of the words, or documents, that [`QualityShare`] keeps.
        num_documents, num_kept (`int`):
            Of the set.
        examples (`list[CutExample]`):
            The lowest kept and the highest dropped, by falling score; their texts are for your eyes, and in no report
            that is pushed.
    """

    threshold: float
    kept_share: float
    num_documents: int
    num_kept: int
    examples: list[CutExample]


def load_classifier(path: str | Path) -> Classifier:
    """
    A classifier that was saved: the folder of a [`QualityClassifier`], or the file of a fastText model.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it holds no classifier.
    """
    return FastTextClassifier(str(path)) if Path(path).suffix in (".bin", ".ftz") else QualityClassifier.load(path)


def find_cut(
    classifier: Classifier,
    dataset: Dataset | IterableDataset | Sequence[str],
    keep_share: float,
    *,
    unit: str = "words",
    text_column: str = "text",
    id_column: str | None = None,
    num_examples: int = 5,
) -> CutReport:
    """
    The score at which a classifier keeps a share of a set, and what lies around it.

    `classifier.with_threshold(report.threshold, keep_share)` keeps it for [`QualityFilter`].

    Args:
        classifier (`QualityClassifier` or `FastTextClassifier`):
            What scores.
        dataset (`Dataset`, `IterableDataset` or `Sequence[str]`):
            Documents of the pool that is to be filtered, or a sample of it; gone through twice.
        keep_share, unit:
            As of [`QualityShare`].
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the documents.
        id_column (`str`, *optional*):
            Column of their ids, for the examples.
        num_examples (`int`, *optional*, defaults to 5):
            Documents on either side of the cut.

    Raises:
        ValueError: if the set has no word, or the share is no share.
        RowError: if a row is no document.
    """
    _check_share(keep_share, unit)
    tables = [_scored(classifier, texts) for texts in _batches(texts_of(dataset, text_column, "the dataset"))]
    scored = pa.concat_tables([_TABLE_SCHEMA.empty_table(), *tables])
    cut = _cut(scored, keep_share, unit)
    scores = scored["score"].to_numpy()
    order = np.lexsort((scored["key"].to_numpy(), -scores))
    num_kept = int(cut.is_kept.sum())
    nearest = order[max(num_kept - num_examples, 0) : num_kept + num_examples].tolist()
    texts = _at(texts_of(dataset, text_column, "the dataset"), nearest)
    ids: dict[int, Any] = {number: number for number in nearest}
    if id_column is not None:
        ids = _at(texts_of(dataset, id_column, "the dataset", kind=object), nearest)
    examples = [
        CutExample(str(ids[number]), float(scores[number]), bool(cut.is_kept[number]), shorten(texts[number]))
        for number in nearest
    ]
    return CutReport(cut.threshold, cut.kept_share, len(scores), num_kept, examples)


def _check_share(keep_share: float, unit: str) -> None:
    problem = SHARE.problem_of(keep_share)
    if problem is not None:
        raise ValueError(f"keep_share {problem}.")
    if unit not in _UNITS:
        raise ValueError(f'unit must be "words" or "documents", got {unit!r}.')


def _scored(classifier: Classifier, texts: list[str]) -> pa.Table:
    with naming_extras():
        from xxhash import xxh3_64_intdigest

    scores = classifier.score(texts)
    words = [len(text.split()) for text in texts]
    keys = [xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in texts]
    return pa.table([pa.array(scores), pa.array(words), pa.array(keys, pa.uint64())], schema=_TABLE_SCHEMA)


def _cut(scored: pa.Table, keep_share: float, unit: str) -> Cut:
    weights = scored["words"].to_numpy() if unit == "words" else np.ones(len(scored), np.int64)
    return share_cut(scored["score"].to_numpy(), weights, scored["key"].to_numpy(), keep_share)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == 1000:
            yield batch
            batch = []
    if batch:
        yield batch


def _at(values: Iterator[Any], numbers: list[int]) -> dict[int, Any]:
    """The values at those positions."""
    positions = set(numbers)
    return {number: value for number, value in enumerate(values) if number in positions}
