"""The gate of a mixture of language models, and the tempered E-step, against plain formulas and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hf_ext.moe.gate import PromptGate, fit_gate, mixture_nll, prompt_clusters, tempered_responsibilities


def random_rows(n: int = 60, width: int = 90, experts: int = 3):
    """Embeddings with unlike scales, more columns than rows, and soft labels."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(n, width, generator=generator) * torch.logspace(-2, 2, width) + 5
    return X, (3 * torch.randn(n, experts, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_gate_is_the_logistic_regression_of_rows_repeated_once_a_class(ridge):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, responsibilities = random_rows()
    gate = fit_gate(X, responsibilities, ridge=ridge)
    features = X.double().numpy()
    features = (features - features.mean(0)) / features.std(0)
    n, experts = responsibilities.shape
    peer = linear_model.LogisticRegression(C=1 / (n * ridge), max_iter=10_000, tol=1e-9).fit(
        np.repeat(features, experts, 0), np.tile(np.arange(experts), n), sample_weight=responsibilities.numpy().ravel()
    )
    assert np.abs(peer.predict_log_proba(features) - gate.log_probs(X).numpy()).max() < 1e-4


def test_one_expert_has_every_row():
    X, _ = random_rows()
    assert torch.equal(fit_gate(X, torch.ones(60, 1), ridge=0.1).log_probs(X), torch.zeros(60, 1).double())


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_e_step_is_that_of_a_plain_loop(temperature):
    log_gate = torch.log(random_rows(8)[1])
    log_likelihood = -300 * torch.rand(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.arange(8, dtype=torch.float64) * 13 + 2
    responsibilities = tempered_responsibilities(log_gate, log_likelihood, tokens, temperature)
    for n in range(8):
        terms = [
            float(log_gate[n, i]) + float(log_likelihood[n, i]) / (temperature * float(tokens[n])) for i in range(3)
        ]
        total = math.fsum(math.exp(term - max(terms)) for term in terms)
        for i in range(3):
            assert float(responsibilities[n, i]) == pytest.approx(math.exp(terms[i] - max(terms)) / total, rel=1e-12)


def test_a_temperature_of_one_token_is_the_posterior_whose_normaliser_is_the_mixture():
    log_gate = torch.log(random_rows(5)[1])
    log_likelihood = -2 * torch.rand(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    joint = log_gate.exp() * log_likelihood.exp()
    posterior = tempered_responsibilities(log_gate, log_likelihood, torch.full((5,), 4.0), 0.25)
    torch.testing.assert_close(posterior, joint / joint.sum(1, keepdim=True))
    torch.testing.assert_close(mixture_nll(log_gate, log_likelihood), -joint.sum(1).log())


def test_sums_of_thousands_of_nats_give_finite_responsibilities():
    log_likelihood = torch.tensor([[-8000.0, -7000.0], [-1e-3, -9000.0]], dtype=torch.float64)
    log_gate = torch.tensor([[0.0, -800.0], [-800.0, 0.0]], dtype=torch.float64)
    responsibilities = tempered_responsibilities(log_gate, log_likelihood, torch.tensor([10.0, 10.0]), 0.1)
    torch.testing.assert_close(responsibilities, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(mixture_nll(log_gate, log_likelihood), torch.tensor([7800.0, 800.001]).double())


def test_clusters_of_prompts_that_lie_apart_are_the_groups():
    generator = torch.Generator().manual_seed(0)
    centres = 9 * torch.randn(3, 20, generator=generator)
    groups = torch.arange(45) % 3
    responsibilities = prompt_clusters(centres[groups] + torch.randn(45, 20, generator=generator), 3, seed=5)
    assert torch.equal(responsibilities.sum(1), torch.ones(45).double())
    clusters = responsibilities.argmax(1)
    assert len({(int(group), int(cluster)) for group, cluster in zip(groups, clusters, strict=True)}) == 3


def test_more_experts_than_different_prompts_are_refused():
    with pytest.raises(ValueError, match="num_experts=3, but the rows have only 2 different prompts"):
        prompt_clusters(torch.eye(4)[[0, 1, 1, 0]], 3, seed=0)


def test_a_number_that_is_not_finite_is_named():
    X, responsibilities = random_rows()
    X[4, 7] = math.nan
    with pytest.raises(ValueError, match="X is nan in row 4, column 7"):
        fit_gate(X, responsibilities, ridge=0.1)


def test_a_saved_gate_is_the_same_and_another_format_or_shape_is_refused(tmp_path):
    X, responsibilities = random_rows()
    gate = fit_gate(X, responsibilities, ridge=0.1)
    gate.save(tmp_path)
    assert torch.equal(PromptGate.load(tmp_path).log_probs(X), gate.log_probs(X))
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, words in (
        ({"format_revision": 9}, "gate of format 9"),
        ({"input_dim": 5}, "does not hold a gate of 3 experts on 5"),
        ({"input_dim": "wide"}, "does not hold a gate"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=words):
            PromptGate.load(tmp_path)
