"""Weights that float32 does not hold are refused where no other is left; any that it holds will do."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_ext.data.weighting import add_flow_weights, flow_weights_at
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


def test_flow_says_how_many_documents_vanish_next_to_the_easiest(caplog: pytest.LogCaptureFixture) -> None:
    """exp(-x / 0.05) is below 1.18e-38 beyond x = 4.366."""
    weights = np.float32(add_flow_weights(scored(1.0, 5.36, 5.38, 9.0), 0.05)["weight"])
    assert "for 2 of 4 documents" in caplog.text
    assert (weights >= np.finfo(np.float32).tiny).tolist() == [True, True, False, False]


@given(st.lists(st.floats(0.01, 20), min_size=2, max_size=8), st.floats(1e-4, 10))
def test_flows_weights_have_the_exact_ratios_on_a_scale_that_float32_holds(means: list[float], tau: float) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = [(-Decimal(mean) / Decimal(tau)).exp() for mean in means]
        ratios = [float(weight / max(exact)) for weight in exact]
        held = min(exact) >= Decimal(LEAST_WEIGHT)
        scale = float(max(exact)) if held else 1.0
    if sum(ratio >= LEAST_WEIGHT for ratio in ratios) == means.count(min(means)) < len(means):
        with pytest.raises(ValueError, match="too small"):
            flow_weights_at(np.array(means), tau)
        return
    weights = flow_weights_at(np.array(means), tau).of_means(np.array(means))
    assert np.float32(weights).max() >= LEAST_WEIGHT
    assert weights == pytest.approx([scale * ratio for ratio in ratios], rel=1e-9, abs=LEAST_WEIGHT)


def test_flow_at_the_median_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    add_flow_weights(scored(1.0, 2.0, 9.0))
    assert not caplog.records
