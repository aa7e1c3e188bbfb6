"""A fit as a whole: monotone, resumable to the bit, the same over shards, and safe where EM is not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.arguments import RIDGES
from hf_ext.moe.diagnostics import diagnose, mim_lambda_max
from hf_ext.moe.em import EMArguments, EMResult, FitLog, MixtureFit, fit_em
from hf_ext.moe.lbfgs import Curvature
from hf_ext.moe.m_steps import m_step_lbfgs, m_step_linear
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.state import EM
from tests.moe.problems import SHAPES, normal, rows_of, true_nll
from tests.moe.test_m_steps import converged

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
METHODS = ("em", "em+lbfgs", "lbfgs", "auto")


def fitted(shape: MixtureShape, X: Tensor, y: Tensor, seed: int = 0, **settings: object) -> EMResult:
    generator = torch.Generator().manual_seed(seed)
    return fit_em(X, y, shape, arguments=EMArguments(**settings), generator=generator)


def penalised(result: EMResult, X: Tensor, y: Tensor) -> float:
    """The objective from the parameters alone: the loss on raw rows, and the penalty in standardised labels."""
    p = result.parameters
    labels = y.view(len(y), -1) if p.expert_type == "linear" else y
    nll = moe_nll(*p.outputs(X), labels, expert_type=p.expert_type, variance=p.variance).mean().item()
    spread = labels.std(0, correction=0).square().mean().sqrt() if p.expert_type == "linear" else 1.0
    squares = p.gate[:, :-1].square().sum() + (p.experts[..., :-1] / spread).square().sum()
    return nll + 0.5 * result.ridge * squares.item()


# --- what a fit is ---------------------------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_the_objective_that_its_parameters_have(shape: MixtureShape, method: str) -> None:
    X, y = rows_of(shape)
    result = fitted(shape, X, y, method=method, max_iterations=6, em_iterations=2, restarts=2)
    if not shape.symmetric or shape.expert_type != "linear":  # whose labels are scaled about 0, not their mean
        assert result.objective == pytest.approx(penalised(result, X, y), rel=1e-9)
    _, row_log_likelihood = result.parameters.posterior(X, y.view(len(y), -1) if shape.expert_type == "linear" else y)
    assert result.nll == pytest.approx(-row_log_likelihood.mean().item(), rel=1e-9)
    assert result.shares.sum().item() == pytest.approx(1)
    assert result.parameters.predict(X).isfinite().all()


def test_em_never_raises_the_objective_whatever_problem_step_and_number_of_inner_steps() -> None:
    rng = np.random.default_rng(0)
    for case in range(10):  # of twenty starts each
        shape = list(SHAPES.values())[case % len(SHAPES)]
        X, y = rows_of(shape, n=60, d=2, seed=case, norm=rng.uniform(0.5, 6))
        arguments = EMArguments(
            method="em", restarts=20, finalists=20, inner_steps=1 + 2 * case, max_reseeds=0, tol=0,
            ridge=float(10 ** rng.uniform(-4, -1)), eta=float(rng.choice([1.0, 0.5, 1.5])), whiten=bool(case % 2),
        )  # fmt: skip
        fit = MixtureFit(X, y, shape, arguments)
        values = []
        for _ in range(5):
            fit.step()
            values.append(fit.state.objective.clone())
        rises = torch.stack(values).diff(dim=0)
        assert (rises <= 1e-9 * (1 + values[0].abs())).all(), (case, shape, values)


def test_gradient_em_with_one_step_is_gradient_descent_on_the_likelihood_parameter_for_parameter() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    shared = {"restarts": 1, "max_iterations": 5, "learning_rate": 0.3, "whiten": False}
    one = fitted(shape, X, y, method="gradient_em", inner_steps=1, **shared).parameters
    gd = fitted(shape, X, y, method="gd", **shared).parameters
    assert torch.equal(one.gate, gd.gate)
    assert torch.equal(one.experts, gd.experts)
    # and by autograd, from the same start
    fit = MixtureFit(X, y, shape, EMArguments(method="gd", **shared))
    point = fit.state.point.clone()
    for _ in range(5):
        leaf = point.clone().requires_grad_()
        vectors, _ = fit.objective.vectors(leaf)
        logits = fit.objective.rows.X @ vectors[0].T
        loss = moe_nll(logits[:, :3], logits[:, 3:].unflatten(1, (3, 4)), y).mean()
        loss = loss + 0.5e-4 * vectors[0, :, :-1].square().sum()
        point = point - 0.3 * torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(fit.parameters(point[0]).experts, gd.experts, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("expert_type", "outputs"), [("softmax", 3), ("logistic", 1)])
def test_one_expert_is_scikit_learns_logistic_regression(expert_type: str, outputs: int) -> None:
    shape = MixtureShape(1, expert_type, outputs)
    X, y = rows_of(shape, norm=2.0)
    p = fitted(shape, X, y, ridge=0.01, tol=1e-14).parameters
    theirs = LogisticRegression(C=1 / (0.01 * len(X)), tol=1e-10, max_iter=5000)
    theirs.fit(((X - X.mean(0)) / X.std(0, correction=0)).numpy(), y.numpy())
    np.testing.assert_allclose(p.experts[0, :, :-1].numpy(), theirs.coef_, rtol=1e-5, atol=1e-5)
    shares = p.predict(X).exp().numpy()
    np.testing.assert_allclose(
        shares, theirs.predict_proba(((X - X.mean(0)) / X.std(0, correction=0)).numpy()), atol=1e-5
    )


def test_one_linear_expert_is_least_squares_in_the_labels_unit() -> None:
    shape = MixtureShape(1, "linear")
    X, y = rows_of(shape)
    y = 1000 * y + 5000
    p = fitted(shape, X, y, ridge=0.0).parameters
    left = np.column_stack([X.numpy(), np.ones(len(X))])
    solution, squares, *_ = np.linalg.lstsq(left, y.numpy(), rcond=None)
    np.testing.assert_allclose(p.predict(X)[:, 0].numpy(), left @ solution, rtol=1e-9)
    assert p.variance.item() == pytest.approx(squares[0] / len(X), rel=1e-9)


@pytest.mark.parametrize("method", ["em", "lbfgs"])
def test_a_row_of_weight_two_is_the_row_twice(method: str) -> None:
    shape = SHAPES["logistic"]
    X, y = rows_of(shape, n=120)
    twice = torch.cat([X, X[:40]]), torch.cat([y, y[:40]])
    weights = torch.ones(len(X))
    weights[:40] = 2
    arguments = EMArguments(method=method, restarts=2, max_iterations=10)
    weighted = fit_em(X, y, shape, arguments=arguments, sample_weight=weights)
    doubled = fit_em(*twice, shape, arguments=arguments)
    assert weighted.objective == pytest.approx(doubled.objective, rel=1e-9)
    torch.testing.assert_close(weighted.parameters.experts, doubled.parameters.experts, rtol=1e-6, atol=1e-7)


def test_permuting_the_experts_of_a_start_permutes_everything() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    order = torch.tensor([2, 0, 1])
    results = []
    for permuted in (False, True):
        fit = MixtureFit(X, y, shape, EMArguments(method="em", restarts=1, max_iterations=8))
        if permuted:
            free = fit.state.point.view(1, -1, fit.objective.width)
            experts = free[:, 3:].unflatten(1, (3, 4))[:, order].flatten(1, 2)
            fit.state.point[:] = torch.cat([free[:, :3][:, order], experts], dim=1).flatten(1)
        for _ in range(8):
            fit.step()
        results.append(fit.result().parameters)
    torch.testing.assert_close(results[0].gate[order], results[1].gate, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(results[0].experts[order], results[1].experts, rtol=1e-7, atol=1e-8)


def test_em_reaches_the_true_likelihood_in_nineteen_of_twenty_mixed_regressions() -> None:
    shape = MixtureShape(2, "linear")
    hits = 0
    for seed in range(0, 200, 10):
        X, y = rows_of(shape, n=300, d=5, seed=seed)
        hits += (
            fitted(shape, X, y, method="em", seed=seed, tol=1e-4).nll <= true_nll(shape, n=300, d=5, seed=seed) + 1e-3
        )
    assert hits >= 19


# --- the rate --------------------------------------------------------------------------------------------------------


@every_shape
def test_ems_rate_is_the_eigenvalue_of_the_missing_information(shape: MixtureShape) -> None:
    X, y = rows_of(shape, n=200, d=2, norm=2.0, seed=3)
    fit = MixtureFit(X, y, shape, EMArguments(method="lbfgs", restarts=1, tol=1e-13, ridge=1e-2))
    while not fit.finished:
        fit.step()  # a stationary point of the likelihood is a fixed point of EM
    point = fit.state.point[0]
    moves = 1e-4 * torch.eye(len(point), dtype=torch.float64)
    ends = exact_em_step(fit.objective, torch.cat([point + moves, point - moves]), fit.ridge)
    ahead, behind = ends.split(len(point))
    derivative = (ahead - behind) / 2e-4
    eigenvalues = torch.linalg.eigvals(derivative).abs()
    # A shift of the gate's intercepts, or of those of a softmax expert, changes nothing, and no step undoes it.
    shifts = 0 if shape.symmetric else 1 + (shape.num_experts if shape.expert_type == "softmax" else 0)
    assert int((eigenvalues > 1 - 1e-6).sum()) >= shifts  # more where an intercept runs off to infinity
    rate = eigenvalues[eigenvalues < 1 - 1e-6].max().item()
    assert mim_lambda_max(fit.objective, point, fit.ridge, iterations=25) == pytest.approx(rate, rel=2e-3)
    seen = diagnose(fit)
    assert seen.mim_lambda_max == pytest.approx(rate, rel=0.02)
    assert seen.predicted_iterations == pytest.approx(np.log(1e-6) / np.log(seen.mim_lambda_max))
    assert ("switch to em+lbfgs" in seen.advice) == (seen.mim_lambda_max > 0.98)


def exact_em_step(objective: Objective, points: Tensor, ridge: float) -> Tensor:
    """One EM step with its M-step solved to the end, from each of some coordinates `(A, P)`."""
    penalty = torch.full((len(points),), ridge, dtype=torch.float64)
    targets = Targets(objective.e_step(points, penalty).responsibilities)
    if objective.shape.expert_type != "linear":
        return converged(objective, points, penalty, targets)
    points = m_step_linear(objective, points, penalty, targets).point
    gate = points[:, : objective.shape.gate_rows * objective.width]
    descent = m_step_lbfgs(
        objective, gate, penalty, targets, None, Curvature.empty(*gate.shape, gate),
        steps=300, tolerance=torch.full_like(penalty, 1e-11), gate_only=True,
    )  # fmt: skip
    return torch.cat([descent.point, points[:, gate.shape[1] :]], dim=1)


def test_diagnostics_count_rows_and_measure_what_they_say() -> None:
    shape = MixtureShape(2, "linear", shared_variance=False)
    X, y = rows_of(shape, n=400, d=3)
    fit = MixtureFit(X, y, shape, EMArguments(method="em", restarts=1, max_iterations=30))
    while not fit.finished:
        fit.step()
    seen = diagnose(fit)
    p = fit.parameters(fit.state.point[0])
    r, _ = p.posterior(X, y[:, None])
    gate_logits, outputs = p.outputs(X)
    gate = gate_logits.softmax(-1)
    assert seen.n_i == pytest.approx(r.sum(0).tolist())
    assert seen.gate_entropy == pytest.approx(-(gate * gate.log()).sum(1).mean().item())
    assert seen.snr == pytest.approx((outputs[..., 0].std(0, correction=0) / p.variance.sqrt()).tolist())
    normals = [torch.distributions.Normal(outputs[:, i, 0], p.variance[i].sqrt()) for i in range(2)]
    kl = [torch.distributions.kl_divergence(normals[i], normals[1 - i]).mean().item() for i in range(2)]
    assert seen.separation == pytest.approx(np.mean(kl))


# --- checkpoints and shards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("expert_type", ["softmax", "linear"])
def test_a_resumed_fit_ends_in_the_same_bits(method: str, expert_type: str) -> None:
    shape = SHAPES[expert_type]
    X, y = rows_of(shape)
    arguments = EMArguments(method=method, em_iterations=3, restarts=3, max_iterations=9)
    whole = MixtureFit(X, y, shape, arguments, held_out=(X[:50], y[:50]))
    for _ in range(9):
        whole.step()
    for cut in (1, 5):
        first = MixtureFit(X, y, shape, arguments, held_out=(X[:50], y[:50]))
        for _ in range(cut):
            first.step()
        first.result()  # looks, and changes nothing
        resumed = MixtureFit(X, y, shape, arguments, held_out=(X[:50], y[:50]))
        resumed.load_state_dict(load(save(first.state_dict())))
        for _ in range(9 - cut):
            resumed.step()
        for name, values in whole.state_dict().items():
            assert torch.equal(values, resumed.state_dict()[name]), (cut, name)


def test_a_fit_is_resumed_only_with_its_own_settings_and_rows() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    state = MixtureFit(X, y, shape, EMArguments(restarts=1)).state_dict()
    other = MixtureFit(X, y, MixtureShape(2, "softmax", 4), EMArguments(restarts=1, ridge=0.5))
    with pytest.raises(ValueError, match=r"num_experts was 3 and is 2; ridge was 0\.0001 and is 0\.5"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="it was of 300 rows, and these 299 are others"):
        MixtureFit(X[1:], y[1:], shape, EMArguments(restarts=1)).load_state_dict(state)
    with pytest.raises(ValueError, match="have other features or labels"):
        MixtureFit(X + 1e-3, y, shape, EMArguments(restarts=1)).load_state_dict(state)
    MixtureFit(X, y, shape, EMArguments(restarts=1, max_iterations=5)).load_state_dict(state)


def in_shards(count: int, work: Callable[[int, Callable[[Tensor], Tensor]], object]) -> list[object]:
    """Run `work(shard, reduce)` in threads whose `reduce` adds tensors up over them, in the order of the shards."""
    barrier = threading.Barrier(count)
    parts: list[Tensor | None] = [None] * count
    results: list[object] = [None] * count

    def run(shard: int) -> None:
        def reduce(values: Tensor) -> Tensor:
            parts[shard] = values
            barrier.wait(60)
            total = torch.stack(parts).sum(0)
            barrier.wait(60)
            return total

        try:
            results[shard] = work(shard, reduce)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(shard,)) for shard in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("method", ["em", "auto"])
@pytest.mark.parametrize("expert_type", ["softmax", "linear"])
def test_rows_in_uneven_shards_give_the_fit_of_one_process(method: str, expert_type: str) -> None:
    shape = SHAPES[expert_type]
    X, y = rows_of(shape)
    arguments = EMArguments(method=method, em_iterations=3, restarts=2, max_iterations=8, ridge=1e-2)
    alone = fit_em(X, y, shape, arguments=arguments)
    bounds = [slice(0, 211), slice(211, 300)]

    def work(shard: int, reduce: Callable[[Tensor], Tensor]) -> EMResult:
        return fit_em(X[bounds[shard]], y[bounds[shard]], shape, arguments=arguments, reduce=reduce)

    shards = in_shards(2, work)
    assert torch.equal(shards[0].parameters.experts, shards[1].parameters.experts)
    assert shards[0].objective == pytest.approx(alone.objective, rel=1e-9)
    torch.testing.assert_close(shards[0].parameters.experts, alone.parameters.experts, rtol=1e-7, atol=1e-8)


# --- safeguards ------------------------------------------------------------------------------------------------------


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
    X, y = rows_of(SHAPES["linear"])
    assert MixtureFit(X, y, SHAPES["linear"], EMArguments(restarts=4)).state.phase.tolist() == [0, 0, 1, 1]


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


# --- bad input -----------------------------------------------------------------------------------------------------


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
