"""The mixture's likelihood against mpmath, stock cross entropy and finite differences."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.losses.moe_likelihood import (
    EXPERT_TYPES,
    expert_log_likelihood,
    moe_log_probs,
    moe_log_responsibilities,
    moe_nll,
)
from tests.losses.properties import EXAMPLES, central_difference, gradient_of

every_type = pytest.mark.parametrize("expert_type", EXPERT_TYPES)


def draw(expert_type: str, n: int = 20, k: int = 3, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Gate logits `(n, k)`, outputs `(n, k, m)`, labels and variances `(k,)`, in float64."""
    generator = torch.Generator().manual_seed(seed)
    width = {"linear": 2, "logistic": 1, "softmax": 4}[expert_type]
    gate = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    outputs = scale * torch.randn(n, k, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(2, width), (n,), generator=generator)
    if expert_type == "linear":
        labels = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return gate, outputs, labels, 0.1 + torch.rand(k, generator=generator, dtype=torch.float64)


def by_mpmath(gate: list, outputs: list, label: object, variance: list, expert_type: str) -> tuple[list, float]:
    """Log-responsibilities and log-likelihood of one row, with 60 digits."""
    with mpmath.workdps(60):
        gate = [mpmath.mpf(x) for x in gate]
        total = mpmath.fsum(mpmath.exp(x) for x in gate)
        joint = []
        for i, expert in enumerate(outputs):
            expert = [mpmath.mpf(x) for x in expert]
            if expert_type == "linear":
                s2 = mpmath.mpf(variance[i])
                densities = [
                    mpmath.npdf(mpmath.mpf(y), u, mpmath.sqrt(s2)) for y, u in zip(label, expert, strict=True)
                ]
                likelihood = mpmath.fprod(densities)
            elif expert_type == "logistic":
                likelihood = 1 / (1 + mpmath.exp(-expert[0] if label else expert[0]))
            else:
                likelihood = mpmath.exp(expert[label]) / mpmath.fsum(mpmath.exp(x) for x in expert)
            joint.append(mpmath.exp(gate[i]) / total * likelihood)
        row = mpmath.fsum(joint)
        return [float(mpmath.log(x / row)) for x in joint], float(mpmath.log(row))


@every_type
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_responsibilities_and_likelihood_are_exact_at_logits_of_hundreds(expert_type: str, scale: float) -> None:
    if expert_type == "linear":
        scale = min(scale, 20.0)  # squared errors of hundreds of variances
    gate, outputs, labels, variance = draw(expert_type, scale=scale)
    gate = gate.clamp(-800, 800)
    scales = variance if expert_type == "linear" else None
    log_r, rows = moe_log_responsibilities(gate, outputs, labels, expert_type=expert_type, variance=scales)
    for n in range(len(gate)):
        expected_r, expected = by_mpmath(
            gate[n].tolist(), outputs[n].tolist(), labels[n].tolist(), variance.tolist(), expert_type
        )
        assert rows[n].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert log_r[n].tolist() == pytest.approx(expected_r, rel=1e-11, abs=1e-11)


@every_type
def test_one_expert_is_the_stock_loss_whatever_the_gate(expert_type: str) -> None:
    gate, outputs, labels, variance = draw(expert_type, k=1)
    loss = moe_nll(gate, outputs, labels, expert_type=expert_type, variance=variance)
    if expert_type == "softmax":
        expected = F.cross_entropy(outputs[:, 0], labels, reduction="none")
    elif expert_type == "logistic":
        expected = F.binary_cross_entropy_with_logits(outputs[:, 0, 0], labels.double(), reduction="none")
    else:
        spread = variance.expand_as(labels)
        expected = F.gaussian_nll_loss(outputs[:, 0], labels, spread, full=True, reduction="none").sum(-1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("expert_type", ["logistic", "softmax"])
def test_the_loss_is_cross_entropy_of_the_mixtures_log_probabilities_which_sum_to_one(expert_type: str) -> None:
    gate, outputs, labels, _ = draw(expert_type, scale=30.0)
    log_probs = moe_log_probs(gate, outputs, expert_type=expert_type)
    torch.testing.assert_close(
        log_probs.logsumexp(-1), torch.zeros(len(gate), dtype=torch.float64), atol=1e-12, rtol=0
    )
    expected = F.nll_loss(log_probs, labels, reduction="none")
    torch.testing.assert_close(
        moe_nll(gate, outputs, labels, expert_type=expert_type), expected, rtol=1e-12, atol=1e-12
    )


@given(st.sampled_from(EXPERT_TYPES), st.integers(0, 2**20), st.floats(0.1, 20.0))
@EXAMPLES
def test_responsibilities_sum_to_one_and_follow_a_permutation_of_the_experts(
    expert_type: str, seed: int, scale: float
) -> None:
    gate, outputs, labels, variance = draw(expert_type, n=3, scale=scale, seed=seed)
    order = [2, 0, 1]
    log_r, rows = moe_log_responsibilities(gate, outputs, labels, expert_type=expert_type, variance=variance)
    log_s, same_rows = moe_log_responsibilities(
        gate[:, order], outputs[:, order], labels, expert_type=expert_type, variance=variance[order]
    )
    torch.testing.assert_close(log_r.logsumexp(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(log_r[:, order], log_s, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(rows, same_rows, rtol=1e-12, atol=1e-12)


@every_type
def test_the_gradient_is_that_of_finite_differences_and_the_posteriors_of_fisher(expert_type: str) -> None:
    gate, outputs, labels, variance = draw(expert_type, n=4)
    scales = variance if expert_type == "linear" else None
    log_r, _ = moe_log_responsibilities(gate, outputs, labels, expert_type=expert_type, variance=scales)

    def loss(values: Tensor) -> Tensor:
        return moe_nll(values, outputs, labels, expert_type=expert_type, variance=scales).sum()

    slope = gradient_of(loss, gate)
    torch.testing.assert_close(slope, central_difference(loss, gate), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(slope, gate.softmax(-1) - log_r.exp(), rtol=1e-12, atol=1e-14)

    def expected(values: Tensor) -> Tensor:
        terms = expert_log_likelihood(values, labels, expert_type=expert_type, variance=scales)
        return -(log_r.exp() * terms).sum()

    def marginal(values: Tensor) -> Tensor:
        return moe_nll(gate, values, labels, expert_type=expert_type, variance=scales).sum()

    torch.testing.assert_close(gradient_of(marginal, outputs), gradient_of(expected, outputs), rtol=1e-11, atol=1e-13)


def test_half_precision_is_computed_in_float32_and_restarts_pass_through() -> None:
    gate, outputs, labels, _ = draw("softmax")
    assert moe_nll(gate.half(), outputs.half(), labels).dtype == torch.float32
    both = moe_nll(torch.stack([gate, -gate], 1), torch.stack([outputs, -outputs], 1), labels)
    assert torch.equal(both[:, 1], moe_nll(-gate, -outputs, labels))


def test_an_expert_that_cannot_explain_a_row_has_no_part_in_it() -> None:
    outputs = torch.tensor([[[-math.inf, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    log_r, rows = moe_log_responsibilities(torch.zeros(1, 2, dtype=torch.float64), outputs, torch.tensor([0]))
    assert log_r.exp().tolist() == [[0.0, 1.0]]
    assert rows.item() == pytest.approx(math.log(0.25))


@pytest.mark.parametrize(
    ("gate", "outputs", "labels", "kwargs", "message"),
    [
        ((2, 3), (2, 3, 4), torch.tensor([0, 1]), {"expert_type": "tree"}, "'tree' is not one of linear, logistic"),
        ((2, 2), (2, 3, 4), torch.tensor([0, 1]), {}, r"gate_logits \(2, 2\) must have the shape of expert_outputs"),
        ((2, 3), (2, 3, 4), torch.tensor([0]), {}, "one row for each of the labels"),
        ((2, 3), (2, 3, 4), torch.tensor([0.0, 1.0]), {}, "whole numbers"),
        ((2, 3), (2, 3, 4), torch.tensor([0, 1]), {"expert_type": "logistic"}, "has one output, not 4"),
        ((2, 3), (2, 3, 4), torch.tensor([0.0, 1.0]), {"expert_type": "linear"}, "must hold 4 numbers a row"),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(gate, outputs, labels, kwargs, message) -> None:
    with pytest.raises(ValueError, match=message):
        moe_nll(torch.zeros(gate), torch.zeros(outputs), labels, **kwargs)


def test_linear_experts_have_no_log_probabilities_of_classes() -> None:
    with pytest.raises(ValueError, match="has a mean, not log-probabilities"):
        moe_log_probs(torch.zeros(1, 2), torch.zeros(1, 2, 1), expert_type="linear")
