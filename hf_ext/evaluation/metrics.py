"""Metrics of `evaluate`, for its `combine` and a trainer's `compute_metrics`; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Features, List, Value
from numpy.typing import NDArray

from hf_ext.guards.extras import naming_extras
from hf_ext.guards.numbers import Bounds
from hf_ext.losses.kl import exact_kl

with naming_extras():
    import evaluate

__all__ = ["CentredAccuracy", "KLOriginalToNew", "NDCGAt10"]

BASELINE = Bounds(float, 0, 1, "a share, at least 0 and below 1", below=True)
IGNORED = -100  # the label with which trainers pad
PLACES = 10
CHUNK_BYTES = 64 * 2**20
"""Upper bound of one temporary of a KL, in bytes of float32; one position is always allowed."""


class CentredAccuracy(evaluate.Metric):
    r"""
    Accuracy $a$ on a scale on which a guess gets 0 and a perfect model 1: $(a - b) / (1 - b)$. It may be below 0.

    | input, one entry a row | type |
    |---|---|
    | `predictions`, `references` | the class that was picked and the right one: numbers, or names |

    The result is `{"centred_accuracy": ...}`.

    Args:
        random_baseline (`float`):
            The share $b$ that a guess gets right, such as 0.25 for four options.
        **kwargs:
            As in `evaluate.Metric`.

    Raises:
        ValueError: if the baseline is no share below 1.

    Example:

    ```python
    >>> metric = CentredAccuracy(random_baseline=0.25)
    >>> def compute_metrics(scores):
    ...     return metric.compute(predictions=scores.predictions.argmax(-1), references=scores.label_ids)
    >>> trainer = Trainer(model, args, eval_dataset=rows, compute_metrics=compute_metrics)
    ```

    Relations: CORE is the mean of it over tasks ([`aggregate_core`]).

    Reference: Li et al. 2024, *DataComp-LM* (arXiv 2406.11794), section 3.5.
    """

    def __init__(self, random_baseline: float, **kwargs: Any) -> None:
        problem = BASELINE.problem_of(random_baseline)
        if problem is not None:
            raise ValueError(f"random_baseline {problem}.")
        self.random_baseline = random_baseline
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        # The first that fits is taken. Numbers as float64: as integers Arrow would cut 0.7 to 0 without a word.
        return _information(self, [{"predictions": Value(kind), "references": Value(kind)} for kind in _KINDS])

    def _compute(self, predictions: list[Any], references: list[Any], **_: Any) -> dict[str, float]:
        # `combine` hands every metric the settings of all the others, here and below.
        accuracy = float(np.mean(np.asarray(predictions) == np.asarray(references)))
        return {"centred_accuracy": (accuracy - self.random_baseline) / (1 - self.random_baseline)}


class NDCGAt10(evaluate.Metric):
    r"""
    nDCG@10 with linear gains, as trec_eval has it: the mean over queries of $\mathrm{DCG} / \mathrm{DCG}_{ideal}$.

    | input, one entry a query | type |
    |---|---|
    | `predictions` | scores of its candidates, the higher the nearer to the top |
    | `references` | grades of the same candidates; 0 or less gains nothing, and -100 is padding |

    A relevant document that the search did not return is still a candidate, with the score `-inf`: left out, it would
    be missing from the ideal ranking. Candidates with one score share the places that they take, so a model that
    scores all alike gains by no order of the rows. Queries without a relevant candidate do not count.

    The result is `{"ndcg@10": ...}`.

    Raises:
        ValueError: if a query has more scores than grades or fewer, a score that is NaN or a grade that is not finite,
            or if no query has a relevant candidate.

    Relations: without ties [`~hf_ext.evaluation.retrieval.graded_ndcg`] of the ranking; with ties the mean over all
    orders of the tied, which is `sklearn.metrics.ndcg_score`.

    Reference: Järvelin and Kekäläinen 2002, *Cumulated gain-based evaluation of IR techniques*; McSherry and Najork
    2008, *Computing information retrieval performance measures efficiently in the presence of tied scores*.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _information(self, {name: List(Value("float64")) for name in ("predictions", "references")})

    def _compute(self, predictions: list[list[float]], references: list[list[float]], **_: Any) -> dict[str, float]:
        values = []
        for query, (scores, grades) in enumerate(zip(predictions, references, strict=True)):
            if len(scores) != len(grades):
                raise ValueError(f"Query {query:,} has {len(scores)} scores and {len(grades)} grades.")
            counts = np.asarray(grades) != IGNORED
            candidates = np.asarray(scores, dtype=np.float64)[counts]
            if np.isnan(candidates).any():
                raise ValueError(f"Query {query:,} has a score that is NaN.")
            if not np.isfinite(grades).all():
                raise ValueError(f"Query {query:,} has a grade that is not finite.")
            gains = np.maximum(np.asarray(grades, dtype=np.float64)[counts], 0)
            ideal = float(_dcg(gains, gains))
            if ideal > 0:
                values.append(float(_dcg(gains, candidates)) / ideal)
        if not values:
            raise ValueError("No query has a relevant candidate, a grade above 0, so there is nothing to measure.")
        return {"ndcg@10": float(np.mean(values))}


def _dcg(gains: NDArray[np.float64], scores: NDArray[np.float64]) -> np.float64:
    """Gain of the ranking by score, cut at ten places; the expected one where scores are tied."""
    places = np.arange(len(gains))
    discounts = np.where(places < PLACES, 1 / np.log2(places + 2), 0)
    _, group = np.unique(-scores, return_inverse=True)
    counts = np.bincount(group)
    # every order of a group is as likely: each of its candidates has the mean gain of the group in each of its places
    mean_gains = np.bincount(group, weights=gains) / counts
    return np.sum(np.repeat(mean_gains, counts) * discounts)


class KLOriginalToNew(evaluate.Metric):
    r"""
    KL(original || new) of two models' outputs in nats, exact over the vocabulary or the classes, mean over positions.

    | input, one entry a position | type |
    |---|---|
    | `predictions` | logits of the new model, over the vocabulary or the classes |
    | `original_logits` | those of the original model at the same position |

    The result is `{"kl_original_to_new": ...}`.

    Positions are rows: `logits.reshape(-1, vocab_size)`, of the supervised positions alone. They are kept on disk
    until `compute`, 4 bytes a logit and model; over a large vocabulary [`forgetting_report`] keeps none.

    Raises:
        ValueError: if two positions, or the two models, have not the same number of logits.
        FloatingPointError: if the KL of a position is not finite; the message names the position.

    Relations: what [`forgetting_report`] calls `kl_original_to_new`, where the positions are those of fresh samples of
    the original model; at equal logits it is exactly 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        information = _information(self, {name: List(Value("float32")) for name in ("predictions", "original_logits")})
        # As arrays: as lists of Python numbers, evaluate's own choice, logits take eight times the room. Set here, as
        # MetricInfo (evaluate 0.4.6) takes this format for columns of single numbers alone.
        information.format = "numpy"
        return information

    def _compute(self, predictions: Any, original_logits: Any, **_: Any) -> dict[str, float]:
        for name, logits in (("predictions", predictions), ("original_logits", original_logits)):
            if np.ndim(logits) != 2:  # rows of unlike length do not make an array of two dimensions
                raise ValueError(f"Every position needs the same number of logits, and those of {name} differ.")
        if np.shape(predictions) != np.shape(original_logits):
            shapes = " and ".join(str(np.shape(logits)[1]) for logits in (predictions, original_logits))
            raise ValueError(f"The two models have {shapes} logits a position; a KL needs one vocabulary.")
        new, original = torch.from_numpy(predictions), torch.from_numpy(original_logits)
        chunk = max(1, CHUNK_BYTES // (4 * new.shape[1]))
        parts = [exact_kl(o, n).double() for o, n in zip(original.split(chunk), new.split(chunk), strict=True)]
        kl = torch.cat(parts)
        bad = (~torch.isfinite(kl)).nonzero()
        if len(bad):
            first = int(bad[0])
            raise FloatingPointError(f"Position {first:,}: the KL is {kl[first]}; {len(bad)} positions are affected.")
        return {"kl_original_to_new": float(kl.mean())}


_KINDS = ("string", "float64")


def _information(metric: evaluate.Metric, columns: dict[str, Any] | list[dict[str, Any]]) -> evaluate.MetricInfo:
    features = [Features(choice) for choice in columns] if isinstance(columns, list) else Features(columns)
    words = (type(metric).__doc__ or "").strip()
    return evaluate.MetricInfo(description=words, citation="", inputs_description="", features=features)
