"""A fit as a whole: its objective, monotone steps, its rate, checkpoints to the bit, and shards."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.diagnostics import diagnose, mim_lambda_max
from hf_ext.moe.em import EMArguments, EMResult, MixtureFit, fit_em
from hf_ext.moe.lbfgs import Curvature
from hf_ext.moe.m_steps import m_step_lbfgs, m_step_linear
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from tests.moe.problems import SHAPES, fitted, rows_of, true_nll
from tests.moe.test_m_steps import converged

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
METHODS = ("em", "em+lbfgs", "lbfgs", "auto")


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
