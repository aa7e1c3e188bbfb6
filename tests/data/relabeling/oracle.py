"""What the tests of label privacy share: a key, rows, and the mechanisms written out from their definitions."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from hf_ext.data.relabeling import KeyRef, RandomizedResponse

os.environ["HF_EXT_TEST_LABEL_KEY"] = hashlib.sha256(b"the tests of label privacy").hexdigest()  # for workers too


def key() -> KeyRef:
    return KeyRef(env="HF_EXT_TEST_LABEL_KEY")


def response(epsilon: float, k: int, **settings: Any) -> RandomizedResponse:
    return RandomizedResponse(epsilon, k, key(), **settings)


def rows(n: int = 400, k: int = 4, seed: int = 0) -> Dataset:
    """Rows of `k` named classes with ids and a number that says nothing."""
    rng = np.random.default_rng(seed)
    columns = {"id": [f"r{i}" for i in range(n)], "label": rng.integers(0, k, n).tolist(), "x": rng.normal(size=n)}
    names = ClassLabel(names=[f"class {i}" for i in range(k)])
    return Dataset.from_dict(columns, Features({"id": Value("string"), "label": names, "x": Value("float64")}))


def channel_matrix(epsilon: float, k: int) -> np.ndarray:
    """T of randomised response from its definition."""
    total = math.exp(epsilon) + k - 1
    return np.array([[(math.exp(epsilon) if y == s else 1.0) / total for s in range(k)] for y in range(k)])


def prior_matrix(epsilon: float, prior: np.ndarray, m: int) -> np.ndarray:
    """P(output | y) when the `m` likeliest classes are kept, written out entry by entry."""
    k = len(prior)
    top = sorted(range(k), key=lambda i: (-prior[i], i))[:m]
    matrix = np.zeros((k, k))
    for y in range(k):
        for s in top:
            if y not in top:
                matrix[y, s] = 1 / m
            elif y == s:
                matrix[y, s] = math.exp(epsilon) / (math.exp(epsilon) + m - 1)
            else:
                matrix[y, s] = 1 / (math.exp(epsilon) + m - 1)
    return matrix


def chi_square_p(counts: np.ndarray, matrix: np.ndarray) -> float:
    """p-value of counts by true and emitted class against P(s | y), by scipy."""
    from scipy.stats import chisquare

    possible = matrix > 0
    assert not counts[~possible].any(), "a class came out that cannot"
    expected = (matrix * counts.sum(axis=1, keepdims=True))[possible]
    freedom_lost = int((counts.sum(axis=1) > 0).sum()) - 1
    if int(possible.sum()) - 1 - freedom_lost == 0:
        return 1.0  # one class can come out, and it is checked above that no other did
    return float(chisquare(counts[possible], expected, ddof=freedom_lost, sum_check=False).pvalue)
