"""Losses under a known label channel: against enumeration, autograd's check, the stock trainer, and over all noise."""

from __future__ import annotations

import itertools
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hf_ext.losses.label_noise import backward_corrected_nll, forward_corrected_nll, forward_loss_func, soft_nll

EPSILONS = (0.1, 1.0, 3.0, 8.0)
CLASSES = (2, 5, 77)


def response(epsilon: float, k: int) -> tuple[float, float]:
    """p and q of randomised response, from its definition."""
    total = math.exp(epsilon) + k - 1
    return math.exp(epsilon) / total, 1 / total


def matrix(epsilon: float, k: int) -> Tensor:
    p, q = response(epsilon, k)
    return torch.tensor([[p if y == s else q for s in range(k)] for y in range(k)], dtype=torch.float64)


def random_channel(k: int, seed: int) -> Tensor:
    """Any invertible channel: rows sum to one, mass on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(k, k, generator=generator, dtype=torch.float64) + 3 * torch.eye(k, dtype=torch.float64)
    return rows / rows.sum(dim=1, keepdim=True)


def batch(k: int, rows: int = 7, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (rows,), generator=generator)


def mixture(logits: Tensor, label: int, channel: Tensor) -> float:
    """-log P(label), adding up every true class with Python's own arithmetic."""
    values = logits.tolist()
    total = math.fsum(math.exp(v - max(values)) for v in values)
    probs = [math.exp(v - max(values)) / total for v in values]
    return -math.log(math.fsum(f * float(channel[y, label]) for y, f in enumerate(probs)))


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_forward_equals_the_enumerated_mixture(epsilon: float, k: int) -> None:
    logits, labels = batch(k)
    expected = sum(mixture(row, int(s), matrix(epsilon, k)) for row, s in zip(logits, labels, strict=True)) / len(
        labels
    )
    assert abs(float(forward_corrected_nll(logits, labels, response(epsilon, k))) - expected) < 1e-12
    assert abs(float(forward_corrected_nll(logits, labels, matrix(epsilon, k))) - expected) < 1e-12


def test_forward_takes_any_channel_and_one_for_every_row() -> None:
    logits, labels = batch(4)
    channels = torch.stack([random_channel(4, seed) for seed in range(len(labels))])
    terms = [mixture(*row) for row in zip(logits, labels.tolist(), channels, strict=True)]
    assert abs(float(forward_corrected_nll(logits, labels, channels)) - sum(terms) / 7) < 1e-12
    same = channels[:1].expand(7, 4, 4)
    assert torch.equal(forward_corrected_nll(logits, labels, same), forward_corrected_nll(logits, labels, channels[0]))


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_expectation_of_backward_over_the_channel_is_the_clean_loss(epsilon: float, k: int) -> None:
    logits, clean = batch(k)
    expected = float(torch.nn.functional.cross_entropy(logits, clean, reduction="sum"))
    for channel in (response(epsilon, k), matrix(epsilon, k)):
        terms = []
        for row, y in zip(logits, clean.tolist(), strict=True):
            noisy = [float(backward_corrected_nll(row[None], torch.tensor([s]), channel)) for s in range(k)]
            terms += [float(matrix(epsilon, k)[y, s]) * loss for s, loss in enumerate(noisy)]
        # The terms are large and cancel: the tolerance is relative to what is added up.
        assert abs(math.fsum(terms) - expected) < 1e-12 * max(1.0, math.fsum(map(abs, terms)))


def test_the_expectation_of_backward_over_any_channel_is_the_clean_loss() -> None:
    logits, clean = batch(4)
    channels = torch.stack([random_channel(4, seed) for seed in range(len(clean))])
    total = 0.0
    for row, y, channel in zip(logits, clean.tolist(), channels, strict=True):
        for s in range(4):
            total += float(channel[y, s]) * float(backward_corrected_nll(row[None], torch.tensor([s]), channel))
    assert abs(total - float(torch.nn.functional.cross_entropy(logits, clean, reduction="sum"))) < 1e-12
    each = sum(backward_corrected_nll(r[None], s[None], c) for r, s, c in zip(logits, clean, channels, strict=True))
    assert abs(float(backward_corrected_nll(logits, clean, channels)) - float(each) / 7) < 1e-12


def test_the_minimiser_of_the_expected_forward_loss_is_the_clean_posterior() -> None:
    clean = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    channel = matrix(1.0, 3)
    noisy = clean @ channel
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(noisy[s] * forward_corrected_nll(logits[None], torch.tensor([s]), channel) for s in range(3))
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(0), clean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [forward_corrected_nll, backward_corrected_nll])
@pytest.mark.parametrize("kind", ["response", "matrix", "per row"])
def test_gradients_are_those_of_finite_differences(loss: object, kind: str) -> None:
    logits, labels = batch(4, rows=5)
    labels[2] = -100
    channels = torch.stack([random_channel(4, seed) for seed in range(5)])
    channel = {"response": response(1.0, 4), "matrix": channels[0], "per row": channels}[kind]
    weights = torch.linspace(0, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, channel, weights=weights), logits.requires_grad_())


def test_the_gradient_of_the_soft_loss_is_that_of_finite_differences() -> None:
    logits, _ = batch(4, rows=5)
    targets = batch(4, rows=5, seed=1)[0].softmax(-1)
    assert torch.autograd.gradcheck(lambda z: soft_nll(z, targets), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channel", [response(1.0, 3), response(8.0, 3), matrix(1.0, 3), (1.0, 0.0), torch.eye(3)])
def test_values_and_gradients_are_finite_at_logits_of_ten_thousand(channel: object, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    for s in range(3):
        for loss in (forward_corrected_nll, backward_corrected_nll):
            value = loss(logits, torch.full((3,), s), channel)
            assert value.dtype == torch.float32
            (gradient,) = torch.autograd.grad(value, logits)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


def test_a_sure_mistake_costs_at_most_minus_log_q() -> None:
    p, q = response(2.0, 3)
    logits = torch.tensor([[1e4, -1e4, -1e4]])
    assert float(forward_corrected_nll(logits, torch.tensor([1]), (p, q))) == pytest.approx(-math.log(q))
    assert float(forward_corrected_nll(logits, torch.tensor([0]), (p, q))) == pytest.approx(-math.log(p))


def test_without_noise_both_are_cross_entropy() -> None:
    logits, labels = batch(5)
    labels[3] = -100
    expected = torch.nn.functional.cross_entropy(logits, labels)
    for channel in ((1.0, 0.0), torch.eye(5)):
        for loss in (forward_corrected_nll, backward_corrected_nll):
            torch.testing.assert_close(loss(logits, labels, channel), expected)


def test_labels_that_say_nothing_have_no_gradient() -> None:
    logits, labels = batch(4)
    logits.requires_grad_()
    value = forward_corrected_nll(logits, labels, (0.25, 0.25))
    assert float(value.detach()) == pytest.approx(math.log(4))
    assert not torch.autograd.grad(value, logits)[0].any()


def test_a_hard_target_is_cross_entropy_and_a_soft_one_the_mean_over_its_classes() -> None:
    logits, labels = batch(5)
    hard = torch.nn.functional.one_hot(labels, 5).double()
    torch.testing.assert_close(soft_nll(logits, hard), torch.nn.functional.cross_entropy(logits, labels))
    targets = batch(5, seed=1)[0].softmax(-1)
    every = torch.stack(
        [torch.nn.functional.cross_entropy(logits, torch.full((7,), y), reduction="none") for y in range(5)]
    )
    torch.testing.assert_close(soft_nll(logits, targets), (targets.T * every).sum() / 7)
    rows, classes = torch.nonzero(torch.ones_like(targets), as_tuple=True)
    repeated = forward_corrected_nll(logits[rows], classes, (1.0, 0.0), weights=targets[rows, classes])
    torch.testing.assert_close(soft_nll(logits, targets), repeated)


def test_rows_of_zeros_and_ignored_labels_do_not_count() -> None:
    logits, labels = batch(4, rows=3)
    targets = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]], dtype=torch.float64)
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(soft_nll(logits, targets), soft_nll(logits[kept], targets[kept]))
    masked = labels.clone()
    masked[1] = -100
    for loss in (forward_corrected_nll, backward_corrected_nll):
        for channel in (response(1.0, 4), random_channel(4, 0)):
            expected = loss(logits[kept], labels[kept], channel)
            torch.testing.assert_close(loss(logits, masked, channel), expected)
    other = torch.tensor([0, 3, 1])
    marked = forward_corrected_nll(logits, other, response(1.0, 4), ignore_index=3)
    torch.testing.assert_close(marked, forward_corrected_nll(logits[kept], other[kept], response(1.0, 4)))
    marked = backward_corrected_nll(logits, other, response(1.0, 4), ignore_index=3)
    torch.testing.assert_close(marked, backward_corrected_nll(logits[kept], other[kept], response(1.0, 4)))


def test_nothing_to_learn_from_costs_nothing() -> None:
    logits, labels = batch(4)
    logits.requires_grad_()
    for value in (
        forward_corrected_nll(logits, torch.full_like(labels, -100), response(1.0, 4)),
        forward_corrected_nll(logits, labels, response(1.0, 4), weights=torch.zeros(7), denominator=0),
        soft_nll(logits, torch.zeros_like(logits)),
    ):
        assert float(value.detach()) == 0
        assert not torch.autograd.grad(value, logits)[0].any()


def test_the_sum_of_the_weights_that_count_is_the_default_denominator() -> None:
    logits, labels = batch(4, rows=3)
    labels[1] = -100
    weights = torch.tensor([0.25, 7.0, 0.5], dtype=torch.float64)
    kept = torch.tensor([0, 2])
    for loss in (forward_corrected_nll, backward_corrected_nll):
        each = torch.stack([loss(logits[i : i + 1], labels[i : i + 1], response(1.0, 4)) for i in kept])
        expected = (weights[kept] * each).sum() / 0.75
        torch.testing.assert_close(loss(logits, labels, response(1.0, 4), weights=weights), expected)
        small = loss(logits, labels, response(1.0, 4), weights=weights, denominator=0.5)
        torch.testing.assert_close(small, expected * 0.75 / 0.5)


def test_the_type_is_that_of_the_logits_whatever_the_rest_has() -> None:
    logits, labels = batch(4)
    double = torch.ones(7, dtype=torch.float64)
    targets = logits.softmax(-1)
    assert targets.dtype == torch.float64
    for value in (
        forward_corrected_nll(logits.float(), labels, matrix(1.0, 4), weights=double),
        backward_corrected_nll(logits.float(), labels, matrix(1.0, 4), weights=double),
        soft_nll(logits.float(), targets, weights=double, denominator=double.sum()),
        soft_nll(logits.half(), targets),
    ):
        assert value.dtype == torch.float32


def test_the_inverse_of_a_channel_is_taken_in_double_precision() -> None:
    """At 77 classes and epsilon 0.1 the channel is nearly flat: an inverse in float32 is off by some 1e-3."""
    logits, labels = batch(77)
    single = matrix(0.1, 77).float()
    exact = backward_corrected_nll(logits, labels, single.double())
    torch.testing.assert_close(backward_corrected_nll(logits, labels, single), exact, rtol=1e-9, atol=1e-9)


def test_tokens_are_rows_one_after_another() -> None:
    logits, labels = batch(4, rows=12)
    labels[5] = -100
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    channels = torch.stack([random_channel(4, seed) for seed in range(12)])
    for loss, channel, folded in (
        (forward_corrected_nll, response(1.0, 4), response(1.0, 4)),
        (forward_corrected_nll, channels, channels.view(3, 4, 4, 4)),
        (backward_corrected_nll, channels, channels.view(3, 4, 4, 4)),
    ):
        flat = loss(logits, labels, channel, weights=weights)
        torch.testing.assert_close(
            loss(logits.view(3, 4, 4), labels.view(3, 4), folded, weights=weights.view(3, 4)), flat
        )
    targets = logits.flip(0).softmax(-1)
    flat = soft_nll(logits, targets, weights=weights)
    torch.testing.assert_close(soft_nll(logits.view(3, 4, 4), targets.view(3, 4, 4), weights=weights.view(3, 4)), flat)


@pytest.mark.parametrize("number", [5, 5.0, torch.tensor(5)])
def test_the_denominator_divides_the_sum(number: object) -> None:
    logits, labels = batch(4)
    for loss, channel in itertools.product((forward_corrected_nll, backward_corrected_nll), (response(1.0, 4),)):
        mean = loss(logits, labels, channel)
        torch.testing.assert_close(loss(logits, labels, channel, denominator=number), 7 * mean / 5)
    targets = logits.softmax(-1)
    torch.testing.assert_close(soft_nll(logits, targets, denominator=number), 7 * soft_nll(logits, targets) / 5)


def test_weights_are_repeated_rows() -> None:
    logits, labels = batch(4, rows=3)
    repeat = torch.tensor([2, 0, 3])
    for loss in (forward_corrected_nll, backward_corrected_nll):
        torch.testing.assert_close(
            loss(logits, labels, response(1.0, 4), weights=repeat.float()),
            loss(logits.repeat_interleave(repeat, 0), labels.repeat_interleave(repeat), response(1.0, 4)),
        )
    targets = logits.flip(0).softmax(-1)
    torch.testing.assert_close(
        soft_nll(logits, targets, weights=repeat),
        soft_nll(logits.repeat_interleave(repeat, 0), targets.repeat_interleave(repeat, 0)),
    )


# --- for the trainer ----------------------------------------------------------------------------------------------


def test_micro_batches_of_any_size_add_up_to_the_whole_batch() -> None:
    logits, labels = batch(4, rows=8)
    labels[3] = -100
    loss = forward_loss_func(response(1.0, 4))
    whole = loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=7)
    for size in (1, 2, 4):
        parts = zip(logits.split(size), labels.split(size), strict=True)
        total = sum(loss(SimpleNamespace(logits=z), s, num_items_in_batch=torch.tensor(7)) for z, s in parts)
        torch.testing.assert_close(total, whole)
    torch.testing.assert_close(loss(SimpleNamespace(logits=logits), labels), whole)


class Response:
    """Like `RRChannel`."""

    p, q = response(1.0, 4)


class Matrix:
    """A channel that is no randomised response."""

    def matrix(self) -> list[list[float]]:
        return random_channel(4, 0).tolist()


class MatrixWithP(Matrix):
    """Its `p` alone says nothing."""

    p = 0.5


@pytest.mark.parametrize("channel", [Response(), Matrix(), MatrixWithP(), matrix(1.0, 4), response(1.0, 4)])
def test_the_loss_of_the_trainer_reads_channels_and_outputs_of_every_kind_and_pickles(channel: object) -> None:
    logits, labels = batch(4)
    plain = random_channel(4, 0) if isinstance(channel, Matrix) else response(1.0, 4)
    expected = forward_corrected_nll(logits, labels, plain)
    loss = pickle.loads(pickle.dumps(forward_loss_func(channel)))
    for outputs in (SimpleNamespace(logits=logits), {"logits": logits}, (logits, "hidden states"), logits):
        torch.testing.assert_close(loss(outputs, labels), expected, rtol=1e-6, atol=0)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ((0.5, 0.2), "is no channel of 3 classes"),
        ((0.2, 0.4), "p >= q >= 0"),
        ((1.2, -0.1), "p >= q >= 0"),
        (torch.eye(4), r"channel has shape \(4, 4\)"),
        (torch.eye(3).expand(2, 3, 3), r"of shape \(5,\)"),
    ],
)
def test_a_channel_that_does_not_fit_is_refused(channel: object, words: str) -> None:
    logits, labels = batch(3, rows=5)
    for loss in (forward_corrected_nll, backward_corrected_nll):
        with pytest.raises(ValueError, match=words):
            loss(logits, labels, channel)


def test_what_else_is_refused() -> None:
    logits, labels = batch(3, rows=5)
    with pytest.raises(ValueError, match="say nothing"):
        backward_corrected_nll(logits, labels, (1 / 3, 1 / 3))
    with pytest.raises(ValueError, match="labels have shape"):
        forward_corrected_nll(logits, labels[:4], response(1.0, 3))
    with pytest.raises(ValueError, match="weights have shape"):
        forward_corrected_nll(logits, labels, response(1.0, 3), weights=torch.ones(4))
    with pytest.raises(ValueError, match="targets have shape"):
        soft_nll(logits, torch.ones(5, 4))
    with pytest.raises(TypeError, match="got str"):
        forward_loss_func("rr")
