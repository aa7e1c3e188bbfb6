"""The separable Gaussian setting of the paper's theory: its ordering across noise rates, accuracy in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import norm

from hf_ext.data.relabeling import relabel

# x = y (1 + u) gamma mu + z with z orthogonal to mu: a margin of gamma between the classes. u is exponential.
GAMMA, WIDTH, ROWS, SEEDS = 1.0, 100, 600, 8
FLIPS = (0.1, 0.2, 0.3, 0.4, 0.45)


def accuracy(theta: np.ndarray) -> float:
    """P(y theta.x > 0), by quadrature over u: the rest is a Gaussian of standard deviation |theta| across mu."""
    points, weights = np.polynomial.laguerre.laggauss(40)
    along, across = theta[0], float(np.linalg.norm(theta[1:]))
    return float(weights @ norm.cdf((1 + points) * GAMMA * along / across))


def linear(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The classifier of the theory: the mean of the rows, each with its label's sign."""
    return ((2 * labels - 1)[:, None] * x).mean(axis=0)


def rounds(flip: float, seed: int) -> dict[str, float]:
    """Accuracy of round 1 and of both retraining rounds, the rows chosen and relabelled by the library."""
    rng = np.random.default_rng(seed)
    y, u, x = rng.integers(0, 2, ROWS), rng.exponential(1, ROWS), rng.standard_normal((ROWS, WIDTH))
    x[:, 0] = (2 * y - 1) * (1 + u) * GAMMA
    given = np.where(rng.random(ROWS) < flip, 1 - y, y)
    theta = linear(x, given)
    rows = Dataset.from_dict({"row": np.arange(ROWS), "label": given, "pred": (x @ theta > 0).astype(np.int64)})
    found = {"round 1": accuracy(theta)}
    for mode in ("full", "consensus"):
        kept = relabel(rows, mode)
        found[mode] = accuracy(linear(x[np.asarray(kept["row"])], np.asarray(kept["label"])))
    return found


@pytest.fixture(scope="module")
def means() -> dict[float, dict[str, float]]:
    found = {flip: [rounds(flip, seed) for seed in range(SEEDS)] for flip in FLIPS}
    return {flip: {name: float(np.mean([r[name] for r in runs])) for name in runs[0]} for flip, runs in found.items()}


def test_retraining_beats_round_one_where_the_noise_is_high(means: dict) -> None:
    for flip in (0.3, 0.4, 0.45):
        for mode in ("full", "consensus"):
            assert means[flip][mode] > means[flip]["round 1"] + 0.004
    assert means[0.4]["full"] > means[0.4]["round 1"] + 0.05
    assert means[0.45]["full"] > means[0.45]["round 1"] + 0.1


def test_its_gain_grows_with_the_noise(means: dict) -> None:
    for mode in ("full", "consensus"):
        gains = [means[flip][mode] - means[flip]["round 1"] for flip in FLIPS]
        assert gains == sorted(gains)


def test_there_is_nothing_to_gain_where_the_noise_is_low(means: dict) -> None:
    assert means[0.1]["round 1"] > 0.999
    assert abs(means[0.1]["full"] - means[0.1]["round 1"]) < 1e-3


def test_in_this_setting_full_retraining_is_ahead_of_consensus(means: dict) -> None:
    assert means[0.45]["full"] > means[0.45]["consensus"]


def test_beyond_the_bound_on_rows_retraining_gains_nothing() -> None:
    """d / (1 - 2p)^2 = 10,000 rows are needed at p = 0.45 for d = 100; with 60 retraining starts from chance."""
    rng, gains = np.random.default_rng(0), []
    for _ in range(40):
        y, x = rng.integers(0, 2, 60), rng.standard_normal((60, WIDTH))
        x[:, 0] = (2 * y - 1) * (1 + rng.exponential(1, 60)) * GAMMA
        given = np.where(rng.random(60) < 0.49, 1 - y, y)
        theta = linear(x, given)
        gains.append(accuracy(linear(x, (x @ theta > 0).astype(np.int64))) - accuracy(theta))
    assert abs(float(np.mean(gains))) < 0.05
