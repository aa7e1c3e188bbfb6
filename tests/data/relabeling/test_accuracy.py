"""Accuracy without clean labels: unbiased, covered by its interval, paired, and never silently wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_ext.data.relabeling import RRChannel, accuracy_difference, noisy_accuracy
from hf_ext.guards.rows import RowError
from tests.data.relabeling.oracle import channel_matrix

REPEATS = 2000
# epsilon, classes, rows, accuracy: the specification's settings, and small or extreme ones
SETTINGS = [
    (1.0, 10, 4000, 0.735),
    (1.0, 7, 1500, 0.82),
    (2.0, 77, 2000, 0.35),
    (3.0, 77, 2000, 0.71),
    (3.0, 10, 4000, 0.83),
    (1.0, 77, 1000, 0.9),
    (4.0, 7, 200, 0.98),
    (0.5, 2, 300, 0.6),
]


def draws(rng: np.random.Generator, epsilon: float, k: int, n: int, accuracy: float, repeats: int) -> tuple:
    """Predictions and noisy labels of rows that are new in every repeat, shape `(repeats, n)`; true accuracies."""
    true = rng.integers(0, k, (repeats, n))
    right = rng.random((repeats, n)) < accuracy
    predicted = np.where(right, true, (true + rng.integers(1, k, (repeats, n))) % k)
    p = channel_matrix(epsilon, k)[0, 0]
    noisy = np.where(rng.random((repeats, n)) < p, true, (true + rng.integers(1, k, (repeats, n))) % k)
    return predicted, noisy, right.mean(axis=1)


@pytest.mark.parametrize(("epsilon", "k", "n", "accuracy"), SETTINGS)
def test_it_is_unbiased_and_its_interval_covers_in_2000_repeats(
    epsilon: float, k: int, n: int, accuracy: float
) -> None:
    channel, rng = RRChannel(epsilon, k), np.random.default_rng(0)
    values, covered, own = [], 0, 0
    for _ in range(REPEATS // 200):
        predicted, noisy, truth = draws(rng, epsilon, k, n, accuracy, 200)
        for i in range(200):
            found = noisy_accuracy(noisy[i], predicted[i], channel, out_of_fold=True)
            values.append(found.value)
            covered += found.low <= accuracy <= found.high
            own += found.low <= truth[i] <= found.high
    error = np.std(values) / math.sqrt(REPEATS)
    assert abs(np.mean(values) - accuracy) < 4 * error
    assert np.std(values) == pytest.approx(found.se, rel=0.15)
    assert covered >= 0.94 * REPEATS
    assert own >= 0.94 * REPEATS  # of the accuracy on these very rows


def test_the_coverage_test_fails_for_in_sample_predictions() -> None:
    """A model that agrees with a third of its noise is outside the interval nearly always."""
    rng, channel = np.random.default_rng(0), RRChannel(1.0, 7)
    predicted, noisy, _ = draws(rng, 1.0, 7, 1500, 0.8, 200)
    memorised = np.where(rng.random(noisy.shape) < 0.33, noisy, predicted)
    covered = 0
    for i in range(200):
        found = channel.accuracy(float((memorised[i] == noisy[i]).mean()), 1500)
        covered += found.low <= 0.8 <= found.high
    assert covered < 10


def test_in_sample_predictions_are_said_to_be_wrong() -> None:
    labels, channel = [0, 1, 2, 3] * 50, RRChannel(1.0, 4)
    for flags in (False, [True] * 199 + [False], np.zeros(200, dtype=bool)):
        with pytest.warns(UserWarning, match="in-sample predictions: the model saw these labels"):
            found = noisy_accuracy(labels, labels, channel, out_of_fold=flags)
        assert "this figure is too high" in found.notes[-1]
        assert "above 1" in found.notes[0]
    assert noisy_accuracy(labels, [0] * 200, channel, out_of_fold=[True] * 200).notes == ()


def test_a_model_below_chance_and_one_above_one_are_reported_unclipped() -> None:
    channel = RRChannel(2.0, 4)
    labels = np.arange(400) % 4
    worse = noisy_accuracy(labels, (labels + 1) % 4, channel)
    assert worse.value < 0
    assert "worse than chance" in worse.notes[0]
    better = noisy_accuracy(labels, labels, channel)
    assert better.value > 1
    assert better.high > 1
    assert "in-sample" in better.notes[0]


def test_rows_of_unequal_channels_go_together() -> None:
    rng = np.random.default_rng(0)
    channels = {"a": RRChannel(1.0, 5), "b": RRChannel(3.0, 5)}
    values, covered = [], 0
    for _ in range(400):
        parts = [draws(rng, channels[name].epsilon, 5, 600, 0.7, 1) for name in channels]
        predicted, noisy = (np.concatenate([part[j][0] for part in parts]) for j in (0, 1))
        found = noisy_accuracy(noisy, predicted, channels, channel_ids=["a"] * 600 + ["b"] * 600)
        values.append(found.value)
        covered += found.low <= 0.7 <= found.high
    assert abs(np.mean(values) - 0.7) < 4 * np.std(values) / 20
    assert np.std(values) == pytest.approx(found.se, rel=0.2)
    assert covered >= 0.91 * 400  # three standard errors below 0.95
    with pytest.raises(ValueError, match="no channel named 'c'"):
        noisy_accuracy([0, 1], [0, 1], channels, channel_ids=["a", "c"])
    with pytest.raises(ValueError, match="needs channel_ids"):
        noisy_accuracy([0, 1], [0, 1], channels)


def test_tokens_of_a_sentence_stand_and_fall_together() -> None:
    """Accuracy varies by sentence: an interval over tokens would be too short, one over sentences covers."""
    rng, channel, k = np.random.default_rng(0), RRChannel(2.0, 5), 5
    values, covered = [], 0
    for _ in range(120):
        labels, predicted = [], []
        for _ in range(120):
            n = int(rng.integers(3, 30))
            predicted_row, noisy, _ = draws(rng, 2.0, k, n, float(rng.choice([0.3, 0.9])), 1)
            labels.append([-100, *noisy[0].tolist()])
            predicted.append([0, *predicted_row[0].tolist()])
        found = noisy_accuracy(labels, predicted, channel)
        values.append(found.value)
        covered += found.low <= 0.6 <= found.high
    assert abs(np.mean(values) - 0.6) < 4 * np.std(values) / math.sqrt(120)
    assert covered >= 0.89 * 120
    agree = found.value * channel.p + (1 - found.value) * channel.q
    assert found.se > 1.5 * channel.accuracy(agree, found.n).se


def test_a_paired_difference_is_unbiased_and_sharper_than_two_intervals() -> None:
    rng, channel = np.random.default_rng(0), RRChannel(1.0, 7)
    values, errors, covered = [], [], 0
    for _ in range(500):
        first, noisy, _ = draws(rng, 1.0, 7, 1500, 0.8, 1)
        second = np.where(rng.random(1500) < 0.05, rng.integers(0, 7, 1500), first[0])  # nearly the same predictions
        found = accuracy_difference(noisy[0], first[0], second, channel)
        values.append(found.value)
        errors.append(found.se)
        covered += found.low <= 0.05 * (0.8 - 1 / 7) <= found.high
    assert abs(np.mean(values) - 0.05 * (0.8 - 1 / 7)) < 4 * np.std(values) / math.sqrt(500)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.15)
    assert covered >= 0.92 * 500
    alone = noisy_accuracy(noisy[0], first[0], channel).se
    assert np.mean(errors) < alone / 2
    assert accuracy_difference(noisy[0], first[0], first[0], channel).se == 0


def test_the_figures_of_a_case_worked_by_hand() -> None:
    """epsilon = log 3, 4 classes: p = 1/2, q = 1/6. Of 6 labels 3 agree: (1/2 - 1/6) / (1/3) = 1."""
    channel = RRChannel(math.log(3), 4)
    found = noisy_accuracy([0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2], channel)
    assert found.value == pytest.approx(1)
    assert found.se == pytest.approx(3 * math.sqrt(0.25 / 6))
    assert found.n == 6
    tokens = noisy_accuracy([[0, 1, -100], [2, 3, 0, 1]], [[0, 1, 3], [2, 0, 1, 2]], channel)
    assert tokens.value == pytest.approx(1)
    assert tokens.n == 6
    assert str(noisy_accuracy([0], [0], channel)).startswith("2.500 [")
    assert math.isinf(noisy_accuracy([[0, 1]], [[0, 1]], channel).se)


def test_what_cannot_be_compared_is_refused() -> None:
    channel = RRChannel(1.0, 4)
    with pytest.raises(ValueError, match="2 labels and 1 predictions"):
        noisy_accuracy([0, 1], [0], channel)
    with pytest.raises(ValueError, match="at least one"):
        noisy_accuracy([], [], channel)
    with pytest.raises(ValueError, match="every label is -100"):
        noisy_accuracy([[-100]], [[0]], channel)
    with pytest.raises(ValueError, match="numbers of tokens"):
        noisy_accuracy([[0, 1]], [[0]], channel)
    with pytest.raises(ValueError, match="numbers of tokens"):
        noisy_accuracy([0], [[0]], channel)
    with pytest.raises(RowError, match="row 1, column 'labels'"):
        noisy_accuracy([0, 4], [0, 1], channel)
    with pytest.raises(RowError, match="row 0, column 'predictions'"):
        noisy_accuracy([0, 1], ["a", "b"], channel)
    with pytest.raises(TypeError, match="must be an RRChannel"):
        noisy_accuracy([0], [0], (0.5, 0.1))
