"""The scale, the floor and the sources of FLOW's weights, against definitions solved by other means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from hf_ext.data.flow_arithmetic import FlowWeights, flow_weights_at, weigh
from hf_ext.data.weighting import add_flow_weights

documents = st.lists(st.tuples(st.floats(0.1, 12), st.integers(1, 300)), min_size=1, max_size=30)


def arrays_of(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    losses, counts = zip(*rows, strict=True)
    return np.array(losses), np.array(counts, dtype=float)


@given(documents, st.floats(0.2, 5), st.floats(1e-3, 0.99))
@settings(max_examples=300, deadline=None)
def test_a_floor_and_a_mean_of_one_hold_together(rows: list, tau: float, floor: float) -> None:
    """The factor is the root of a monotone function; brentq finds it without ordering anything."""
    losses, counts = arrays_of(rows)
    bare = np.exp(-(losses - losses.min()) / tau)

    def excess(log_factor: float) -> float:
        return float(np.average(np.maximum(math.exp(log_factor) * bare, floor), weights=counts)) - 1

    factor = math.exp(brentq(excess, math.log(1e-6), math.log(counts.sum() + 1), xtol=1e-14))
    weights = flow_weights_at(losses, tau, counts, floor=floor).of_losses(losses)
    assert weights == pytest.approx(np.maximum(factor * bare, floor), rel=1e-6)
    assert np.average(weights, weights=counts) == pytest.approx(1, rel=1e-9)


@given(documents, st.floats(0.2, 5), st.floats(0, 0.9))
@settings(max_examples=200, deadline=None)
def test_the_two_scales_differ_by_one_factor_and_the_papers_is_exp(rows: list, tau: float, floor: float) -> None:
    losses, counts = arrays_of(rows)
    ours = flow_weights_at(losses, tau, counts, floor=floor).of_losses(losses)
    paper = flow_weights_at(losses, tau, counts, weight_scale="none", floor=floor).of_losses(losses)
    assert paper / paper[0] == pytest.approx(ours / ours[0], rel=1e-9)
    above = paper > paper.min() if floor else np.full(len(paper), True)
    assert paper[above] == pytest.approx(np.exp(-losses / tau)[above], rel=1e-9)


def test_the_mean_is_over_tokens_not_documents() -> None:
    rows = Dataset.from_dict({"original_nll_sum": [100.0, 9.0], "original_num_tokens": [100, 3]})
    easy, hard = math.exp(-1 / 2), math.exp(-3 / 2)
    mean = (100 * easy + 3 * hard) / 103
    assert add_flow_weights(rows, 2.0)["weight"][:] == pytest.approx([easy / mean, hard / mean], rel=1e-12)


def test_losses_of_a_million_temperatures_keep_their_ratios() -> None:
    losses = 7 + np.array([0.0, 1e-6, 3e-6])
    weights = flow_weights_at(losses, 1e-6).of_losses(losses)
    expected = np.exp([0, -1, -3])
    assert weights == pytest.approx(expected / expected.mean(), rel=1e-6)


# --- sources ---------------------------------------------------------------------------------------------------------


def two_sources() -> Dataset:
    """An easy source and a hard one, in turn, and of unlike length."""
    rng = np.random.default_rng(0)
    means = [float(rng.uniform(0.2, 0.6) if i % 2 else rng.uniform(3, 9)) for i in range(20)]
    counts = [int(rng.integers(2, 40)) for _ in range(20)]
    return Dataset.from_dict(
        {
            "original_nll_sum": [m * n for m, n in zip(means, counts, strict=True)],
            "original_num_tokens": counts,
            "source": ["easy" if i % 2 else "hard" for i in range(20)],
        }
    )


@pytest.mark.parametrize("scale", ["mean", "none"])
@pytest.mark.parametrize("tau", ["median", "ess:0.7", 1.5])
def test_every_source_is_weighed_as_if_it_were_alone(tau: Any, scale: str) -> None:
    rows = two_sources()
    together = add_flow_weights(rows, tau, weight_scale=scale, flow_floor=0.1, source_column="source")["weight"][:]
    for name in ("easy", "hard"):
        places = [i for i, source in enumerate(rows["source"]) if source == name]
        alone = add_flow_weights(rows.select(places), tau, weight_scale=scale, flow_floor=0.1)["weight"][:]
        assert [together[i] for i in places] == pytest.approx(alone, rel=1e-12)
    if scale == "mean" or tau != 1.5:  # the paper's letter at a number knows nothing of other rows
        one_tau = add_flow_weights(rows, tau, weight_scale=scale, flow_floor=0.1)["weight"][:]
        assert max(abs(np.subtract(together, one_tau))) > 0.1


def test_a_source_that_has_no_temperature_is_named() -> None:
    rows = two_sources().map(lambda row: {"original_nll_sum": 0.0} if row["source"] == "easy" else {})
    with pytest.raises(ValueError, match="source 'easy': The median loss under the original model is 0"):
        add_flow_weights(rows, source_column="source")


@pytest.mark.parametrize(
    ("values", "words"),
    [(["a", None], "row 1, column 'source'.*'None'.*Fill it"), ([["a"], ["b"]], "row 0, column 'source'")],
)
def test_a_row_without_a_source_is_named(values: list, words: str) -> None:
    rows = Dataset.from_dict({"original_nll_sum": [1.0, 2.0], "original_num_tokens": [1, 1], "source": values})
    with pytest.raises(ValueError, match=words):
        add_flow_weights(rows, source_column="source")


def test_a_column_of_identifiers_and_a_missing_one_are_refused() -> None:
    rows = Dataset.from_dict({"original_nll_sum": [1.0] * 1001, "original_num_tokens": [1] * 1001})
    with pytest.raises(ValueError, match=r"has no column 'id' for source_column \(it has \['original_nll_sum'"):
        add_flow_weights(rows, source_column="id")
    with pytest.raises(ValueError, match=r"source_column has 1,001 different values, such as 0"):
        add_flow_weights(rows.add_column("id", range(1001)), source_column="id")


@pytest.mark.parametrize(
    ("settings_of_all", "words"),
    [({"weight_scale": "sum"}, "weight_scale must be one of"), ({"flow_floor": 1.0}, "flow_floor must be")],
)
def test_settings_that_are_none_are_refused(settings_of_all: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        add_flow_weights(two_sources(), **settings_of_all)
    with pytest.raises(ValueError, match="floor must be a finite weight"):
        FlowWeights(1.0, floor=-1.0)


def test_negligible_documents_are_counted_by_the_mean_of_their_own_source() -> None:
    losses = np.array([1.0, 1.1, 20.0, 50.0, 50.1, 50.2])
    sources = ["a", "a", "a", "b", "b", "b"]
    assert weigh(losses, np.ones(6), 1.0, sources=sources).num_negligible == 1
    assert weigh(losses, np.ones(6), 1.0).num_negligible == 4
    assert weigh(losses, np.ones(6), 1.0, floor=0.01).num_negligible == 0
