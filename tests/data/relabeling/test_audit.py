"""The audit passes what is private and fails what is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from hf_ext.data.relabeling import RandomizedResponse, RRChannel, audit_channel
from tests.data.relabeling.oracle import channel_matrix, chi_square_p, key, response


@pytest.mark.parametrize(("epsilon", "k"), [(0.5, 2), (1.0, 7), (3.0, 77)])
def test_an_honest_mechanism_passes(epsilon: float, k: int) -> None:
    report = audit_channel(response(epsilon, k), n=100_000)
    assert report.passed
    assert report.n == report.counts.sum() == 100_000
    assert report.realised_epsilon <= epsilon
    assert report.lower_epsilon <= epsilon
    assert report.lower_epsilon > epsilon - 0.5
    expected = chi_square_p(report.counts, channel_matrix(epsilon, k))
    assert chi2.sf(report.chi_square, k * (k - 1)) == pytest.approx(expected, rel=1e-9)
    # torch 2.13's gammaincc is right to 3e-6 in float64 at these sizes, by mpmath; scipy's, to 1e-14.
    assert report.p_value == pytest.approx(expected, rel=1e-5)
    bound = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    assert report.attack_bound == pytest.approx(bound)
    assert abs(report.attack_success - bound) < 5 * math.sqrt(bound * (1 - bound) / 100_000)


@pytest.mark.slow
def test_an_honest_mechanism_passes_on_a_million_draws() -> None:
    assert audit_channel(response(1.0, 10)).passed


class Louder(RandomizedResponse):
    """States its epsilon and spends a tenth more."""

    def _draw(self, labels: Any, noise: Any, priors: Any) -> Any:
        return RandomizedResponse(self.epsilon * 1.1, self.num_classes, self.key)._draw(labels, noise, priors)


class Redraws(RandomizedResponse):
    """Draws anew whenever it is called, like a seeded generator that moves on."""

    def _draw(self, labels: Any, noise: Any, priors: Any) -> Any:
        fresh = np.random.default_rng().integers(0, 2**64, noise.shape, dtype=np.uint64)
        return super()._draw(labels, fresh, priors)


class Skewed(RandomizedResponse):
    """Prefers class 0 among the wrong ones: the right attack success, another channel."""

    def _draw(self, labels: Any, noise: Any, priors: Any) -> Any:
        noisy = super()._draw(labels, noise, priors)
        return np.where((noisy != labels) & (noisy == 1) & (labels != 0), 0, noisy)


@pytest.mark.parametrize("mechanism", [Louder, Redraws, Skewed])
def test_a_dishonest_one_fails(mechanism: type[RandomizedResponse]) -> None:
    report = audit_channel(mechanism(1.0, 5, key()), n=200_000)
    assert not report.passed
    assert report.repeated == (mechanism is not Redraws)


def test_the_best_guess_from_a_noisy_label_is_no_better_than_the_bound() -> None:
    """Under a uniform prior nothing beats guessing the label that came out, whatever rule one tries."""
    n, k, epsilon = 60_000, 5, 1.0
    true = np.arange(n) % k
    noisy = np.array(response(epsilon, k)({"id": list(range(n)), "label": true.tolist()})["label"])
    bound = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    counts = np.bincount(noisy * k + true, minlength=k * k).reshape(k, k)
    best_rule = counts.max(axis=1).sum() / n
    assert best_rule <= bound + 5 * math.sqrt(bound * (1 - bound) / n)


def test_what_it_cannot_audit_is_refused() -> None:
    with pytest.raises(TypeError, match="got function"):
        audit_channel(lambda batch: batch)
    with pytest.raises(ValueError, match="leave prior_column and after out"):
        audit_channel(response(1.0, 3, after=RRChannel(1.0, 3)))
