"""A quality classifier of documents: logistic regression on hashed word n-grams and statistics, or a fastText file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hf_ext.data.curation.documents import texts_of
from hf_ext.data.curation.quality_features import STATISTICS, Features, features_of
from hf_ext.data.curation.unicode_tables import unicode_versions
from hf_ext.guards.disk import replacing, write_whole, writing
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.inside import file_in, read_as
from hf_ext.guards.numbers import POSITIVE, SEED, Bounds
from hf_ext.guards.runs import claimed_file

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

SETTINGS = "classifier.json"
WEIGHTS = "classifier.safetensors"
REVISION = "1"
"""Changes whenever a score would."""

LOG_BUCKETS = 18
_STATISTIC_WEIGHT = 0.1  # of a statistic one standard deviation from its mean, beside an n-gram vector of length 1
_FARTHEST = 4.0  # standard deviations: one page of a million words would otherwise outweigh all else
_FEW = 100  # documents of a class
_SMALL_SPREAD = 0.01
_NGRAM = Bounds(int, 1, 5, "a whole number from 1 to 5")
_FOLDS = Bounds(int, 2, 100, "a whole number from 2 to 100")


class Classifier(Protocol):
    """What the filters need: [`QualityClassifier`] and [`FastTextClassifier`] have it."""

    @property
    def fingerprint(self) -> str:
        """The same for equal scores."""

    @property
    def threshold(self) -> float | None:
        """The score from which documents are kept, where one was chosen."""

    def score(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Probability that each text is of high quality, `(texts,)`."""


@dataclass(frozen=True)
class ClassifierReport:
    """
    How well a classifier tells documents apart that it was not trained on.

    Args:
        num_positives, num_negatives (`int`):
            Documents it was trained on.
        auc (`float`, *optional*):
            Area under the curve of held-out scores: each document is scored by a classifier that the other folds
            trained. `None` where a class has fewer documents than there are folds.
        length_auc (`float`):
            The same of the number of words alone: what a classifier must beat to see more than length.
        score_spread (`float`, *optional*):
            Highest minus lowest held-out score.
        warnings (`list[str]`):
            What makes the classifier doubtful.
    """

    num_positives: int
    num_negatives: int
    auc: float | None
    length_auc: float
    score_spread: float | None
    warnings: list[str]


@dataclass(frozen=True, eq=False, repr=False)
class QualityClassifier:
    """
    A logistic regression on hashed word n-grams and the statistics of [`STATISTICS`].

    Args:
        coefficients (`np.ndarray` of shape `(buckets,)`):
            Of the n-grams; float32.
        statistics (`np.ndarray` of shape `(3, 12)`):
            Mean, standard deviation and coefficient of each statistic; float64.
        intercept (`float`):
            Of the regression.
        longest_ngram (`int`):
            In words.
        seed (`int`):
            Of the hash.
        training_digest (`str`):
            Of the documents it was trained on, in their order.
        report (`ClassifierReport`):
            On held-out documents.
        threshold (`float`, *optional*):
            The score from which documents are kept.
        keep_share (`float`, *optional*):
            The share of a set for which the threshold was chosen.
    """

    coefficients: npt.NDArray[np.float32]
    statistics: npt.NDArray[np.float64]
    intercept: float
    longest_ngram: int
    seed: int
    training_digest: str
    report: ClassifierReport
    threshold: float | None = None
    keep_share: float | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that a score depends on."""
        digest = hashlib.sha256(self.coefficients.tobytes() + self.statistics.tobytes())
        digest.update(json.dumps([self.intercept, self.longest_ngram, self.seed, REVISION]).encode())
        return digest.hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QualityClassifier):
            return NotImplemented
        return (self.fingerprint, self.threshold, self.keep_share) == (
            other.fingerprint, other.threshold, other.keep_share,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.threshold, self.keep_share))

    def __getstate__(self) -> dict[str, Any]:
        # without the fingerprint: what datasets hashes must not depend on whether somebody asked for it
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def __repr__(self) -> str:
        return f"QualityClassifier({self.fingerprint!r}, threshold={self.threshold!r})"

    def score(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Probability that each text is of the positive class, `(texts,)`."""
        log_buckets = len(self.coefficients).bit_length() - 1
        scores = np.zeros(len(texts))
        for number, text in enumerate(texts):
            features = features_of(text, longest_ngram=self.longest_ngram, log_buckets=log_buckets, seed=self.seed)
            means, deviations, weights = self.statistics
            values = _standardised(np.array(features.statistics), means, deviations)
            score = self.coefficients[features.buckets].astype(float) @ features.values + weights @ values
            scores[number] = score + self.intercept
        return 1 / (1 + np.exp(-scores))

    def with_threshold(self, threshold: float, keep_share: float | None = None) -> QualityClassifier:
        """The same classifier with another threshold, and the share for which it was chosen."""
        return replace(self, threshold=threshold, keep_share=keep_share)

    def save(self, folder: str | Path) -> Path:
        """
        Write the folder that [`QualityClassifier.load`] reads: `classifier.safetensors` and `classifier.json`.

        A classifier that is there already is replaced, whole.

        Raises:
            ValueError: if the folder holds anything else.
            DiskFullError: if there is no room; what was in the folder is intact.
        """
        from safetensors.numpy import save

        folder = Path(folder)
        with writing("the classifier", folder), claimed_file(folder):
            strangers = sorted({file.name for file in folder.glob("*")} - {SETTINGS, WEIGHTS})
            if strangers:
                raise ValueError(f"{folder} holds {strangers[0]!r}, which is no classifier's. Name another folder.")
            weights = save({"coefficients": self.coefficients, "statistics": self.statistics})
            with replacing(folder, overwrite=True) as temporary:
                temporary.mkdir()
                (temporary / WEIGHTS).write_bytes(weights)
                settings = json.dumps(self._settings(weights), indent=1)
                write_whole(temporary / SETTINGS, settings + "\n")
        return folder

    def _settings(self, weights: bytes) -> dict[str, Any]:
        return {
            "revision": REVISION,
            "hash_seed": self.seed,
            "ngram_range": [1, self.longest_ngram],
            "statistics": list(STATISTICS),
            "intercept": self.intercept,
            "threshold": self.threshold,
            "keep_share": self.keep_share,
            "training_digest": self.training_digest,
            "versions": unicode_versions(),
            "report": asdict(self.report),
            "sha256": hashlib.sha256(weights).hexdigest(),
        }

    @classmethod
    def load(cls, folder: str | Path) -> QualityClassifier:
        """
        Read what [`QualityClassifier.save`] wrote; nothing in it is executed.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the files are no classifier, of another revision, damaged or of two classifiers.
        """
        folder = Path(folder)
        weights = file_in(folder, WEIGHTS, folder).read_bytes()
        path = file_in(folder, SETTINGS, folder)
        return read_as(path, lambda settings: _built(settings, weights), "the settings of a quality classifier")


def _built(settings: dict[str, Any], weights: bytes) -> QualityClassifier:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if settings["revision"] != REVISION or settings["statistics"] != list(STATISTICS):
        raise ValueError(f"it is of revision {settings['revision']!r}, this is {REVISION!r}: train it again")
    if hashlib.sha256(weights).hexdigest() != settings["sha256"]:
        raise ValueError(f"{WEIGHTS} beside it is another or damaged: copy both files again")
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} cannot be read ({error})") from error
    coefficients = tensors["coefficients"]
    statistics = tensors["statistics"]
    intercept = float(settings["intercept"])
    is_power = coefficients.ndim == 1 and len(coefficients) > 1 and len(coefficients).bit_count() == 1
    if not is_power or coefficients.dtype != np.float32:
        raise ValueError(f"coefficients are {coefficients.dtype} of shape {coefficients.shape}")
    if statistics.shape != (3, len(STATISTICS)) or statistics.dtype != np.float64 or not (statistics[1] > 0).all():
        raise ValueError(f"statistics are {statistics.dtype} of shape {statistics.shape}")
    if not (np.isfinite(coefficients).all() and np.isfinite(statistics).all() and np.isfinite(intercept)):
        raise ValueError("a coefficient is not finite")
    longest_ngram = settings["ngram_range"][1]
    for problem in (_NGRAM.problem_of(longest_ngram), SEED.problem_of(settings["hash_seed"])):
        if problem is not None:
            raise ValueError(problem)
    shares = [None if settings[name] is None else float(settings[name]) for name in ("threshold", "keep_share")]
    return QualityClassifier(
        coefficients, statistics, intercept, longest_ngram, settings["hash_seed"], str(settings["training_digest"]),
        ClassifierReport(**settings["report"]), *shares,
    )  # fmt: skip


def fit_quality_classifier(
    positives: Dataset | IterableDataset | Sequence[str],
    negatives: Dataset | IterableDataset | Sequence[str],
    *,
    text_column: str = "text",
    longest_ngram: int = 2,
    inverse_penalty: float = 10.0,
    folds: int = 5,
    seed: int = 0,
) -> QualityClassifier:
    """
    Train a classifier that tells documents worth training on from others.

    A classifier that tells two sources apart need not know quality: Wikipedia against web pages is told apart
    perfectly, and agrees with people's judgement of pages at an AUC of 0.65. Look at the held-out scores of documents
    that somebody judged, and at `length_auc` beside `auc`.

    Args:
        positives, negatives (`Dataset`, `IterableDataset` or `Sequence[str]`):
            Documents of either class; all of them are read. They take about 12 bytes a distinct n-gram of a document
            in memory, 10 kB for a page of 400 words.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the documents, where they are datasets.
        longest_ngram (`int`, *optional*, defaults to 2):
            In words.
        inverse_penalty (`float`, *optional*, defaults to 10.0):
            `C` of scikit-learn's logistic regression: a larger one fits the documents closer.
        folds (`int`, *optional*, defaults to 5):
            Parts in turn held out for the report's AUC.
        seed (`int`, *optional*, defaults to 0):
            Of the hash, of the folds and of the solver.

    Returns:
        `QualityClassifier`: without a threshold; [`find_cut`] finds one for a share of a set.

    Raises:
        ValueError: if a class is empty, or a number is out of bounds.
        RowError: if a row is no document.
        MissingExtraError: if scikit-learn is not installed.

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794), section 4.4: a classifier of word bigrams.
    """
    for name, bounds, number in (
        ("longest_ngram", _NGRAM, longest_ngram), ("inverse_penalty", POSITIVE, inverse_penalty),
        ("folds", _FOLDS, folds), ("seed", SEED, seed),
    ):  # fmt: skip
        problem = bounds.problem_of(number)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
    digest = hashlib.sha256()
    parts: list[Features] = []
    counts: list[int] = []
    for name, documents in (("positives", positives), ("negatives", negatives)):
        for text in texts_of(documents, text_column, name):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
            parts.append(features_of(text, longest_ngram=longest_ngram, log_buckets=LOG_BUCKETS, seed=seed))
        counts.append(len(parts) - sum(counts))
        digest.update(b"\xff" * 8)
        if not counts[-1]:
            raise ValueError(f"{name} has no document: a classifier needs both classes.")
    labels = np.repeat([1, 0], counts)
    design = _Design(parts, labels, inverse_penalty, seed)
    statistics, coefficients, intercept = design.fitted(np.arange(len(labels)))
    report = _report(design, folds, seed)
    for warning in report.warnings:
        logger.warning("%s", warning)
    return QualityClassifier(coefficients, statistics, intercept, longest_ngram, seed, digest.hexdigest()[:32], report)


class _Design:
    """Features of all training documents as one sparse matrix, and the regression on some of them."""

    def __init__(
        self, parts: Sequence[Features], labels: npt.NDArray[np.int64], inverse_penalty: float, seed: int
    ) -> None:
        with naming_extras():
            from scipy.sparse import csr_matrix

        pointers = np.cumsum([0, *(len(part.buckets) for part in parts)])
        buckets = np.concatenate([part.buckets for part in parts])
        values = np.concatenate([part.values for part in parts])
        self.ngrams = csr_matrix((values, buckets, pointers), shape=(len(parts), 2**LOG_BUCKETS))
        self.statistics = np.array([part.statistics for part in parts])
        self.lengths = np.array([part.num_words for part in parts])
        self.labels = labels
        self.inverse_penalty = inverse_penalty
        self.seed = seed

    def _regression(self, rows: npt.NDArray[np.intp]) -> tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        with naming_extras():
            from sklearn.linear_model import LogisticRegression

        means = self.statistics[rows].mean(axis=0)
        deviations = self.statistics[rows].std(axis=0)
        deviations[deviations == 0] = 1.0  # a statistic that never varies tells nothing
        # the dual solver of liblinear is fifteen times as fast here as the default, to the same AUC
        regression = LogisticRegression(
            C=self.inverse_penalty, solver="liblinear", dual=True, max_iter=5000, random_state=self.seed
        )
        regression.fit(self._matrix(rows, means, deviations), self.labels[rows])
        return regression, means, deviations

    def _matrix(
        self, rows: npt.NDArray[np.intp], means: npt.NDArray[np.float64], deviations: npt.NDArray[np.float64]
    ) -> Any:
        from scipy.sparse import csr_matrix, hstack

        values = _standardised(self.statistics[rows], means, deviations)
        return hstack([self.ngrams[rows], csr_matrix(values)]).tocsr()

    def fitted(self, rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], float]:
        """Means, deviations and coefficients of the statistics; coefficients of the n-grams; the intercept."""
        regression, means, deviations = self._regression(rows)
        coefficients = regression.coef_[0]
        statistics = np.stack([means, deviations, coefficients[2**LOG_BUCKETS :]])
        return statistics, coefficients[: 2**LOG_BUCKETS].astype(np.float32), float(regression.intercept_[0])

    def held_out_scores(self, folds: int, seed: int) -> npt.NDArray[np.float64]:
        """The probability of each document by a regression on the other folds; `(documents,)`."""
        from sklearn.model_selection import StratifiedKFold

        scores = np.zeros(len(self.labels))
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(self.labels, self.labels)
        for training_rows, test_rows in splits:
            regression, means, deviations = self._regression(training_rows)
            scores[test_rows] = regression.predict_proba(self._matrix(test_rows, means, deviations))[:, 1]
        return scores


def _report(design: _Design, folds: int, seed: int) -> ClassifierReport:
    from sklearn.metrics import roc_auc_score

    num_negatives, num_positives = np.bincount(design.labels).tolist()
    warnings = []
    fewest = min(num_positives, num_negatives)
    if fewest < _FEW:
        warnings.append(f"Only {fewest:,} documents of a class: below {_FEW} the classifier is hardly to be trusted.")
    auc = score_spread = None
    if fewest >= folds:
        scores = design.held_out_scores(folds, seed)
        auc = float(roc_auc_score(design.labels, scores))
        score_spread = float(np.ptp(scores))
        if score_spread < _SMALL_SPREAD:
            warnings.append(
                f"Held-out scores spread over {score_spread:.4f} only: the classifier tells the documents hardly "
                "apart, and a threshold among such scores is arbitrary."
            )
    length_auc = float(roc_auc_score(design.labels, design.lengths))
    return ClassifierReport(num_positives, num_negatives, auc, length_auc, score_spread, warnings)


def _standardised(
    values: npt.NDArray[np.float64], means: npt.NDArray[np.float64], deviations: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return _STATISTIC_WEIGHT * np.clip((values - means) / deviations, -_FARTHEST, _FARTHEST)
