"""Stochastic EM against SGD by autograd and the batch fit; experts of any kind against the mixture's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.em import EMArguments, fit_em
from hf_ext.moe.experts import fit_em_experts
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.stochastic import StochasticMixtureFit
from tests.moe.problems import SHAPES, rows_of, true_nll


def test_one_inner_step_is_stochastic_gradient_descent_on_the_likelihood() -> None:
    shape = SHAPES["softmax"]
    X, y = rows_of(shape)
    arguments = EMArguments(method="em", restarts=1, inner_steps=1, whiten=False, learning_rate=0.5)
    fit = StochasticMixtureFit(X, y, shape, arguments)
    leaf = fit.point.clone()
    mean = X.mean(0)
    scale = X.std(0, correction=0)
    for batch in range(4):
        rows = slice(40 * batch, 40 * batch + 40)
        loss = fit.update(X[rows], y[rows])
        leaf = leaf.detach().requires_grad_()
        vectors = leaf.view(-1, X.shape[1] + 1)
        logits = torch.cat([(X[rows] - mean) / scale, torch.ones(40, 1)], 1) @ vectors.T
        nll = moe_nll(logits[:, :3], logits[:, 3:].unflatten(1, (3, 4)), y[rows]).mean()
        penalty = 0.5e-4 * vectors[:, :-1].square().sum()
        (slope,) = torch.autograd.grad(nll + penalty, leaf)
        leaf = leaf - 0.5 * (batch + 2) ** -0.6 * slope
        assert loss == pytest.approx(nll.item(), rel=1e-10)
    torch.testing.assert_close(fit.point, leaf.detach(), rtol=1e-9, atol=1e-11)


def test_running_statistics_of_linear_experts_come_near_the_batch_fit_and_resume_to_the_bit() -> None:
    shape = MixtureShape(2, "linear")
    X, y = rows_of(shape, n=4000, d=4, seed=1)
    fit = StochasticMixtureFit(X[:400], y[:400], shape, EMArguments(method="em", restarts=1), m_every=2)
    for start in range(0, 4000, 100):
        if start == 2000:
            state = fit.state_dict()
            fit = StochasticMixtureFit(X[:400], y[:400], shape, EMArguments(method="em", restarts=1), m_every=2)
            fit.load_state_dict(state)
            assert all(torch.equal(values, fit.state_dict()[name]) for name, values in state.items())
        fit.update(X[start : start + 100], y[start : start + 100])
    nll = -fit.parameters().posterior(X, y[:, None])[1].mean().item()
    batch = fit_em(X, y, shape, arguments=EMArguments(method="em")).nll
    assert batch - 1e-6 <= nll <= batch + 0.05
    assert batch <= true_nll(shape, n=4000, d=4, seed=1)


def test_statistics_forget_at_the_rate_of_the_paper() -> None:
    shape = MixtureShape(2, "linear")
    X, y = rows_of(shape, n=600, d=2)
    fit = StochasticMixtureFit(X[:200], y[:200], shape, m_every=100)
    grams = []
    for batch in range(3):
        point = fit.point.clone()
        fit.update(X[200 * batch : 200 * (batch + 1)], y[200 * batch : 200 * (batch + 1)])
        assert torch.equal(point[:, 6:], fit.point[:, 6:])  # no M-step of the experts yet
        grams.append(fit.statistics[0].clone())
    rate = 3**-0.6
    latest = (grams[1] - (1 - rate) * grams[0]) / rate
    assert latest[0].sum(0)[-1, -1].item() == pytest.approx(1)  # weights of a batch sum to one
    with pytest.raises(ValueError, match="m_every must be at least 1"):
        StochasticMixtureFit(X, y, shape, m_every=0)
    with pytest.raises(ValueError, match="no held-out rows to choose a ridge by"):
        StochasticMixtureFit(X, y, shape, EMArguments(ridge="auto"))
    with pytest.raises(ValueError, match="m_every was 100 and is 5"):
        StochasticMixtureFit(X[:200], y[:200], shape, m_every=5).load_state_dict(fit.state_dict())


def test_scikit_learns_linear_regressions_as_experts_reach_the_likelihood_of_linear_experts() -> None:
    shape = MixtureShape(2, "linear")
    X, y = rows_of(shape, n=500, d=3, seed=2)
    own = fit_em(X, y, shape, arguments=EMArguments(method="em"))
    best = min(
        (
            fit_em_experts(
                X, y, [LinearRegression(), LinearRegression()], iterations=40, tol=1e-6,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in range(3)
        ),
        key=lambda mixture: mixture.nll[-1],
    )  # fmt: skip
    assert best.nll[-1] == pytest.approx(own.nll, abs=2e-3)
    assert (np.diff(best.nll) <= 1e-6).all()
    error = (best.predict(X) - y).square().mean().item()
    assert error == pytest.approx((own.parameters.predict(X)[:, 0] - y).square().mean().item(), rel=0.02)


def test_trees_as_experts_beat_one_tree_where_a_gate_turns_the_labels_round() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(900, 2, generator=generator, dtype=torch.float64)
    turned = X[:, 0] + 0.3 * X[:, 1] > 0
    y = ((X[:, 1] > 0) ^ turned).long()
    mixture = fit_em_experts(X[:600], y[:600], [DecisionTreeClassifier(max_depth=1) for _ in range(2)], tol=1e-3)
    probabilities = mixture.predict(X[600:])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(300, dtype=torch.float64))
    single = DecisionTreeClassifier(max_depth=1).fit(X[:600].numpy(), y[:600].numpy())
    accuracy = (probabilities.argmax(1) == y[600:]).double().mean().item()
    assert accuracy > single.score(X[600:].numpy(), y[600:].numpy()) + 0.2


def test_one_expert_of_any_kind_is_that_expert() -> None:
    X, y = rows_of(SHAPES["softmax"])
    mixture = fit_em_experts(X, y, [LogisticRegression(C=0.5)])
    alone = LogisticRegression(C=0.5).fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(mixture.predict(X).numpy(), alone.predict_proba(X.numpy()), atol=1e-9)


def test_what_is_no_expert_is_refused_by_name() -> None:
    X, y = rows_of(MixtureShape(2, "linear"))
    with pytest.raises(TypeError, match="dict has no fit"):
        fit_em_experts(X, y, [DecisionTreeRegressor(), {}])
