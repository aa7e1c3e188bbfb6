"""Properties of the losses under a label channel, on any logits: bounds, invariances, agreement of the two forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.losses.label_noise import backward_corrected_nll, forward_corrected_nll, soft_nll
from tests.losses.properties import EXAMPLES, central_difference, gradient_of, permutations, tensors

K = 4
epsilons = st.floats(0.05, 12)
logits_of = tensors((-30, 30), columns=K, max_rows=4).map(lambda found: found[0])
seeds = st.integers(0, 2**32 - 1)


def labels_of(logits: Tensor, seed: int) -> Tensor:
    return torch.randint(K, (len(logits),), generator=torch.Generator().manual_seed(seed))


def response(epsilon: float) -> tuple[float, float]:
    q = 1 / (math.exp(epsilon) + K - 1)
    return math.exp(epsilon) * q, q


def matrix(epsilon: float) -> Tensor:
    p, q = response(epsilon)
    return torch.full((K, K), q, dtype=torch.float64).fill_diagonal_(p)


@given(logits_of, seeds, epsilons)
@EXAMPLES
def test_the_closed_form_is_the_matrix_s(logits: Tensor, seed: int, epsilon: float) -> None:
    labels = labels_of(logits, seed)
    forward = forward_corrected_nll(logits, labels, response(epsilon))
    torch.testing.assert_close(forward, forward_corrected_nll(logits, labels, matrix(epsilon)), rtol=1e-9, atol=1e-9)
    p, q = response(epsilon)
    backward = backward_corrected_nll(logits, labels, (p, q))
    atol = 1e-11 * (1 + float(logits.abs().max())) * K / (p - q) ** 2  # of the inverse
    torch.testing.assert_close(backward, backward_corrected_nll(logits, labels, matrix(epsilon)), rtol=1e-9, atol=atol)


@given(logits_of, seeds, epsilons)
@EXAMPLES
def test_forward_stays_between_the_costs_of_keeping_and_of_changing_a_label(
    logits: Tensor, seed: int, epsilon: float
) -> None:
    p, q = response(epsilon)
    loss = float(forward_corrected_nll(logits, labels_of(logits, seed), (p, q)))
    assert -math.log(p) - 1e-9 <= loss <= -math.log(q) + 1e-9


@given(logits_of, seeds, epsilons)
@EXAMPLES
def test_forward_gradients_are_at_most_those_of_cross_entropy_row_by_row(
    logits: Tensor, seed: int, epsilon: float
) -> None:
    labels = labels_of(logits, seed)
    forward = gradient_of(lambda z: forward_corrected_nll(z, labels, response(epsilon)), logits)
    plain = gradient_of(lambda z: torch.nn.functional.cross_entropy(z, labels), logits)
    # d loss / d z = (share of f_s in the mixture's numerator) * (f - e_s): the same direction, shorter
    assert (forward.abs() <= plain.abs() + 1e-12).all()
    assert (forward * plain >= -1e-12).all()


@given(logits_of, seeds, epsilons)
@EXAMPLES
def test_gradients_are_those_of_finite_differences(logits: Tensor, seed: int, epsilon: float) -> None:
    logits = logits / 6
    labels, targets = labels_of(logits, seed), logits.flip(-1).softmax(-1)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda z: forward_corrected_nll(z, labels, response(epsilon)),
        lambda z: soft_nll(z, targets),
    ]
    if epsilon > 0.5:
        losses.append(lambda z: backward_corrected_nll(z, labels, response(epsilon)))
    for loss in losses:
        torch.testing.assert_close(gradient_of(loss, logits), central_difference(loss, logits), rtol=1e-5, atol=1e-5)


@given(logits_of, seeds, epsilons, permutations(), st.floats(-20, 20))
@EXAMPLES
def test_order_of_rows_and_a_constant_on_the_logits_change_nothing(
    logits: Tensor, seed: int, epsilon: float, order: Callable[[int], Tensor], constant: float
) -> None:
    labels, p = labels_of(logits, seed), order(len(logits))
    for loss in (forward_corrected_nll, backward_corrected_nll):
        value = loss(logits, labels, response(epsilon))
        torch.testing.assert_close(
            loss(logits[p] + constant, labels[p], response(epsilon)), value, rtol=1e-7, atol=1e-7
        )


@given(logits_of, seeds, epsilons, permutations())
@EXAMPLES
def test_renaming_the_classes_changes_nothing(
    logits: Tensor, seed: int, epsilon: float, order: Callable[[int], Tensor]
) -> None:
    labels, p = labels_of(logits, seed), order(K)
    renamed = p.argsort()[labels]
    for loss in (forward_corrected_nll, backward_corrected_nll):
        value = loss(logits, labels, response(epsilon))
        torch.testing.assert_close(loss(logits[:, p], renamed, response(epsilon)), value, rtol=1e-9, atol=1e-9)


@given(logits_of, logits_of, st.floats(0, 1))
@EXAMPLES
def test_the_soft_loss_is_linear_in_its_targets(logits: Tensor, other: Tensor, share: float) -> None:
    n = min(len(logits), len(other))
    logits, one, two = logits[:n], other[:n].softmax(-1), other[:n].flip(-1).softmax(-1)
    mixed = soft_nll(logits, share * one + (1 - share) * two)
    parts = share * soft_nll(logits, one) + (1 - share) * soft_nll(logits, two)
    torch.testing.assert_close(mixed, parts, rtol=1e-9, atol=1e-9)
    entropy = -(one * one.log()).sum() / n
    assert soft_nll(logits, one) >= entropy - 1e-9  # Gibbs: least where the prediction is the target
