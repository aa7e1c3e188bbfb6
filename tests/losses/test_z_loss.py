"""The pretraining loss: stock cross-entropy, a softmax written out, and the gradient by its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hf_ext.losses.z_loss import next_token_nll, z_loss
from tests.losses.properties import EXAMPLES


def batch_of(seed: int, rows: int = 2, length: int = 3, vocab: int = 5, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, length, vocab, generator=generator, dtype=torch.float64)
    return logits, torch.randint(vocab, (rows, length), generator=generator)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 7))
@EXAMPLES
def test_the_likelihood_is_the_stock_cross_entropy_and_the_normaliser_a_sum_of_exponentials(seed, rows, length, vocab):
    logits, targets = batch_of(seed, rows, length, vocab)
    nll, log_normalizers = next_token_nll(logits, targets)
    assert nll.shape == log_normalizers.shape == targets.shape
    torch.testing.assert_close(nll.mean(), cross_entropy(logits.flatten(0, 1), targets.flatten()))
    squares = [math.log(sum(math.exp(z) for z in row)) ** 2 for row in logits.flatten(0, 1).tolist()]
    assert float(z_loss(log_normalizers, targets.numel())) == pytest.approx(np.mean(squares), rel=1e-9, abs=1e-12)


@given(st.integers(0, 10**6), st.floats(-50, 50))
@EXAMPLES
def test_a_number_added_to_all_logits_moves_the_z_loss_alone(seed, shift):
    logits, targets = batch_of(seed)
    nll, log_normalizers = next_token_nll(logits, targets)
    moved_nll, moved = next_token_nll(logits + shift, targets)
    torch.testing.assert_close(moved_nll, nll, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved, log_normalizers + shift, rtol=0, atol=1e-12)


def test_the_gradient_is_the_formula_of_the_docstring():
    logits, targets = batch_of(7)
    leaf = logits.clone().requires_grad_()
    _, log_normalizers = next_token_nll(leaf, targets)
    z_loss(log_normalizers, 10.0).backward()
    expected = 2 * logits.softmax(-1) * logits.logsumexp(-1, keepdim=True) / 10
    torch.testing.assert_close(leaf.grad, expected)


def test_half_precision_is_summed_in_float32_and_an_empty_batch_is_zero():
    logits, targets = batch_of(3, vocab=4000, scale=1.0)
    nll, log_normalizers = next_token_nll(logits.bfloat16(), targets)
    assert nll.dtype == torch.float32
    exact, _ = next_token_nll(logits.bfloat16().double(), targets)
    torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-5)
    assert float(z_loss(log_normalizers[:0], 0.0)) == 0
