"""The KL over a few tokens and one lump of the others, against scipy and the whole vocabulary's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from hf_ext.losses.top_k_kl import top_k_kl
from tests.losses.properties import EXAMPLES, central_difference, gradient_of, permutations, tensors

VOCAB = 6
logit_pairs = tensors((-12, 12), (-12, 12), columns=VOCAB)
sizes = st.integers(1, VOCAB)


def log_probs_of(logits: Tensor, k: int) -> Tensor:
    return torch.log_softmax(logits, dim=-1)[..., :k]


def lumped(logits: Tensor, k: int) -> np.ndarray:
    """Probabilities of the first `k` tokens and of all others together, in float64."""
    exponentials = np.exp(logits.double().numpy() - logits.double().numpy().max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    return np.concatenate([probabilities[..., :k], probabilities[..., k:].sum(-1, keepdims=True)], axis=-1)


@given(logit_pairs, sizes)
@EXAMPLES
def test_it_is_scipys_relative_entropy_of_the_lumped_distributions(pair: tuple[Tensor, Tensor], k: int) -> None:
    original, new = pair
    kl = top_k_kl(log_probs_of(original, k), log_probs_of(new, k))
    assert kl.shape == original.shape[:-1]
    assert (kl >= 0).all()
    p, q = (np.maximum(lumped(logits, k), 1e-300) for logits in pair)
    q[..., -1] = np.maximum(q[..., -1], 1e-7)  # less of a rest is noise in float32
    expected = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(kl.numpy(), expected, rtol=1e-5, atol=5e-6)


@given(logit_pairs, sizes)
@EXAMPLES
def test_it_is_never_above_the_whole_kl_and_is_it_where_every_token_is_told_apart(
    pair: tuple[Tensor, Tensor], k: int
) -> None:
    original, new = pair
    whole = entropy(lumped(original, VOCAB), lumped(new, VOCAB) + 1e-300, axis=-1)
    kl = top_k_kl(log_probs_of(original, k), log_probs_of(new, k)).numpy()
    assert (kl <= whole + 5e-6 + 1e-6 * whole).all()
    every = top_k_kl(log_probs_of(original, VOCAB), log_probs_of(new, VOCAB)).numpy()
    np.testing.assert_allclose(every, whole, rtol=1e-5, atol=5e-6)


@given(logit_pairs, sizes, permutations())
@EXAMPLES
def test_the_order_of_the_tokens_does_not_matter(pair: tuple[Tensor, Tensor], k: int, order: Any) -> None:
    original, new = (log_probs_of(logits, k) for logits in pair)
    moved = top_k_kl(original[:, order(k)], new[:, order(k)])
    torch.testing.assert_close(moved, top_k_kl(original, new), rtol=1e-8, atol=1e-11)


@given(tensors((-3, 3), (-3, 3), columns=4, max_rows=2), st.integers(1, 3))
@EXAMPLES
def test_its_gradient_is_that_of_finite_differences(pair: tuple[Tensor, Tensor], k: int) -> None:
    original, new = pair
    loss = lambda logits: top_k_kl(log_probs_of(original, k), log_probs_of(logits, k)).sum()  # noqa: E731
    torch.testing.assert_close(gradient_of(loss, new), central_difference(loss, new), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_at_the_original_value_and_gradient_are_exactly_zero(k: int) -> None:
    logits = 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    new = logits.clone().requires_grad_()
    kl = top_k_kl(log_probs_of(logits, k), log_probs_of(new, k))
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(20))
    assert torch.equal(new.grad, torch.zeros(20, 50))


def test_one_token_and_the_rest_are_a_coin() -> None:
    p, q = 0.9, 0.25
    kl = top_k_kl(torch.tensor([math.log(p)]), torch.tensor([math.log(q)]))
    assert kl.item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-6)


def test_a_model_that_is_sure_of_its_tokens_leaves_a_rest_of_a_ten_millionth() -> None:
    """The other one gives half to the rest: a KL without bound in the other direction, and a finite one here."""
    sure, unsure = torch.tensor([0.0]), torch.tensor([math.log(0.5)])
    assert top_k_kl(sure, unsure).item() == pytest.approx(math.log(2), abs=2e-6)
    kl = top_k_kl(unsure, sure).item()
    assert kl == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-7), rel=1e-4)


def test_half_precision_is_taken_and_the_answer_is_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    original, new = (log_probs_of(torch.randn(3, VOCAB, generator=generator), 3).bfloat16() for _ in range(2))
    kl = top_k_kl(original, new)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, top_k_kl(original.float(), new.float()))
