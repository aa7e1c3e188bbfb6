"""Channels: their matrices, budgets, composition and what can be read off noisy labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.relabeling import Estimate, RRChannel, RRWithPrior
from tests.data.relabeling.oracle import channel_matrix, chi_square_p, prior_matrix

FEW = settings(max_examples=100, deadline=None)
epsilons = st.floats(0.01, 12)
classes = st.integers(2, 40)


def column_ratio(matrix: np.ndarray) -> float:
    """Largest log-ratio within a column of P(s | y)."""
    possible = matrix[:, (matrix > 0).all(axis=0)]
    assert possible.shape[1] == (matrix > 0).any(axis=0).sum(), "a class that some labels rule out"
    return float(np.log(possible.max(axis=0) / possible.min(axis=0)).max())


@given(epsilons, classes)
@FEW
def test_the_matrix_is_randomised_response_and_spends_epsilon(epsilon: float, k: int) -> None:
    channel = RRChannel(epsilon, k)
    np.testing.assert_allclose(channel.matrix(), channel_matrix(epsilon, k), rtol=1e-12)
    np.testing.assert_allclose(channel.matrix().sum(axis=1), 1, rtol=1e-12)
    assert column_ratio(channel.matrix()) == pytest.approx(epsilon, rel=1e-9)
    assert channel.contrast == pytest.approx(channel.p - channel.q, rel=1e-9)


@given(epsilons, epsilons, classes)
@FEW
def test_a_draw_from_the_noisy_label_is_the_product_and_costs_at_most_the_smaller(
    first: float, second: float, k: int
) -> None:
    one, two = RRChannel(first, k), RRChannel(second, k)
    both = one.then(two)
    product = channel_matrix(first, k) @ channel_matrix(second, k)
    np.testing.assert_allclose(both.matrix(), product, rtol=1e-9)
    assert both.epsilon == pytest.approx(column_ratio(product), rel=1e-6, abs=1e-12)
    assert both.epsilon <= min(first, second)


def test_degradation_agrees_with_simulated_draws() -> None:
    rng, k, n = np.random.default_rng(0), 3, 200_000
    one, two = RRChannel(1.0, k), RRChannel(0.7, k)

    def draw(channel: RRChannel, labels: np.ndarray) -> np.ndarray:
        u = rng.random(len(labels))
        return (channel_matrix(channel.epsilon, k).cumsum(axis=1)[labels] < u[:, None]).sum(axis=1)

    true = np.arange(n) % k
    degraded = draw(two, draw(one, true))
    counts = np.bincount(true * k + degraded, minlength=k * k).reshape(k, k)
    assert chi_square_p(counts, one.then(two).matrix()) > 1e-4
    assert chi_square_p(counts, one.matrix()) < 1e-10  # the test can fail


@given(st.floats(0, 1), st.floats(0.1, 10), classes)
@FEW
def test_the_accuracy_of_expected_agreement_is_the_accuracy(a: float, epsilon: float, k: int) -> None:
    channel = RRChannel(epsilon, k)
    agree = a * channel.p + (1 - a) * channel.q
    estimate = channel.accuracy(min(agree, 1.0), 500)
    assert estimate.value == pytest.approx(a, abs=1e-9)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.se == pytest.approx(math.sqrt(agree * max(1 - agree, 0) / 500) / (channel.p - channel.q), rel=1e-6)


def test_the_standard_error_of_the_specification() -> None:
    """77 classes, epsilon 2, 2,000 rows, accuracy 0.8: an error of 0.076."""
    channel = RRChannel(2.0, 77)
    assert channel.p - channel.q == pytest.approx(0.076, abs=1e-3)
    assert channel.accuracy(0.8 * channel.p + 0.2 * channel.q, 2000).se == pytest.approx(0.076, abs=2e-3)


def test_an_impossible_accuracy_is_reported_as_it_is_with_a_word_on_why() -> None:
    channel = RRChannel(2.0, 5)
    low = channel.accuracy(channel.q / 2, 100)
    assert low.value < 0
    assert "worse than chance" in str(low)
    high = channel.accuracy(channel.p * 1.1, 100)
    assert high.value > 1
    assert "in-sample" in str(high)
    assert channel.accuracy(channel.p * 0.9, 100).notes == ()


@given(st.floats(0, 1), st.floats(0.1, 10), classes)
@FEW
def test_the_precision_of_a_consensus_is_bayes_rule(a: float, epsilon: float, k: int) -> None:
    channel = RRChannel(epsilon, k)
    matrix = channel_matrix(epsilon, k)
    right, wrong = a * matrix[0, 0], (1 - a) * matrix[0, 1]  # prediction 0, label 0 given true 0 or true 1
    assert channel.consensus_precision(a) == pytest.approx(right / (right + wrong), abs=1e-12)


def test_the_interval_of_a_precision_is_the_accuracy_s_carried_over() -> None:
    channel = RRChannel(2.0, 5)
    got = channel.consensus_precision(Estimate(0.8, 0.05, 0.7, 1.2, 100))
    assert (got.value, got.low, got.high) == tuple(channel.consensus_precision(a) for a in (0.8, 0.7, 1.0))
    slope = (channel.consensus_precision(0.8 + 1e-6) - channel.consensus_precision(0.8 - 1e-6)) / 2e-6
    assert got.se == pytest.approx(0.05 * slope, rel=1e-6)


def test_the_class_prior_is_unbiased_and_a_distribution() -> None:
    rng, k = np.random.default_rng(0), 4
    channel, true = RRChannel(1.0, k), np.array([0.6, 0.3, 0.1, 0.0])
    noisy = true @ channel_matrix(1.0, k)
    np.testing.assert_allclose(channel.class_prior(noisy * 1000), true, atol=1e-12)
    found = np.array([channel.class_prior(rng.multinomial(4000, noisy)) for _ in range(300)])
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    assert found.min() >= 0
    np.testing.assert_allclose(found.mean(axis=0), true, atol=0.02)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=6).filter(any), st.floats(0.05, 5))
@FEW
def test_the_class_prior_is_the_nearest_distribution(hist: list[int], epsilon: float) -> None:
    from scipy.optimize import minimize

    channel = RRChannel(epsilon, len(hist))
    unbiased = (np.array(hist) / sum(hist) - channel.q) / (channel.p - channel.q)
    found = channel.class_prior(hist)
    constraint = {"type": "eq", "fun": lambda x: x.sum() - 1}
    best = minimize(
        lambda x: ((x - unbiased) ** 2).sum(), found, bounds=[(0, 1)] * len(hist), constraints=[constraint], tol=1e-12
    )
    assert ((found - unbiased) ** 2).sum() <= best.fun + 1e-6 * (1 + best.fun)


# --- with a prior -------------------------------------------------------------------------------------------------


def random_priors(k: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(k)
    priors = rng.dirichlet(np.full(k, 0.4), n)
    priors[0], priors[1] = 1 / k, np.eye(k)[k - 1]
    priors[2, : k // 2] = 0  # ties and zeros
    return priors / priors.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_the_number_of_classes_kept_maximises_the_chance_of_the_true_label(k: int, epsilon: float) -> None:
    """Every number of classes is tried; its chance is read off the written-out matrix."""
    for prior in random_priors(k, 60):
        chance = [float(prior @ np.diag(prior_matrix(epsilon, prior, m))) for m in range(1, k + 1)]
        found = RRWithPrior(epsilon, prior)
        assert chance[found.k - 1] == pytest.approx(max(chance), abs=1e-12)
        assert found.kept_probability == pytest.approx(max(chance), abs=1e-12)
        np.testing.assert_allclose(found.matrix(), prior_matrix(epsilon, prior, found.k), atol=1e-12)
        assert column_ratio(found.matrix()) <= epsilon + 1e-9


@given(epsilons, classes)
@FEW
def test_a_uniform_prior_gives_plain_randomised_response(epsilon: float, k: int) -> None:
    found = RRWithPrior(epsilon, [1.0] * k)
    assert found.k == k
    np.testing.assert_allclose(found.matrix(), channel_matrix(epsilon, k), rtol=1e-9)


def test_the_published_code_s_formula_keeps_fewer_true_labels() -> None:
    """Its k uses the sum of one class more; at K = 100 and epsilon 0.5 that costs a tenth of the kept labels."""
    ours, theirs, differ = [], [], 0
    for prior in np.random.default_rng(0).dirichlet(np.ones(100), 200):
        top = np.sort(prior)[::-1]
        shifted = [top[: m + 1].sum() / (1 + (m - 1) * math.exp(-0.5)) for m in range(100)]
        k = max(int(np.argmax(shifted)), 1)
        best = RRWithPrior(0.5, prior)
        ours.append(best.kept_probability)
        theirs.append(float(prior @ np.diag(prior_matrix(0.5, prior, k))))
        differ += k != best.k
    assert differ > 100
    assert np.mean(theirs) < 0.97 * np.mean(ours)
    assert (np.array(ours) >= np.array(theirs) - 1e-12).all()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0, -1.0, math.nan, math.inf, -math.inf, None, "1", True])
def test_an_epsilon_that_is_none_is_refused(epsilon: object) -> None:
    for make in (lambda: RRChannel(epsilon, 3), lambda: RRWithPrior(epsilon, [0.5, 0.5])):
        with pytest.raises(ValueError, match="epsilon"):
            make()


@pytest.mark.parametrize("k", [1, 0, -3, 2.5, None, True])
def test_a_number_of_classes_that_is_none_is_refused(k: object) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        RRChannel(1.0, k)


@pytest.mark.parametrize("prior", [[0.5], [0.0, 0.0], [0.5, -0.1], [math.nan, 1.0], [[0.5, 0.5]], []])
def test_a_prior_that_is_none_is_refused(prior: list) -> None:
    with pytest.raises(ValueError, match="prior"):
        RRWithPrior(1.0, prior)


def test_other_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        RRChannel(1.0, 3).then(RRChannel(1.0, 4))
    for agree, n in ((1.2, 10), (-0.1, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="agree="):
            RRChannel(1.0, 3).accuracy(agree, n)
    for hist in ([1, 2], [0, 0, 0], [1, -1, 3]):
        with pytest.raises(ValueError, match="hist"):
            RRChannel(1.0, 3).class_prior(hist)


def test_extreme_budgets_stay_finite() -> None:
    for epsilon in (1e-9, 50.0, 800.0, 1e6):
        channel = RRChannel(epsilon, 10)
        assert np.isfinite(channel.matrix()).all()
        assert 0 < channel.p <= 1
        assert channel.then(channel).epsilon <= epsilon
