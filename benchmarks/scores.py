"""
Scores of how hard a row is, for `method="score"`: higher is harder, always.

No benchmark of its own: `pruning_robustness` compares the rankings with the selectors of the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_ext.data.vectors.rows import FloatArray, IntArray


def el2n_scores(logits: Any, labels: Any) -> FloatArray:
    r"""
    Length of the error vector, $\lVert \mathrm{softmax}(z) - \mathrm{onehot}(y) \rVert_2$.

    Args:
        logits (array of shape `(n, classes)` or `(runs, n, classes)`):
            Of a model early in its training; the scores of several runs are averaged.
        labels (array of shape `(n,)`):
            Given labels, whole numbers below `classes`.

    Returns:
        `np.ndarray` of shape `(n,)`: in [0, sqrt(2)]; near 0 the given label was expected, near sqrt(2) another one.

    Raises:
        ValueError: logits that are not finite, or labels that do not fit; the message names the row.

    Relations: `method="score"`. The highest scores are mostly wrong rows where labels are noisy: there, `keep="easy"`.

    Reference: Paul, Ganguli, Dziugaite 2021, *Deep Learning on a Data Diet* (arXiv 2107.07075), Definition 2.2.
    """
    return _error_lengths(_logits(logits), labels).mean(0)


def grand_scores(logits: Any, labels: Any, features: Any, *, bias: bool = True) -> FloatArray:
    r"""
    Length of the last layer's gradient of the cross-entropy, in closed form:
    $\lVert \mathrm{softmax}(z) - \mathrm{onehot}(y) \rVert_2 \sqrt{\lVert h \rVert_2^2 + [\text{bias}]}$.

    The paper takes the gradient of all weights; the last layer's is the usual stand-in, and needs no backward pass.

    Args:
        logits (array of shape `(n, classes)` or `(runs, n, classes)`), labels (array of shape `(n,)`):
            As for [`el2n_scores`].
        features (array of shape `(n, d)` or `(runs, n, d)`):
            What goes into the last layer.
        bias (`bool`, *optional*, defaults to `True`):
            Whether that layer has a bias.

    Returns:
        `np.ndarray` of shape `(n,)`: non-negative, in nats per unit of weight; averaged over runs.

    Raises:
        ValueError: as [`el2n_scores`], or features that do not fit or are not finite.

    Reference: Paul, Ganguli, Dziugaite 2021 (arXiv 2107.07075), Definition 2.1.
    """
    values = _logits(logits)
    inputs = _stacked(features, "features")
    if inputs.shape[:2] != values.shape[:2]:
        raise ValueError(
            f"features must have one vector a row and run: {inputs.shape[:2]}, logits {values.shape[:2]}."
        )
    squares = np.einsum("rnd,rnd->rn", inputs, inputs) + float(bias)
    return (_error_lengths(values, labels) * np.sqrt(squares)).mean(0)


def forgetting_counts(correct: Any) -> FloatArray:
    """
    How often a row was predicted rightly and, at its next look, wrongly.

    Args:
        correct (array of shape `(epochs, n)`):
            Whether each row was predicted rightly, epoch after epoch; booleans, or 0 and 1.

    Returns:
        `np.ndarray` of shape `(n,)`: events. A row that was never right gets `epochs`, above any count there can be:
        it is the hardest of all.

    Raises:
        ValueError: another shape, or another value; the message names epoch and row.

    Reference: Toneva et al. 2019, *An Empirical Study of Example Forgetting* (arXiv 1812.05159), Algorithm 1.
    """
    array = np.asarray(correct)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"correct must have shape (epochs, n), got {array.shape}.")
    bad = np.argwhere(~((array == 0) | (array == 1)))
    if len(bad):
        epoch, row = bad[0]
        raise ValueError(f"Row {row:,} of epoch {epoch:,} is {array[epoch, row]!r}: correct must hold booleans.")
    right = array.astype(bool)
    events = (right[:-1] & ~right[1:]).sum(0).astype(np.float64)
    return np.where(right.any(0), events, float(len(right)))


def uncertainty_scores(logits: Any, *, kind: str = "least_confidence") -> FloatArray:
    """
    How unsure a model is of its own prediction; labels play no part.

    Args:
        logits (array of shape `(n, classes)` or `(runs, n, classes)`):
            At least two classes; the scores of several runs are averaged.
        kind (`"least_confidence"`, `"entropy"` or `"margin"`, *optional*, defaults to `"least_confidence"`):
            One less the highest probability; the entropy in nats; one less the gap between the two highest.

    Returns:
        `np.ndarray` of shape `(n,)`: 0 where the model is sure.

    Raises:
        ValueError: logits that are not finite (the message names the row), or another kind.

    Reference: Coleman et al. 2020, *Selection via Proxy* (arXiv 1906.11829).
    """
    values = _logits(logits)
    log_p = _log_softmax(values)
    p = np.exp(log_p)
    if kind == "least_confidence":
        return (1.0 - p.max(-1)).mean(0)
    if kind == "entropy":
        return -(p * log_p).sum(-1).mean(0)
    if kind != "margin":
        raise ValueError(f"kind must be 'least_confidence', 'entropy' or 'margin', got {kind!r}.")
    if values.shape[-1] < 2:
        raise ValueError("A margin needs at least two classes.")
    top = np.partition(p, -2, axis=-1)
    return (1.0 - (top[..., -1] - top[..., -2])).mean(0)


def _stacked(values: Any, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{name} must have shape (n, width) or (runs, n, width), got {np.shape(values)}.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        run, row, place = bad[0]
        raise ValueError(
            f"{name} of row {row:,} hold {array[run, row, place]} in column {place:,} (run {run}). Drop the row, or "
            "compute it again; 16-bit models overflow easily."
        )
    return array


def _logits(logits: Any) -> FloatArray:
    return _stacked(logits, "logits")


def _log_softmax(values: FloatArray) -> FloatArray:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _labels(labels: Any, n: int, classes: int) -> IntArray:
    array = np.asarray(labels)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ValueError(f"labels must be {n:,} whole numbers, one a row, got {array.dtype} of shape {array.shape}.")
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        raise ValueError(
            f"Label of row {bad[0]:,} is {array[bad[0]]}, and the logits have {classes} classes. Drop the row or give "
            "it a label."
        )
    return array.astype(np.int64)


def _error_lengths(values: FloatArray, labels: Any) -> FloatArray:
    _, n, classes = values.shape
    error = np.exp(_log_softmax(values))
    error[:, np.arange(n), _labels(labels, n, classes)] -= 1.0
    return np.sqrt(np.einsum("rnc,rnc->rn", error, error))


__all__ = ["el2n_scores", "forgetting_counts", "grand_scores", "uncertainty_scores"]
