"""Rows, settings and shapes that no mixture can be fitted to are refused by name; what is only odd is a warning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_ext.moe.em import EMArguments, fit_em
from hf_ext.moe.parameters import MixtureShape
from tests.moe.problems import SHAPES, fitted, normal, rows_of

SOFTMAX = MixtureShape(2, "softmax", 3)
LINEAR = MixtureShape(2, "linear")


def bad(values: Tensor, place: tuple[int, ...] | int, value: float) -> Tensor:
    values = values.clone()
    values[place] = value
    return values


X_GOOD = normal(50, 3, seed=0)
Y_GOOD = torch.arange(50) % 3
NUMBERS = normal(50, seed=1)


@pytest.mark.parametrize(
    ("shape", "X", "y", "kwargs", "message"),
    [
        (SOFTMAX, bad(X_GOOD, (7, 1), float("nan")), Y_GOOD, {}, "X is nan in row 7, column 1"),
        (SOFTMAX, bad(X_GOOD, (9, 2), float("inf")), Y_GOOD, {}, "X is inf in row 9, column 2"),
        (LINEAR, X_GOOD, bad(NUMBERS, 4, float("nan")), {}, "y is nan in row 4, column 0"),
        (SOFTMAX, X_GOOD, bad(Y_GOOD, 5, 3), {}, "the label of row 5 is 3, not a class from 0 to 2"),
        (SOFTMAX, X_GOOD, bad(Y_GOOD, 5, -100), {}, "row 5 is -100.*Drop rows of -100"),
        (MixtureShape(2, "logistic"), X_GOOD, Y_GOOD, {}, "the label of row 2 is 2, not a class from 0 to 1"),
        (SOFTMAX, X_GOOD, Y_GOOD + 0.5, {}, "the label of row 0 is 0.5"),
        (LINEAR, X_GOOD, torch.full((50,), 2.0), {}, "every label is 2: linear experts need labels that vary"),
        (LINEAR, X_GOOD, NUMBERS[:, None].expand(50, 2), {}, "y has 2 numbers a row, but .* num_outputs=1"),
        (SOFTMAX, X_GOOD, Y_GOOD[:-1], {}, "X has 50 rows and y 49"),
        (SOFTMAX, X_GOOD[:, 0], Y_GOOD, {}, r"X \(50,\) must be \(rows, features\)"),
        (SOFTMAX, X_GOOD, Y_GOOD, {"sample_weight": bad(torch.ones(50), 3, -1)}, "sample_weight of row 3 is -1.0"),
        (SOFTMAX, X_GOOD, Y_GOOD, {"sample_weight": torch.zeros(50)}, "no row with a weight above 0"),
        (SOFTMAX, X_GOOD, Y_GOOD, {"sample_weight": torch.ones(9)}, "one number for each of 50 rows"),
        (
            SOFTMAX,
            X_GOOD[:7],
            Y_GOOD[:7],
            {"arguments": EMArguments(ridge=0)},
            "7 rows are fewer than .* = 8, and ridge",
        ),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_by_name(shape, X, y, kwargs, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_em(X, y, shape, **kwargs)


def test_what_is_odd_but_possible_is_a_warning(caplog) -> None:
    X = bad(X_GOOD, (slice(None), 1), 5.1)
    fit_em(X, Y_GOOD.clamp(max=1), SOFTMAX, arguments=EMArguments(max_iterations=2))
    assert "1 of 3 features are constant, the first in column 1: their scale is 1." in caplog.text
    assert "1 of 3 classes are in no row, the first is 2" in caplog.text
    caplog.clear()
    fit_em(X_GOOD[:7], Y_GOOD[:7], SOFTMAX, arguments=EMArguments(max_iterations=2))
    assert "7 rows are fewer than num_experts x (features + 1) = 8: the ridge of 0.0001 decides the fit" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "adem"}, r"method='adem' is not one of auto, em.*did you mean"),
        ({"eta": 2.0}, "eta must be a number above 0 and below 2, got 2.0"),
        ({"eta": 0.5, "method": "lbfgs"}, "method='lbfgs' makes none"),
        ({"ridge": -1.0}, "ridge must be a finite number, at least 0, got -1.0 or auto"),
        ({"ridge": "none"}, "ridge must be"),
        ({"restarts": 0}, "restarts must be a whole number, at least 1"),
        ({"tol": float("nan")}, "tol must be"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        EMArguments(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_experts": 3, "expert_type": "linear", "symmetric": True},
            "symmetric=True means two linear or logistic",
        ),
        ({"num_experts": 2, "expert_type": "softmax", "num_outputs": 3, "symmetric": True}, "symmetric=True means"),
        ({"num_experts": 0, "expert_type": "linear"}, "num_experts must be a whole number, at least 1"),
        ({"num_experts": 2, "expert_type": "softmax"}, "need num_outputs of at least 2"),
        ({"num_experts": 2, "expert_type": "logistic", "num_outputs": 2}, "has one output, got num_outputs=2"),
        ({"num_experts": 2, "expert_type": "forest"}, "'forest' is not one of"),
    ],
)
def test_shapes_that_do_not_exist_are_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureShape(**settings)


def test_so_many_features_that_no_gram_matrix_is_made_are_fitted_as_they_are_or_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    X, y = rows_of(SHAPES["softmax"], n=40)
    settings = {"method": "em", "restarts": 1, "max_iterations": 2}
    plain = fitted(SHAPES["softmax"], X, y, **settings, whiten=False)
    monkeypatch.setattr("hf_ext.moe.objective.MOST_SQUARED", X.shape[1] - 1)
    wide = fitted(SHAPES["softmax"], X, y, **settings)
    assert torch.equal(wide.parameters.experts, plain.parameters.experts)
    assert "the fit is not in whitened coordinates" in caplog.text
    X, y = rows_of(SHAPES["linear"], n=40)
    with pytest.raises(ValueError, match=r"as large as the square of the features.*principal components"):
        fit_em(X, y, SHAPES["linear"])
