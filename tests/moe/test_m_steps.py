"""Value, gradient and M-steps against autograd, least squares, scikit-learn and the mirror-descent identity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import LbfgsInvHessProduct, minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hf_ext.losses.moe_likelihood import expert_log_likelihood, moe_nll
from hf_ext.moe.lbfgs import Curvature, line_search
from hf_ext.moe.m_steps import complete_information, em_targets, m_step_lbfgs, m_step_linear
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import mixture_rows
from tests.moe.problems import SHAPES, normal, objective_of, points_of

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def by_autograd(objective: Objective, point: Tensor, ridge: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Objective, or expected objective under given responsibilities, from the losses: value `(R,)` and gradient."""
    point = point.clone().requires_grad_()
    vectors, log_variance = objective.vectors(point)
    k = objective.shape.num_experts
    logits = torch.einsum("nd,rcd->nrc", objective.rows.X, vectors)
    gate = logits[..., :k]
    outputs = logits[..., k:].unflatten(-1, (k, -1))
    kind = {"expert_type": objective.shape.expert_type, "variance": log_variance.exp()}
    if weights is None:
        terms = moe_nll(gate, outputs, objective.rows.y, **kind)
    else:
        joint = gate.log_softmax(-1) + expert_log_likelihood(outputs, objective.rows.y, **kind)
        terms = -(weights * joint).sum(-1)
    penalty = 0.5 * ridge * vectors[..., :-1].square().sum((1, 2))
    value = (terms * objective.rows.weights[:, None]).sum(0) + penalty
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient


def converged(objective: Objective, point: Tensor, ridge: Tensor, targets: Targets) -> Tensor:
    curvature = Curvature.empty(*point.shape, point)
    tolerance = torch.full_like(ridge, 1e-10)
    return m_step_lbfgs(objective, point, ridge, targets, None, curvature, steps=300, tolerance=tolerance).point


@every_shape
@pytest.mark.parametrize("whiten", [False, True])
def test_value_and_gradient_are_those_of_autograd_through_the_loss(shape: MixtureShape, whiten: bool) -> None:
    objective = objective_of(shape, whiten=whiten)
    point, ridge = points_of(objective, 3)
    value, gradient = by_autograd(objective, point, ridge, None)
    look = objective.e_step(point, ridge)
    torch.testing.assert_close(look.value, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(look.gradient, gradient, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(objective.likelihood(point, ridge), look[:3], strict=True):
        assert torch.equal(ours, theirs)


@every_shape
def test_fisher_the_gradient_of_the_expected_likelihood_at_its_own_parameters_is_the_likelihoods(shape) -> None:
    objective = objective_of(shape)
    point, ridge = points_of(objective)
    look = objective.e_step(point, ridge)
    expected = objective.expected(point, ridge, Targets(look.responsibilities))
    value, gradient = by_autograd(objective, point, ridge, look.responsibilities)
    torch.testing.assert_close(expected.gradient, look.gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, look.gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(look.expected_value, value, rtol=1e-12, atol=1e-12)
    size = shape.gate_rows * objective.width
    gate = objective.gate_expected(point[:, :size], ridge, Targets(look.responsibilities))
    torch.testing.assert_close(gate.gradient, look.gradient[:, :size], rtol=0, atol=1e-12)
    torch.testing.assert_close(gate.value, look.gate_value, rtol=1e-12, atol=1e-12)


@every_shape
def test_the_objective_does_not_depend_on_the_coordinates_or_on_the_blocks(shape, monkeypatch) -> None:
    plain = objective_of(shape, whiten=False)
    white = objective_of(shape, whiten=True)
    point, ridge = points_of(plain)
    moved = white.pack(*plain.free_vectors(point))
    torch.testing.assert_close(white.likelihood(moved, ridge).value, plain.likelihood(point, ridge).value)
    whole = white.e_step(moved, ridge)
    monkeypatch.setattr("hf_ext.moe.rows._CPU_BLOCK", 1)  # blocks of 256 rows
    for values, pieces in zip(white.e_step(moved, ridge), whole, strict=True):
        torch.testing.assert_close(values, pieces, rtol=1e-11, atol=1e-12)


def test_restarts_together_are_the_restarts_one_by_one() -> None:
    objective = objective_of(SHAPES["softmax"])
    point, ridge = points_of(objective, 3)
    together = objective.likelihood(point, ridge)
    for i in range(3):
        alone = objective.likelihood(point[i : i + 1], ridge[i : i + 1])
        torch.testing.assert_close(alone.gradient[0], together.gradient[i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_linear_experts_are_least_squares_on_rows_scaled_by_the_root_of_their_weight(outputs, ridge) -> None:
    objective = objective_of(MixtureShape(2, "linear", outputs, shared_variance=False))
    point, _ = points_of(objective, 1)
    penalty = torch.tensor([ridge], dtype=torch.float64)
    look = objective.e_step(point, penalty)
    moved = m_step_linear(objective, point, penalty, Targets(look.responsibilities)).point
    vectors, log_variance = objective.vectors(moved)
    before = objective.vectors(point)[1].exp()[0]
    rows = objective.rows
    for i in range(2):
        scale = (rows.weights * look.responsibilities[:, 0, i]).sqrt().numpy()[:, None]
        extra = np.sqrt(ridge * before[i].item()) * np.diag(objective.penalised.numpy())
        left = np.concatenate([scale * rows.X.numpy(), extra])
        right = np.concatenate([scale * rows.y.numpy(), np.zeros((len(extra), outputs))])
        solution = np.linalg.lstsq(left, right, rcond=None)[0]
        np.testing.assert_allclose(
            vectors[0, 2 + i * outputs : 2 + (i + 1) * outputs], solution.T, rtol=1e-9, atol=1e-10
        )
        errors = (rows.y.numpy() - rows.X.numpy() @ solution) ** 2
        variance = (scale**2 * errors).sum() / (outputs * (scale**2).sum())
        assert log_variance[0, i].exp().item() == pytest.approx(variance, rel=1e-9)


def test_gate_and_experts_are_scikit_learns_logistic_regression_on_weighted_rows() -> None:
    ridge = 0.02
    objective = objective_of(MixtureShape(3, "softmax", 4))
    point, _ = points_of(objective, 1)
    penalty = torch.tensor([ridge], dtype=torch.float64)
    look = objective.e_step(point, penalty)
    moved = converged(objective, point, penalty, Targets(look.responsibilities))
    vectors = objective.vectors(moved)[0][0].numpy()
    X = objective.rows.X[:, :-1].numpy()
    row_weights = objective.rows.weights.numpy()
    r = look.responsibilities[:, 0].numpy()
    settings = {"C": 1 / ridge, "tol": 1e-10, "max_iter": 5000}
    # One row for each pair of a row and an expert: the soft label as a weight.
    gate = LogisticRegression(**settings).fit(
        np.tile(X, (3, 1)), np.repeat(np.arange(3), len(X)), (r * row_weights[:, None]).T.ravel()
    )
    np.testing.assert_allclose(vectors[:3, :-1], gate.coef_, rtol=1e-5, atol=1e-5)
    for i in range(3):
        expert = LogisticRegression(**settings).fit(X, objective.rows.y.numpy(), r[:, i] * row_weights)
        np.testing.assert_allclose(vectors[3 + 4 * i : 7 + 4 * i, :-1], expert.coef_, rtol=1e-5, atol=1e-5)


def test_logistic_experts_are_scikit_learns() -> None:
    objective = objective_of(MixtureShape(2, "logistic"))
    point, _ = points_of(objective, 1)
    penalty = torch.tensor([0.02], dtype=torch.float64)
    look = objective.e_step(point, penalty)
    vectors = objective.vectors(converged(objective, point, penalty, Targets(look.responsibilities)))[0][0].numpy()
    weights = (objective.rows.weights[:, None] * look.responsibilities[:, 0]).numpy()
    for i in range(2):
        expert = LogisticRegression(C=50, tol=1e-10, max_iter=5000).fit(
            objective.rows.X[:, :-1].numpy(), objective.rows.y.numpy(), weights[:, i]
        )
        np.testing.assert_allclose(vectors[2 + i], np.append(expert.coef_, expert.intercept_), rtol=1e-5, atol=1e-5)


# --- mirror descent --------------------------------------------------------------------------------------------------


def symmetric_linear_gradient(X: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `A(w, b) = mean[(x.b)^2 / 2 + log 2cosh(x.w / 2)]` by autograd."""
    w = w.clone().requires_grad_()
    b = b.clone().requires_grad_()
    half = X @ w / 2
    log_partition = ((X @ b).square() / 2 + torch.logaddexp(half, -half)).mean()
    return torch.autograd.grad(log_partition, (w, b))


@pytest.mark.parametrize("eta", [1.0, 0.4, 1.3])
def test_em_of_a_symmetric_pair_is_mirror_descent_with_step_eta(eta: float) -> None:
    shape = MixtureShape(2, "linear", symmetric=True)
    objective = objective_of(shape, whiten=False, weighted=False)
    X = objective.rows.X
    y = objective.rows.y[:, 0]
    point = torch.cat([0.3 * normal(1, 2 * objective.width, seed=7), torch.zeros(1, 1, dtype=torch.float64)], dim=1)
    ridge = torch.zeros(1, dtype=torch.float64)
    w, b = point[0, : objective.width], point[0, objective.width : -1]
    slope = objective.e_step(point, ridge)
    targets = em_targets(objective, point, slope, torch.tensor([eta], dtype=torch.float64))
    # Unit variance: the coefficients of this one M-step, solved to the end.
    experts = m_step_linear(objective, point, ridge, targets).point[0, objective.width : -1]
    curvature = Curvature.empty(1, objective.width, point)
    gate = m_step_lbfgs(
        objective, point[:, : objective.width], ridge, targets, None, curvature,
        steps=200, tolerance=torch.full_like(ridge, 1e-13), gate_only=True,
    ).point[0]  # fmt: skip
    at_start = symmetric_linear_gradient(X, w, b)
    at_end = symmetric_linear_gradient(X, gate, experts)
    likelihood = [slope.gradient[0, : objective.width], slope.gradient[0, objective.width : -1]]
    for end, start, gradient in zip(at_end, at_start, likelihood, strict=True):
        assert (end - start + eta * gradient).abs().max() < 1e-9
    # The posterior mean of the sign, in closed form.
    m = torch.tanh(y * (X @ b) + X @ w / 2)
    torch.testing.assert_close(slope.responsibilities[:, 0] @ torch.tensor([1.0, -1.0], dtype=torch.float64), m)
    if eta == 1:
        torch.testing.assert_close(
            experts, torch.linalg.lstsq(X, (y * m)[:, None]).solution[:, 0], rtol=1e-9, atol=1e-10
        )


@every_shape
def test_a_step_of_length_one_in_mixed_statistics_is_ems_and_one_of_zero_stays(shape: MixtureShape) -> None:
    objective = objective_of(shape)
    point, ridge = points_of(objective, 2)
    ridge[:] = 0  # the model's own statistics are a fixed point of the unpenalised step
    look = objective.e_step(point, ridge)
    eta = torch.tensor([1.0, 1e-12], dtype=torch.float64)
    mixed = em_targets(objective, point, look, eta)
    plain = Targets(look.responsibilities)
    one = torch.tensor([0])
    if shape.expert_type == "linear":
        for ours, theirs in zip(
            objective.normal_equations(mixed.take(one)), objective.normal_equations(plain.take(one)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        moved = m_step_linear(objective, point, ridge, mixed).point
        torch.testing.assert_close(moved[1], point[1], rtol=1e-8, atol=1e-8)
        return
    ours = objective.expected(point[:1], ridge[:1], mixed.take(one))
    theirs = objective.expected(point[:1], ridge[:1], plain.take(one))
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-11, atol=1e-13)
    assert objective.expected(point, ridge, mixed).gradient[1].abs().max() < 1e-11


# --- L-BFGS ----------------------------------------------------------------------------------------------------------


def test_lbfgs_over_restarts_finds_each_ones_minimum_and_spends_nothing_on_those_that_are_there() -> None:
    size = 12
    root = normal(3, size, size, seed=0)
    hessian = root @ root.mT / size + torch.eye(size)
    target = normal(3, size, seed=1)
    evaluated = torch.zeros(3)

    def evaluate(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        evaluated[index] += 1
        error = points - target[index]
        image = (hessian[index] @ error.unsqueeze(-1)).squeeze(-1)
        quartic = error.square().sum(1).square()
        return 0.5 * (error * image).sum(1) + 0.1 * quartic, image + 0.4 * error.square().sum(1)[:, None] * error

    point = target.clone()
    point[1:] += 3
    everyone = torch.arange(3)
    value, gradient = evaluate(point, everyone)
    curvature = Curvature.empty(3, size, point)
    metric = torch.ones(3, size)
    for _ in range(60):
        step = line_search(evaluate, point, value, gradient, curvature.direction(gradient, everyone, metric))
        curvature.add(everyone, step.point - point, step.gradient - gradient)
        assert (step.value <= value + 1e-12).all()
        point, value, gradient = step.point, step.value, step.gradient
    assert evaluated[0] == 1
    torch.testing.assert_close(point, target, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_direction_is_that_of_the_updates_as_matrices(spread: float) -> None:
    size = 5
    hessian = torch.diag(torch.tensor([1.0, 2.0, 5.0, 10.0, 30.0], dtype=torch.float64))
    curvature = Curvature.empty(2, size, hessian)
    steps = normal(4, 2, size, seed=3)
    for step in steps:
        curvature.add(torch.tensor([1]), step[1:], step[1:] @ hessian)
    pairs = steps[:, 1].numpy()
    gradient = normal(2, size, seed=4)
    metric = (spread * normal(2, size, seed=5)).exp()
    start = np.diag(1 / metric[1].numpy())
    change = hessian.numpy() @ pairs[-1]
    scale = (pairs[-1] @ change) / (change @ start @ change)
    direction = curvature.direction(gradient, torch.tensor([0, 1]), metric)
    torch.testing.assert_close(direction[0], -gradient[0] / metric[0])  # no pairs: the slope
    expected = direction_from(pairs, hessian.numpy(), gradient[1].numpy(), scale * start)
    np.testing.assert_allclose(direction[1].numpy(), -expected, rtol=1e-10)
    # scipy starts its loops at the identity; the updates as matrices do either.
    inverse = LbfgsInvHessProduct(pairs, pairs @ hessian.numpy()).todense()
    np.testing.assert_allclose(
        direction_from(pairs, hessian.numpy(), gradient[1].numpy(), np.eye(size)),
        inverse @ gradient[1].numpy(),
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", ["linear", "symmetric linear", "own variances"])
def test_the_metric_of_linear_experts_is_the_curvature_of_q_on_white_features(name: str) -> None:
    """Against the Hessian of -Q by autograd, whose features are white and independent of who handles them."""
    shape = {
        "linear": MixtureShape(3, "linear", 2),
        "symmetric linear": MixtureShape(2, "linear", symmetric=True),
        "own variances": MixtureShape(3, "linear", shared_variance=False),
    }[name]
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    shares = torch.tensor([0.5, 0.3, 0.2] if shape.num_experts == 3 else [0.7, 0.3], dtype=torch.float64)
    labels = math.sqrt(0.5) * corners.prod(1, keepdim=True).expand(4, shape.num_outputs)
    rows = mixture_rows(corners, labels, shape, standardize=False)
    objective = Objective(rows, shape, whiten=False, variance_floor=1e-6)
    point = torch.zeros(1, objective.size, dtype=torch.float64)
    bias = shares.log() if not shape.symmetric else (shares[:1] / shares[1:]).log()
    point[0, : shape.gate_rows * 3].view(shape.gate_rows, 3)[:, -1] = bias
    point[0, -shape.num_variances :] = math.log(0.5)  # by which all experts miss: no slope in the variance
    targets = Targets(shares.expand(4, 1, 3 if shape.num_experts == 3 else 2).contiguous())
    ridge = torch.zeros(1, dtype=torch.float64)
    hessian = torch.stack(
        [
            (
                objective.expected(point + 1e-5 * unit, ridge, targets).gradient
                - objective.expected(point - 1e-5 * unit, ridge, targets).gradient
            )[0]
            / 2e-5
            for unit in torch.eye(objective.size, dtype=torch.float64)
        ]
    )
    metric = complete_information(objective, point, shares[None])
    torch.testing.assert_close(metric[0], hessian.diagonal(), rtol=1e-6, atol=0)


def direction_from(pairs: np.ndarray, hessian: np.ndarray, gradient: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """BFGS updates of an inverse Hessian as matrices, one pair after the other."""
    for s in pairs:
        y = hessian @ s
        rho = 1 / (s @ y)
        left = np.eye(len(hessian)) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    return inverse @ gradient


def test_the_m_step_reaches_scipys_minimum_of_the_expected_likelihood() -> None:
    objective = objective_of(SHAPES["logistic symmetric"], d=3)
    point, ridge = points_of(objective, 1)
    targets = Targets(objective.e_step(point, ridge).responsibilities)
    moved = converged(objective, point, ridge, targets)

    def value(x: np.ndarray) -> float:
        return float(by_autograd(objective, torch.from_numpy(x)[None], ridge, targets.weights)[0])

    best = minimize(value, moved[0].numpy() + 0.1, method="BFGS", options={"gtol": 1e-7})
    assert objective.expected(moved, ridge, targets).value.item() <= best.fun + 1e-10
    np.testing.assert_allclose(moved[0].numpy(), best.x, atol=1e-3)
