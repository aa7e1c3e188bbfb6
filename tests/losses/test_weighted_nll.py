"""The weighted loss: the stock trainer's own code, a loop, its invariances, and its gradient by finite differences."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trl import SFTTrainer

from hf_ext.losses.weighted_nll import at_least_float32, divided, weighted_nll
from tests.losses.properties import EXAMPLES, central_difference, gradient_of, permutations, tensors

batches = tensors((-20, 0), (0, 8))  # log-probabilities and weights, float64


def stock_loss(log_probs: Tensor, supervised: Tensor, num_items: Tensor | int | None) -> Tensor:
    """`SFTTrainer.compute_loss` itself, with a model that returns given log-probabilities."""
    outputs = SimpleNamespace(
        log_probs=log_probs, label_mask=supervised, entropy=torch.zeros_like(log_probs), is_top1=supervised
    )
    host = SimpleNamespace(
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda value: value, num_processes=1),
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(log_probs.shape), "labels": supervised}
    return SFTTrainer.compute_loss(host, lambda **_: outputs, inputs, num_items_in_batch=num_items)


@given(tensors((-60, 0), (0, 1), dtype=np.float32), st.integers(0, 10_000), st.booleans())
@EXAMPLES
def test_weights_of_one_give_the_stock_trainers_loss_and_gradient_bit_for_bit(
    batch: tuple[Tensor, Tensor], items: int, as_tensor: bool
) -> None:
    supervised = batch[1] > 0.5
    log_probs = torch.where(supervised, batch[0], 0.0)  # as the host's fused head returns them
    num_items = torch.tensor(items) if as_tensor else items
    found = []
    for loss_of in (
        lambda values: stock_loss(values, supervised, num_items),
        lambda values: weighted_nll(values, torch.ones_like(values), num_items),
    ):
        leaf = log_probs.clone().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][0].dtype == found[1][0].dtype == torch.float32


@given(batches, st.floats(0.1, 100))
@EXAMPLES
def test_equals_a_loop(batch: tuple[Tensor, Tensor], denominator: float) -> None:
    log_probs, weights = batch
    total = 0.0
    for row, row_weights in zip(log_probs.tolist(), weights.tolist(), strict=True):
        for log_prob, weight in zip(row, row_weights, strict=True):
            total -= weight * log_prob
    assert float(weighted_nll(log_probs, weights, denominator)) == pytest.approx(total / denominator, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_is_divided_down_to_the_least_normal_number_and_no_further(dtype: type) -> None:
    tiny = np.finfo(dtype).tiny
    total = torch.tensor(3 * tiny)
    assert divided(total, float(tiny)).numpy() == 3
    for smaller in (tiny / 2, dtype(0)):
        assert divided(total, float(smaller)).numpy() == 3 * tiny


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_halves_become_float32_and_wider_numbers_stay(dtype: torch.dtype, wide: torch.dtype) -> None:
    values = torch.tensor([0.1, -3.0, 1e-4], dtype=dtype)
    widened = at_least_float32(values)
    assert widened.dtype == wide
    assert widened.tolist() == values.tolist()


@given(batches, st.floats(0.01, 100))
@EXAMPLES
def test_scaling_the_weights_changes_nothing_over_their_sum_and_scales_over_a_count(
    batch: tuple[Tensor, Tensor], factor: float
) -> None:
    log_probs, weights = batch
    over_sum = [weighted_nll(log_probs, w, w.sum()) for w in (weights, factor * weights)]
    torch.testing.assert_close(over_sum[0], over_sum[1], rtol=1e-9, atol=1e-12)
    over_count = [weighted_nll(log_probs, w, weights.numel()) for w in (weights, factor * weights)]
    torch.testing.assert_close(factor * over_count[0], over_count[1], rtol=1e-9, atol=1e-12)


@given(batches, permutations())
@EXAMPLES
def test_the_order_of_rows_and_tokens_does_not_matter(batch: tuple[Tensor, Tensor], order: Any) -> None:
    log_probs, weights = batch
    shuffled = [t.flatten()[order(t.numel())].view(t.shape) for t in batch]
    torch.testing.assert_close(
        weighted_nll(log_probs, weights, 3.0), weighted_nll(*shuffled, 3.0), rtol=1e-9, atol=1e-12
    )


@given(batches, st.integers(0, 5), st.integers(0, 3), st.floats(0, 1e6))
@EXAMPLES
def test_padding_changes_nothing_whatever_its_weight(
    batch: tuple[Tensor, Tensor], columns: int, rows: int, weight: float
) -> None:
    log_probs, weights = batch
    padded = torch.nn.functional.pad(log_probs, (0, columns, 0, rows))
    heavy = torch.nn.functional.pad(weights, (0, columns, 0, rows), value=weight)
    torch.testing.assert_close(weighted_nll(*batch, 3.0), weighted_nll(padded, heavy, 3.0), rtol=1e-12, atol=1e-12)


@given(batches, st.integers(0, 3))
@EXAMPLES
def test_micro_batches_over_the_common_denominator_add_up(batch: tuple[Tensor, Tensor], cut: int) -> None:
    log_probs, weights = batch
    cut = min(cut, len(log_probs))
    denominator = float(weights.sum()) + 1.0
    parts = sum(
        float(weighted_nll(log_probs[part], weights[part], denominator)) for part in (slice(cut), slice(cut, None))
    )
    assert parts == pytest.approx(float(weighted_nll(log_probs, weights, denominator)), abs=1e-9)


@given(tensors((-20, 0), (0, 8), max_rows=2, max_columns=3), st.floats(0.1, 10))
@EXAMPLES
def test_gradients_are_those_of_finite_differences(batch: tuple[Tensor, Tensor], denominator: float) -> None:
    log_probs, weights = batch
    for loss, at in (
        (lambda values: weighted_nll(values, weights, denominator), log_probs),
        (lambda values: weighted_nll(log_probs, values, denominator), weights),
    ):
        # Linear in each: the difference is exact but for its rounding, up to (6 * 8 * 20 / 0.1) * 2**-52 / 1e-5.
        torch.testing.assert_close(gradient_of(loss, at), central_difference(loss, at), rtol=1e-6, atol=1e-6)


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


def test_a_denominator_below_one_divides_as_any_other() -> None:
    """FLOW's weights may add up to far less than 1; the stock trainer, which counts, would divide by 1."""
    log_probs, weights = torch.full((1, 2), -1.5), torch.full((1, 2), 1e-3)
    assert float(weighted_nll(log_probs, weights, weights.sum())) == pytest.approx(1.5)
