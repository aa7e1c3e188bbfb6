"""Beside noisy labels, what goes with them as the true label does is told from features, predictions and copies."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest

from hf_ext.data.relabeling.clean_columns import NoisyLabels, find_clean_columns
from tests.data.relabeling.oracle import channel_matrix

N, K = 1500, 4
NAMES = ["apple", "berry", "cherry", "date"]


def drawn(n: int, k: int, epsilon: float, seed: int, names: list[str] | None = None) -> tuple[np.ndarray, NoisyLabels]:
    """True labels, and noisy ones drawn row by row from the matrix of the channel."""
    rng = np.random.default_rng(seed)
    matrix = channel_matrix(epsilon, k)
    truth = rng.integers(0, k, n)
    noisy = np.array([rng.choice(k, p=matrix[y]) for y in truth])
    return truth, NoisyLabels(noisy, np.full(n, matrix[0, 0] - matrix[0, 1]), k, names)


TRUE, NOISY = drawn(N, K, 1.0, 3, NAMES)
rng = np.random.default_rng(2)
FLIPPED = np.array([2, 0, 3, 1])


def guesses(accuracy: float) -> np.ndarray:
    return np.where(rng.random(N) < accuracy, TRUE, rng.integers(0, K, N))


def packed(y: int, i: int) -> str:
    return base64.b64encode(json.dumps({"i": i, "kind": y}).encode()).decode()


HALF = rng.integers(0, K, N)
SPELLS_THE_TRUTH: dict[str, list[Any]] = {
    "pred": TRUE.tolist(),
    "weight": TRUE.astype(float).tolist(),
    "jitter": (TRUE + rng.normal(0, 0.04, N)).tolist(),
    "permuted": FLIPPED[TRUE].tolist(),
    "hundreds": (FLIPPED[TRUE] * 100 + rng.random(N) * 60).tolist(),
    "text": [str(y) for y in TRUE],
    "names": [NAMES[y].upper() for y in TRUE],
    "words": [("w", "q", "m", "z")[y] for y in TRUE],
    "sentence": [f"number {i} is a {NAMES[y]}, we think" for i, y in enumerate(TRUE)],
    "probs": [[0.91 if j == y else 0.03 for j in range(K)] for y in TRUE],
    "soft": (np.eye(K)[TRUE] * 0.6 + rng.random((N, K)) * 0.3).tolist(),
    "named_probs": [{name: 0.7 if NAMES[y] == name else 0.1 for name in NAMES} for y in TRUE],
    "json": [json.dumps({"uid": i, "a": {"intent": int(y)}}) for i, y in enumerate(TRUE)],
    "json_list": [json.dumps([i, {"t": [int(y)]}]) for i, y in enumerate(TRUE)],
    "python": [str({"uid": i, "topic": int(y)}) for i, y in enumerate(TRUE)],
    "query": [f"u={i}&k={y}" for i, y in enumerate(TRUE)],
    "base64": [packed(int(y), i) for i, y in enumerate(TRUE)],
    "bytes": [bytes([65 + y]) for y in TRUE],
    "struct": [{"a": [{"b": int(y), "c": i}]} for i, y in enumerate(TRUE)],
    "beside_the_noisy": [[int(s), int(y)] for s, y in zip(NOISY.classes, TRUE, strict=True)],
    "finer": (TRUE * 1000 + rng.integers(0, 5, N)).tolist(),
    "id": [f"{i}-{'abcd'[y]}" for i, y in enumerate(TRUE)],
    "glued": [f"k{y}n{i}" for i, y in enumerate(TRUE)],
    "sorted_number": np.argsort(np.argsort(TRUE, kind="stable")).tolist(),
    "half_of_them": [int(y) if i % 2 else None for i, y in enumerate(TRUE)],
    "first_missing": [None, *TRUE[1:].tolist()],
    "is_noisy": (NOISY.classes != TRUE).tolist(),
    "label_kept": (NOISY.classes == TRUE).astype(int).tolist(),
}
SAYS_LESS: dict[str, list[Any]] = {
    "pred": guesses(0.6).tolist(),
    "pred_in_sample": np.where(rng.random(N) < 0.9, NOISY.classes, guesses(0.7)).tolist(),
    "label_copy": NOISY.classes.tolist(),
    "label_name": [NAMES[s] for s in NOISY.classes],
    "renamed": [("w", "q", "m", "z")[s] for s in NOISY.classes],
    "in_sample_name": [NAMES[s] if i % 9 else NAMES[0] for i, s in enumerate(NOISY.classes)],
    "fold": rng.integers(0, 5, N).tolist(),
    "flag": rng.integers(0, 2, N).tolist(),
    "half": (TRUE > 1).tolist(),
    "is_random": (rng.random(N) < 0.05).tolist(),
    "length": rng.integers(5, 90, N).tolist(),
    "number": rng.normal(size=N).tolist(),
    "vector": rng.normal(size=(N, 8)).tolist(),
    "row_index": list(range(N)),
    "id": [f"r-{i:05d}" for i in range(N)],
    "text_of_it": [f"words {i * 7919 % 1000} and number {i}" for i in range(N)],
    "all_names": ["an apple, a berry, a cherry or a date?"] * N,
    "nothing": [None] * N,
    "meta": [json.dumps({"n": i, "s": int(s)}) for i, s in enumerate(NOISY.classes)],
}


@pytest.mark.parametrize("name", SPELLS_THE_TRUTH)
def test_a_column_that_determines_the_true_label_is_found_though_nobody_knows_it(name: str) -> None:
    leaks = find_clean_columns({"number": list(range(N)), name: SPELLS_THE_TRUTH[name]}, NOISY, label="label")
    assert [leak.column for leak in leaks] == [name]
    assert find_clean_columns({name: SPELLS_THE_TRUTH[name]}, NOISY, label="label", public=[name]) == []


def test_what_says_less_and_what_was_made_from_the_noisy_label_is_let_through() -> None:
    assert find_clean_columns(SAYS_LESS, NOISY, label="label") == []


def test_two_columns_that_determine_the_label_together_are_found() -> None:
    truth, noisy = drawn(N, K, 2.0, 6)
    halves = {"one": HALF.tolist(), "other": ((truth - HALF) % K).tolist()}
    (leak,) = find_clean_columns(halves, noisy)
    assert "together with 'other'" in leak.how
    assert find_clean_columns({"one": halves["one"], "fold": SAYS_LESS["fold"]}, noisy) == []


@pytest.mark.parametrize(("n", "k", "epsilon"), [(400, 2, 1.0), (1000, 77, 2.0), (3000, 77, 1.0), (1000, 10, 0.7)])
def test_few_rows_are_enough_for_a_column_that_spells_the_class(n: int, k: int, epsilon: float) -> None:
    p = channel_matrix(epsilon, k)[0, 0]
    assert (p - 1 / k) / math.sqrt(p * (1 - p) / n) > 5  # standard errors above chance
    missed = 0
    for seed in range(8):
        truth, noisy = drawn(n, k, epsilon, seed)
        columns = {"a": truth.tolist(), "b": np.random.default_rng(seed).permutation(truth).tolist()}
        leaks = [leak.column for leak in find_clean_columns(columns, noisy)]
        assert leaks in ([], ["a"])
        missed += not leaks
    assert missed <= 1


def test_many_values_as_there_are_classes_need_evidence_to_be_let_through() -> None:
    """At 77 classes and epsilon 1, 2,000 rows cannot tell a permuted true label from nothing: it stays here."""
    truth, noisy = drawn(2000, 77, 1.0, 5)
    permuted = [f"w{(y * 5 + 3) % 77}" for y in truth]
    others = [f"w{y}" for y in np.random.default_rng(1).integers(0, 60, 2000)]
    assert [leak.column for leak in find_clean_columns({"c": permuted, "d": others}, noisy)] == ["c"]


def test_elsewhere_a_column_called_as_the_label_needs_to_be_a_copy_of_it() -> None:
    few = np.arange(8)
    columns = {
        "label": TRUE[few].tolist(),
        "other": [NAMES[y] for y in TRUE[few]],
        "length": [9, 31, 8, 44, 5, 6, 7, 80],
    }
    leaks = find_clean_columns(columns, NOISY.of(few), label="label", position="elsewhere")
    assert [leak.column for leak in leaks] == ["label", "other"]
    copy = {"label": NOISY.classes.tolist()}
    assert find_clean_columns(copy, NOISY, label="label", position="elsewhere") == []
