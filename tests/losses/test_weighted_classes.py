"""The weighted cross-entropy against a loop in float64, and against torch's own where every weight is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_ext.losses.weighted_classes import weighted_class_nll


def drawn(rows: int = 37, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return logits, labels, 4 * torch.rand(rows, generator=generator)


def by_hand(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, denominator: float) -> float:
    total = 0.0
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        if label != -100:
            total += weight * (math.log(sum(map(math.exp, row))) - row[label])
    return total / denominator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_weighted_mean_of_the_rows_losses(dtype):
    logits, labels, weights = drawn()
    labels[3] = labels[11] = -100
    for denominator in (37.0, float(weights.sum())):
        loss = weighted_class_nll(logits.to(dtype), labels, weights, denominator)
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(by_hand(logits, labels, weights, denominator), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_weights_of_one_are_torch_s_cross_entropy_bit_for_bit(rows):
    logits, labels, _ = drawn(rows)
    losses = []
    gradients = []
    for loss_of in (
        lambda values: F.cross_entropy(values, labels),
        lambda values: weighted_class_nll(values, labels, torch.ones(rows), torch.tensor(rows)),
    ):
        leaf = logits.clone().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_the_gradient_of_a_row_is_its_weight_times_softmax_minus_one_hot():
    logits, labels, weights = drawn()
    leaf = logits.double().requires_grad_()
    weighted_class_nll(leaf, labels, weights, 10.0).backward()
    expected = F.softmax(logits.double(), dim=-1) - F.one_hot(labels, 5)
    np.testing.assert_allclose(leaf.grad, weights.double()[:, None] * expected / 10.0, atol=1e-12)


def test_half_precision_is_summed_in_float32():
    logits, labels, weights = drawn()
    half = logits.bfloat16()
    loss = weighted_class_nll(half, labels, weights, 37.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(half.float(), labels, weights, 37.0), rel=1e-6)


def test_no_weight_is_no_loss():
    logits, labels, weights = drawn()
    assert weighted_class_nll(logits, labels, 0 * weights, 0.0).item() == 0.0
