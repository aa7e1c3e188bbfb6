"""Weights that float32 does not hold are refused where no other is left; any that it holds will do."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_ext.data.flow_arithmetic import flow_weights_at
from hf_ext.data.weighting import add_flow_weights
from hf_ext.guards.weights import LEAST_WEIGHT, refuse_vanishing_weights
from hf_ext.losses.weighted_nll import weighted_nll


def rows(*weights: object) -> Dataset:
    return Dataset.from_dict({"weight": list(weights)})


@pytest.mark.parametrize("largest", [1e-46, 1e-300, 5e-324])
def test_weights_that_float32_makes_zero_are_refused_with_the_largest(largest: float) -> None:
    for dataset in (rows(0.0, largest, largest / 2), rows([0.0, 0.0], [largest])):
        with pytest.raises(ValueError, match=f"vanishes in float32.*the largest is {largest:.2g}"):
            refuse_vanishing_weights(dataset)


@pytest.mark.parametrize("largest", [1e-45, 1.17e-38])
def test_weights_too_small_for_a_normal_number_of_float32_are_warned_of(
    largest: float, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_vanishing_weights(rows(0.0, largest, largest / 2))
    assert f"the largest is {largest:.2g}, and below 1.2e-38 a weight counts nothing" in caplog.text


def test_weights_of_zero_are_refused_as_such() -> None:
    with pytest.raises(ValueError, match="Every weight of the train dataset is 0"):
        refuse_vanishing_weights(rows(0.0, 0.0))


@pytest.mark.parametrize("largest", [1.18e-38, 1.0, 1e38])
def test_one_weight_that_counts_is_enough(largest: float, caplog: pytest.LogCaptureFixture) -> None:
    refuse_vanishing_weights(rows(0.0, largest, 1e-300))
    assert not caplog.records


@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-38])
def test_a_sum_of_weights_that_vanishes_divides_nothing_by_it(size: float) -> None:
    """Dividing by a number below 2.9e-39 overflows, in the loss or in its gradient."""
    log_probs = torch.full((1, 3), -2.0, requires_grad=True)
    weights = torch.full((1, 3), size / 3)
    loss = weighted_nll(log_probs, weights, torch.tensor(size, dtype=torch.float64))
    loss.backward()
    assert torch.isfinite(loss)
    assert float(log_probs.grad.abs().max()) < 1e-37


def scored(*means: float) -> Dataset:
    return Dataset.from_dict({"original_nll_sum": [10 * m for m in means], "original_num_tokens": [10] * len(means)})


def test_flow_refuses_a_temperature_that_leaves_the_easiest_document_alone() -> None:
    with pytest.raises(ValueError, match=r"tau=0\.001 nats per token is too small.*0\.1 nats per token harder"):
        add_flow_weights(scored(6.0, 6.1), 0.001)


def test_flow_says_how_many_documents_weigh_next_to_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """At 0.05 a document 0.45 nats harder weighs exp(-9) of the easiest; one 9 harder exp(-180)."""
    weights = np.float32(add_flow_weights(scored(1.0, 1.1, 1.45, 10.0), 0.05)["weight"])
    assert "2 of 4 documents weigh less than 0.001 of the mean" in caplog.text
    assert (weights >= np.finfo(np.float32).tiny).all()


@given(st.lists(st.floats(0.01, 20), min_size=2, max_size=8), st.floats(1e-4, 10))
def test_flows_weights_have_the_exact_ratios_and_a_mean_of_one_in_float32(means: list[float], tau: float) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = [(-Decimal(mean) / Decimal(tau)).exp() for mean in means]
        ratios = [float(weight * len(exact) / sum(exact)) for weight in exact]
        to_easiest = [float(weight / max(exact)) for weight in exact]
    if sum(ratio >= LEAST_WEIGHT for ratio in to_easiest) == means.count(min(means)) < len(means):
        with pytest.raises(ValueError, match="too small"):
            flow_weights_at(np.array(means), tau)
        return
    weights = flow_weights_at(np.array(means), tau).of_losses(np.array(means))
    assert weights == pytest.approx(ratios, rel=1e-9, abs=2 * LEAST_WEIGHT)
    assert np.float32(weights).min() >= LEAST_WEIGHT


def test_the_papers_letter_is_refused_where_float32_does_not_hold_it() -> None:
    rows = scored(6.0, 6.01, 6.02)
    with pytest.raises(ValueError, match=r"too small for weight_scale='none'.*Take weight_scale='mean'"):
        add_flow_weights(rows, 0.05, weight_scale="none")
    assert np.mean(add_flow_weights(rows, 0.05)["weight"]) == pytest.approx(1, rel=1e-12)


def test_flow_at_the_median_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    add_flow_weights(scored(1.0, 2.0, 9.0))
    assert not caplog.records
