"""KL from the original model to the new one, against scipy, closed forms and a model small enough to enumerate."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from hf_ext.losses.kl import exact_kl, kl_k1, kl_k3
from tests.losses.properties import EXAMPLES, central_difference, gradient_of, permutations, tensors

VOCAB = 5
logit_pairs = tensors((-30, 30), (-30, 30), dtype=np.float32, columns=VOCAB)
logp_pairs = tensors((-60, 0), (-60, 0), dtype=np.float32)
# Log-probabilities of both models, and a mask where positive.
sampled = tensors((-8, 0), (-8, 0), (-1, 1))
ESTIMATES = (kl_k1, kl_k3)


def softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@given(logit_pairs)
@EXAMPLES
def test_exact_kl_is_scipys_relative_entropy_never_negative_and_zero_at_equality(pair: tuple[Tensor, Tensor]) -> None:
    original, new = pair
    kl = exact_kl(original, new)
    assert kl.shape == original.shape[:-1]
    assert (kl >= 0).all()
    np.testing.assert_allclose(kl.numpy(), entropy(softmax(original), softmax(new), axis=-1), rtol=1e-4, atol=1e-5)
    assert not exact_kl(original, original).any()


@given(logit_pairs, st.floats(-50, 50), st.integers(0, 2), permutations())
@EXAMPLES
def test_exact_kl_does_not_see_a_common_shift_the_order_of_the_vocabulary_or_forbidden_tokens(
    pair: tuple[Tensor, Tensor], shift: float, forbidden: int, order: Any
) -> None:
    original, new = (logits.double() for logits in pair)
    padded = [
        torch.nn.functional.pad(logits[:, order(VOCAB)], (0, forbidden), value=-math.inf)
        for logits in (original + shift, new)
    ]
    torch.testing.assert_close(exact_kl(*padded), exact_kl(original, new), rtol=1e-8, atol=1e-11)


@given(tensors((-4, 4), (-4, 4), columns=3, max_rows=2))
@EXAMPLES
def test_the_gradient_of_exact_kl_is_that_of_finite_differences(pair: tuple[Tensor, Tensor]) -> None:
    original, new = pair
    # Gradients in the original's logits are for nobody: it is frozen.
    loss = lambda logits: exact_kl(original, logits).sum()  # noqa: E731
    torch.testing.assert_close(gradient_of(loss, new), central_difference(loss, new), rtol=1e-5, atol=1e-8)


def test_exact_kl_of_a_coin():
    p, q = 0.9, 0.25
    kl = exact_kl(torch.tensor([p, 1 - p]).log(), torch.tensor([q, 1 - q]).log())
    assert kl.item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-6)


@pytest.mark.parametrize("shift", [1e-2, 1e-3, 1e-4])
def test_exact_kl_keeps_its_digits_where_the_models_are_close_and_the_vocabulary_is_large(shift):
    # The textbook sum has terms of size `shift` and either sign, its value is of size shift**2: float32 loses it.
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(4, 50_000, generator=generator, dtype=torch.float64).float()
    new = original + shift * torch.randn(4, 50_000, generator=generator)
    oracle = entropy(softmax(original.numpy()), softmax(new.numpy()), axis=-1)
    np.testing.assert_allclose(exact_kl(original, new).numpy(), oracle, rtol=1e-2)


def test_exact_kl_takes_half_precision_logits_and_answers_in_float32():
    original, new = torch.randn(2, 7, dtype=torch.bfloat16), torch.randn(2, 7, dtype=torch.bfloat16)
    kl = exact_kl(original, new)
    assert kl.dtype == torch.float32
    oracle = entropy(softmax(original.float().numpy()), softmax(new.float().numpy()), axis=-1)
    np.testing.assert_allclose(kl.numpy(), oracle, rtol=1e-5)


def test_tokens_forbidden_by_either_model():
    inf = torch.inf
    original = torch.tensor([[0.0, 0.0, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]])
    new = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -inf], [0.0, 0.0, -inf]], requires_grad=True)
    kl = exact_kl(original, new)
    torch.testing.assert_close(kl.detach(), torch.tensor([math.log(1.5), 0.0, inf]))
    kl[:2].sum().backward()
    torch.testing.assert_close(new.grad[0], torch.tensor([1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3]))
    assert torch.isfinite(new.grad[1]).all()


def test_exact_gradient_is_q_minus_p_and_exactly_zero_at_the_original():
    generator = torch.Generator().manual_seed(1)
    original = 3 * torch.randn(20, 64, generator=generator)
    new = (3 * torch.randn(20, 64, generator=generator)).requires_grad_()
    exact_kl(original, new).sum().backward()
    expected = softmax(new.detach().numpy()) - softmax(original.numpy())
    np.testing.assert_allclose(new.grad.numpy(), expected, atol=2e-6)
    same = original.clone().requires_grad_()
    kl = exact_kl(original, same)
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(20))
    assert torch.equal(same.grad, torch.zeros(20, 64))


@given(logp_pairs)
@EXAMPLES
def test_k3_is_never_negative_and_both_are_zero_at_equality(pair: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = pair
    everywhere = torch.ones_like(log_p, dtype=torch.bool)
    assert kl_k3(log_p, log_q, everywhere) >= 0
    assert kl_k3(log_p, log_p, everywhere) == 0
    assert kl_k1(log_p, log_p, everywhere) == 0
    assert kl_k1(log_p, log_q, everywhere).item() == pytest.approx(-kl_k1(log_q, log_p, everywhere).item())


@given(sampled)
@EXAMPLES
def test_k1_and_k3_are_means_of_a_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    log_p, log_q, marks = batch
    rows = zip(*(t.flatten().tolist() for t in batch), strict=True)
    ratios = [math.exp(q - p) for p, q, mark in rows if mark > 0]
    k1 = math.fsum(-math.log(r) for r in ratios) / max(len(ratios), 1)
    k3 = math.fsum(r - 1 - math.log(r) for r in ratios) / max(len(ratios), 1)
    assert kl_k1(log_p, log_q, marks > 0).item() == pytest.approx(k1, rel=1e-9, abs=1e-9)
    assert kl_k3(log_p, log_q, marks > 0).item() == pytest.approx(k3, rel=1e-9, abs=1e-9)


@given(sampled, st.integers(0, 3), st.integers(0, 2), permutations())
@EXAMPLES
def test_neither_padding_nor_order_changes_k1_and_k3(
    batch: tuple[Tensor, Tensor, Tensor], columns: int, rows: int, order: Any
) -> None:
    log_p, log_q, marks = batch
    filling = (math.nan, -math.inf, -1.0)  # the last is not marked
    moved = [
        torch.nn.functional.pad(t.flatten()[order(t.numel())].view(t.shape), (0, columns, 0, rows), value=value)
        for t, value in zip(batch, filling, strict=True)
    ]
    for estimate in ESTIMATES:
        expected = estimate(log_p, log_q, marks > 0)
        torch.testing.assert_close(estimate(*moved[:2], moved[2] > 0), expected, rtol=1e-9, atol=1e-12)


@given(tensors((-8, 0), (-8, 0), (-1, 1), max_rows=2, max_columns=2))
@EXAMPLES
def test_gradients_of_k1_and_k3_are_those_of_finite_differences(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    log_p, log_q, marks = batch
    for estimate in ESTIMATES:
        for loss, at in (
            (lambda values: estimate(log_p, values, marks > 0), log_q),  # noqa: B023 - called at once
            (lambda values: estimate(values, log_q, marks > 0), log_p),  # noqa: B023
        ):
            torch.testing.assert_close(gradient_of(loss, at), central_difference(loss, at), rtol=1e-5, atol=1e-6)


def test_k1_and_k3_of_known_ratios():
    log_p = torch.tensor([[0.5, 0.5, 0.5]]).log()
    log_q = torch.tensor([[0.25, 0.5, 1.0]]).log()  # ratios 1/2, 1 and 2
    mask = torch.ones(1, 3)
    assert kl_k1(log_p, log_q, mask).item() == pytest.approx(0, abs=1e-7)
    assert kl_k3(log_p, log_q, mask).item() == pytest.approx((0.5 - 1 + 0 + 2 - 1) / 3, rel=1e-6)
    first = torch.tensor([[1, 0, 0]])
    assert kl_k1(log_p, log_q, first).item() == pytest.approx(math.log(2), rel=1e-6)
    assert kl_k3(log_p, log_q, first).item() == pytest.approx(math.log(2) - 0.5, rel=1e-6)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_positions_may_hold_anything_and_an_empty_mask_gives_zero(estimate, rubbish):
    log_p, log_q = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -1.0, -2.0]])
    mask = torch.tensor([[True, True, False]])
    clean = estimate(log_p[:, :2], log_q[:, :2], mask[:, :2])
    log_p[0, 2], log_q[0, 2] = rubbish, -3.0
    assert estimate(log_p, log_q, mask) == clean
    assert estimate(log_p, log_q, torch.zeros(1, 3)) == 0


def two_token_models():
    """Original and new model over 5 symbols: logits of the first token, and of the second given the first."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: 1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return (draw(VOCAB), draw(VOCAB, VOCAB)), (draw(VOCAB), draw(VOCAB, VOCAB))


def log_probability(model, first, second):
    return torch.log_softmax(model[0], -1)[first], torch.log_softmax(model[1], -1)[first, second]


def sequence_kl(original, new):
    """Chain rule: KL of the first token plus the expected KL of the second."""
    return exact_kl(original[0], new[0]) + torch.softmax(original[0], -1) @ exact_kl(original[1], new[1])


def test_mean_nll_minus_entropy_over_all_sequences_is_the_exact_kl():
    original, new = two_token_models()
    nll = entropy_ = k1 = k3 = mass = 0.0
    for first, second in itertools.product(range(VOCAB), repeat=2):
        log_p = torch.stack(log_probability(original, first, second))[None]
        log_q = torch.stack(log_probability(new, first, second))[None]
        p = log_p.sum().exp()
        mass += p
        nll -= p * log_q.sum()
        entropy_ -= p * log_p.sum()
        k1 += p * 2 * kl_k1(log_p, log_q, torch.ones(1, 2))
        k3 += p * 2 * kl_k3(log_p, log_q, torch.ones(1, 2))
    expected = sequence_kl(original, new).item()
    assert mass.item() == pytest.approx(1)
    assert (nll - entropy_).item() == pytest.approx(expected)
    assert k1.item() == pytest.approx(expected)
    assert k3.item() == pytest.approx(expected)
    assert expected > 0.5


def sampled_nll_gradient(original, new, draws):
    generator = torch.Generator().manual_seed(3)
    first = torch.multinomial(torch.softmax(original[0], -1), draws, True, generator=generator)
    second = torch.multinomial(torch.softmax(original[1], -1)[first], 1, generator=generator)[:, 0]
    parameters = [part.clone().requires_grad_() for part in new]
    log_first, log_second = log_probability(parameters, first, second)
    (-(log_first + log_second).mean()).backward()
    return torch.cat([part.grad.flatten() for part in parameters])


def test_sampled_nll_gradient_is_the_kl_gradient_in_mean_and_noise_at_the_original():
    original, new = two_token_models()
    parameters = [part.clone().requires_grad_() for part in new]
    sequence_kl(original, parameters).backward()
    exact = torch.cat([part.grad.flatten() for part in parameters])
    draws = 10_000
    torch.testing.assert_close(sampled_nll_gradient(original, new, draws), exact, atol=4 / math.sqrt(draws), rtol=0)
    assert exact.abs().max() > 10 / math.sqrt(draws)

    parameters = [part.clone().requires_grad_() for part in original]
    sequence_kl(original, parameters).backward()
    assert all(torch.equal(part.grad, torch.zeros_like(part)) for part in parameters)
    assert sampled_nll_gradient(original, original, 16).abs().max() > 0.01


def test_the_gradient_of_exact_kl_stays_finite_where_one_model_all_but_forbids_what_the_other_says() -> None:
    original = torch.tensor([[0.0, -100.0], [0.0, -100.0], [0.0, -95.0]])
    new = torch.tensor([[-100.0, 0.0], [0.0, 100.0], [0.0, 0.0]], requires_grad=True)
    kl = exact_kl(original, new)
    kl.sum().backward()
    torch.testing.assert_close(kl.detach(), torch.tensor([100.0, 100.0, math.log(2)]))
    torch.testing.assert_close(new.grad, torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [-0.5, 0.5]]))


def test_an_expm1_that_rounds_down_gives_no_negative_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with an error of one unit in the last place may return less than their argument; the CPU's does not."""
    expm1 = torch.expm1
    monkeypatch.setattr(torch, "expm1", lambda x: torch.nextafter(expm1(x), torch.full_like(x, -torch.inf)))
    log_p = torch.full((1, 1), -1.0)
    original = torch.tensor([0.3, -0.2, 0.1])
    for shift in (0.0, 1e-7, -1e-7, 1e-6, -1e-6, 1e-5):
        assert kl_k3(log_p, log_p + shift, torch.ones(1, 1)) >= 0
        assert exact_kl(original, original + torch.tensor([shift, 0.0, 0.0])) >= 0
