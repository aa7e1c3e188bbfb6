"""The weighted loss: a loop, its invariances, and its gradient by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.losses.weighted_nll import weighted_nll

EXAMPLES = settings(max_examples=500, deadline=None)


@st.composite
def batches(draw: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities and weights `(rows, tokens)` in float64."""
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    size = rows * tokens
    log_probs = draw(st.lists(st.floats(-20, 0), min_size=size, max_size=size))
    weights = draw(st.lists(st.floats(0, 8), min_size=size, max_size=size))
    shape = (rows, tokens)
    return torch.tensor(log_probs, dtype=torch.float64).view(shape), torch.tensor(weights, dtype=torch.float64).view(
        shape
    )


@given(batches(), st.floats(0.1, 100))
@EXAMPLES
def test_equals_a_loop(batch: tuple[Tensor, Tensor], denominator: float) -> None:
    log_probs, weights = batch
    total = 0.0
    for row, row_weights in zip(log_probs.tolist(), weights.tolist(), strict=True):
        for log_prob, weight in zip(row, row_weights, strict=True):
            total -= weight * log_prob
    assert float(weighted_nll(log_probs, weights, denominator)) == pytest.approx(total / denominator, abs=1e-9)


@given(batches(), st.floats(0.01, 100))
@EXAMPLES
def test_scaling_the_weights_changes_nothing_over_their_sum_and_scales_over_a_count(
    batch: tuple[Tensor, Tensor], factor: float
) -> None:
    log_probs, weights = batch
    over_sum = [weighted_nll(log_probs, w, w.sum()) for w in (weights, factor * weights)]
    torch.testing.assert_close(over_sum[0], over_sum[1], rtol=1e-9, atol=1e-12)
    over_count = [weighted_nll(log_probs, w, weights.numel()) for w in (weights, factor * weights)]
    torch.testing.assert_close(factor * over_count[0], over_count[1], rtol=1e-9, atol=1e-12)


@given(batches(), st.randoms(use_true_random=False))
@EXAMPLES
def test_the_order_of_rows_and_tokens_does_not_matter(batch: tuple[Tensor, Tensor], rng: Any) -> None:
    log_probs, weights = batch
    order = list(range(log_probs.numel()))
    rng.shuffle(order)
    shuffled = [t.flatten()[order].view(t.shape) for t in batch]
    torch.testing.assert_close(
        weighted_nll(log_probs, weights, 3.0), weighted_nll(*shuffled, 3.0), rtol=1e-9, atol=1e-12
    )


@given(batches(), st.integers(0, 5), st.integers(0, 3))
@EXAMPLES
def test_padding_changes_nothing(batch: tuple[Tensor, Tensor], columns: int, rows: int) -> None:
    padded = [torch.nn.functional.pad(t, (0, columns, 0, rows)) for t in batch]
    torch.testing.assert_close(weighted_nll(*batch, 3.0), weighted_nll(*padded, 3.0), rtol=1e-12, atol=1e-12)


@given(batches(), st.integers(0, 4))
@EXAMPLES
def test_micro_batches_over_the_common_denominator_add_up(batch: tuple[Tensor, Tensor], cut: int) -> None:
    log_probs, weights = batch
    cut = min(cut, len(log_probs))
    denominator = float(weights.sum()) + 1.0
    parts = sum(
        float(weighted_nll(log_probs[part], weights[part], denominator)) for part in (slice(cut), slice(cut, None))
    )
    assert parts == pytest.approx(float(weighted_nll(log_probs, weights, denominator)), abs=1e-9)


@given(batches(), st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_gradient_is_that_of_finite_differences(batch: tuple[Tensor, Tensor], denominator: float) -> None:
    log_probs = batch[0].clone().requires_grad_()
    weights = batch[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda lp, w: weighted_nll(lp, w, denominator), (log_probs, weights), eps=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("denominator", [0, 0.0, torch.tensor(0.0)])
def test_a_batch_whose_weights_are_all_zero_has_loss_zero_and_gradient_zero(denominator: Any) -> None:
    log_probs = torch.full((2, 3), -1.5, requires_grad=True)
    loss = weighted_nll(log_probs, torch.zeros(2, 3), denominator)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not log_probs.grad.any()


@pytest.mark.parametrize("denominator", [7, 7.0, torch.tensor(7), torch.tensor(7.0)])
def test_the_denominator_may_be_a_number_or_a_tensor(denominator: Any) -> None:
    log_probs, weights = torch.full((2, 2), -1.75), torch.ones(2, 2)
    assert float(weighted_nll(log_probs, weights, denominator)) == 1.0
