"""What a fit does where EM alone would fail: dead experts, failed steps, poor starts, over-fitting."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.arguments import RIDGES
from hf_ext.moe.em import EMArguments, FitLog, MixtureFit, fit_em
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.state import EM
from tests.moe.problems import SHAPES, fitted, normal, rows_of


def test_an_expert_that_handles_nobody_starts_again_on_the_rows_explained_worst(caplog) -> None:
    shape = MixtureShape(2, "linear")
    X, y = rows_of(shape, n=600, d=3)
    fit = MixtureFit(X, y, shape, EMArguments(method="em", restarts=1, max_iterations=60, max_reseeds=2))
    free, log_variance = fit.objective.free_vectors(fit.state.point)
    free[0, 0, -1] = -60  # the gate hands expert 0 nothing
    free[0, 2:] = free[0, 3:]
    fit.state.point[:] = fit.objective.pack(free, log_variance)
    values = []
    with caplog.at_level(logging.INFO, logger="hf_ext.moe"):
        while not fit.finished:
            values.append(fit.step().objective)
    assert "reseed: expert 0 of restart 0 handled 0.0 rows" in caplog.text
    result = fit.result()
    assert result.reseeds == 1
    assert result.objective <= fitted(shape, X, y, method="em").objective + 1e-3
    assert result.dead_experts == []


def test_a_dead_expert_is_pruned_where_that_is_allowed() -> None:
    shape = MixtureShape(3, "softmax", 4)
    X, y = rows_of(shape, n=400)
    settings = {"method": "em", "restarts": 1, "max_iterations": 3, "max_reseeds": 0}
    results = []
    for prune in (False, True):
        fit = MixtureFit(X, y, shape, EMArguments(prune=prune, **settings))
        free, log_variance = fit.objective.free_vectors(fit.state.point)
        free[0, 1, -1] = -60
        fit.state.point[:] = fit.objective.pack(free, log_variance)
        fit.step()
        results.append(fit.result())
    assert results[0].dead_experts == results[1].dead_experts == [1]
    assert [len(result.parameters.gate) for result in results] == [3, 2]
    torch.testing.assert_close(
        results[0].parameters.predict(X), results[1].parameters.predict(X), rtol=1e-9, atol=1e-9
    )


def test_a_m_step_that_raises_the_objective_is_made_again_and_then_ends_the_fit() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    fit = MixtureFit(X, y, shape, EMArguments(method="em", restarts=2, finalists=2, max_iterations=20))
    for _ in range(3):
        fit.step()
    good = fit.state.valued_point.clone()
    for strikes in (1, 2):
        fit.state.point[0] += 3 * normal(fit.state.point.shape[1], seed=1)  # a broken M-step
        fit.step()
        assert fit.state.strikes[0] == strikes
        assert torch.equal(fit.state.valued_point[0], good[0])
        assert (fit.state.stop[0] != 0) == (strikes == 2)
    assert fit.state.stop[1] == 0
    fit.state.objective[0] = -1.0  # so that restart 0 is the best
    assert fit.result().stop_reason in ("m_step", "running")


def test_an_over_relaxed_step_that_fails_is_made_again_with_the_unit_step() -> None:
    shape = SHAPES["linear"]
    X, y = rows_of(shape, n=80, d=3, seed=2)
    arguments = {"method": "em", "restarts": 1, "tol": 0, "max_iterations": 40, "max_reseeds": 0}
    fit = MixtureFit(X, y, shape, EMArguments(eta=1.95, **arguments))
    values = []
    strikes = 0
    while not fit.finished:
        values.append(fit.step().objective)
        strikes += int(fit.state.strikes.sum())
    assert strikes > 0
    assert (np.diff(values) <= 1e-9).all()
    assert fit.result().stop_reason != "m_step"


def test_an_expert_with_a_variance_of_its_own_does_not_collapse_onto_a_few_rows() -> None:
    shape = MixtureShape(2, "linear", shared_variance=False)
    X, y = rows_of(shape, n=60, d=2)
    y[:5] = 3.0
    X[:5] = X[0]  # five equal rows: an expert through them has no error
    for method in ("em", "lbfgs"):
        result = fitted(shape, X, y, method=method, restarts=6, finalists=6, max_iterations=40)
        assert result.parameters.variance.min() >= 0.99e-6 * y.var(correction=0)
        assert np.isfinite(result.objective)


def test_restarts_are_thinned_out_to_the_best_and_the_first_do_not_depend_on_their_number() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    fit = MixtureFit(X, y, shape, EMArguments(method="em", restarts=4, finalists=2, max_iterations=9))
    while fit.state.passes.max() < 11:  # the next E-step ends the first round, of 12 passes each
        fit.step()
    assert fit.state.restart.tolist() == [0, 1, 2, 3]
    probe = fit.objective.likelihood(fit.state.point, fit.state.ridge).value
    spent = fit.state.passes.clone()
    total = fit.state.total_passes()
    fit.step()
    finalists = probe.argsort()[:2]
    assert fit.state.restart.tolist() == finalists.tolist()
    # One E-step of each of the four; the two that go on use it for their M-step.
    m_steps = fit.state.passes - spent[finalists] - 1
    assert (m_steps >= 2).all()
    assert fit.state.total_passes() == pytest.approx(total + 4 + m_steps.sum().item())
    two = MixtureFit(X, y, shape, EMArguments(method="em", restarts=2))
    four = MixtureFit(X, y, shape, EMArguments(method="em", restarts=4))
    assert torch.equal(two.state.point, four.state.point[:2])
    assert (four.state.phase == EM).all()


def test_each_round_of_restarts_goes_twice_as_far_and_ends_with_half_of_them() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    fit = MixtureFit(X, y, shape, EMArguments(method="lbfgs", restarts=8, tol=0))
    history = {}  # of restarts that go on: passes and objective of each at the end of the round
    while len(fit.state.restart) > 1:
        count = len(fit.state.restart)
        ranks = fit.state.objective.argsort()
        order = fit.state.restart[ranks].tolist()
        passes = fit.state.passes.max().item()
        fit.step()
        if len(fit.state.restart) < count:
            history[count] = (passes, order, fit.state.restart.tolist())
    assert list(history) == [8, 4, 2]
    for limit, (passes, order, survivors) in zip((12, 24, 48), history.values(), strict=True):
        assert limit <= passes < limit + 12  # a line search takes 12 evaluations at most
        assert survivors == order[: len(order) // 2]


def test_auto_starts_half_of_the_restarts_with_em_and_hands_over_to_lbfgs() -> None:
    X, y = rows_of(SHAPES["softmax"])
    fit = MixtureFit(X, y, SHAPES["softmax"], EMArguments(restarts=4))
    assert fit.state.phase.tolist() == [1, 1, 0, 0]
    fit.step()
    spent = fit.state.passes
    assert spent[:2].min() >= spent[2:].max()
    fit.step()
    fit.step()
    assert fit.state.phase.tolist() == [1, 1, 1, 1]


def test_every_other_start_of_a_classifier_has_a_gate_that_tells_clusters_of_the_features_apart() -> None:
    shape = MixtureShape(2, "softmax", 4)
    cluster = torch.arange(300) % 2
    X = torch.stack([18.0 * cluster, 2.0 * cluster], dim=1).double() + normal(300, 2, seed=0)
    y = torch.arange(300) // 75
    for whiten in (True, False):
        fit = MixtureFit(X, y, shape, EMArguments(restarts=6, whiten=whiten))
        logits = torch.stack([fit.parameters(point).outputs(X)[0] for point in fit.state.point])
        centred = logits - logits.mean(2, keepdim=True)
        assert centred[::2].square().mean((1, 2)).sqrt().tolist() == pytest.approx([3.0] * 3)
        for choices in logits[::2].argmax(2):
            assert torch.equal(choices == choices[0], cluster == 0)
        assert centred[1::2].abs().max() < 1
    assert fit.state.total_passes() > 3 * 4.5 * 2 / 10  # k-means has its price


def test_held_out_rows_stop_a_restart_and_choose_its_best_point() -> None:
    shape = MixtureShape(2, "softmax", 4)
    X, y = rows_of(shape, n=500, d=30, norm=1.0)
    train, test = (X[:150], y[:150]), (X[150:], y[150:])
    seen: list[FitLog] = []
    early = fit_em(
        *train,
        shape,
        arguments=EMArguments(method="lbfgs", restarts=1, patience=5),
        held_out=test,
        callback=seen.append,
    )
    late = fit_em(*train, shape, arguments=EMArguments(method="lbfgs", restarts=1, max_iterations=80))
    assert early.stop_reason == "held_out"
    held = moe_nll(*early.parameters.outputs(test[0]), test[1]).mean().item()
    assert early.held_out_nll == pytest.approx(held) == pytest.approx(min(log.held_out_nll for log in seen))
    assert held < moe_nll(*late.parameters.outputs(test[0]), test[1]).mean().item() - 0.1


def test_ridge_auto_takes_the_penalty_that_held_out_rows_prefer() -> None:
    shape = MixtureShape(2, "logistic")
    X, y = rows_of(shape, n=600, d=40, norm=1.0)
    train, test = (X[:200], y[:200]), (X[200:], y[200:])
    result = fit_em(*train, shape, arguments=EMArguments(ridge="auto", restarts=2), held_out=test)
    fixed = fit_em(*train, shape, arguments=EMArguments(ridge=1e-5, restarts=2), held_out=test)
    assert result.ridge >= 1e-2
    assert result.held_out_nll <= fixed.held_out_nll
    with pytest.raises(ValueError, match="ridge='auto' compares penalties on held-out rows"):
        MixtureFit(*train, shape, EMArguments(ridge="auto"))


@pytest.mark.parametrize("method", ["auto", "em", "lbfgs"])
def test_ridge_auto_compares_all_penalties_though_every_restart_converges_in_the_first_round(method: str) -> None:
    shape = MixtureShape(1, "logistic")
    X, y = rows_of(shape, n=200, d=2)
    arguments = EMArguments(method=method, ridge="auto", tol=1e-2)
    fit = MixtureFit(X, y, shape, arguments, held_out=(X[:50], y[:50]))
    while not fit.finished:
        fit.step()
    assert fit.state.ridge.tolist() == list(RIDGES)
    assert fit.state.held_out.isfinite().all()


def test_separable_classes_without_a_ridge_stop_with_advice(caplog) -> None:
    X = torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None] ** 3
    y = (X[:, 0] > 0).long()
    result = fitted(MixtureShape(1, "logistic"), X, y, ridge=0.0, tol=0)
    assert result.stop_reason == "separable"
    assert "the classes can be separated" in caplog.text
    assert "Set ridge" in caplog.text
