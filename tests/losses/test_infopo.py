"""InfoPO's losses against TRL's own code, scipy's optimum of a table, plain-Python loops and finite differences."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import rel_entr
from torch import Tensor
from trl import DPOTrainer

from hf_ext.losses.infopo import (
    ESTIMATORS,
    MI_CEILING,
    UNPAIRED_ESTIMATORS,
    bound_of_loss,
    bounded_exp,
    infopo_loss,
    infopo_unpaired_loss,
    mi_estimate,
    pull_and_push,
)

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
every_unpaired = pytest.mark.parametrize("estimator", UNPAIRED_ESTIMATORS)


def log_ratios(n: int, seed: int, scale: float = 5.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Log-ratios of `n` pairs, each of shape `(n,)`, that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    both = scale * torch.randn(2, n, generator=generator, dtype=torch.float64)
    return both[0].to(dtype).requires_grad_(), both[1].to(dtype).requires_grad_()


# --- TRL's own formulas ----------------------------------------------------------------------------------------------


def trl_loss(loss_type: str, chosen: Tensor, rejected: Tensor, lengths: list[int], beta: float) -> Tensor:
    """
    TRL's `_compute_loss` itself, on log-ratios of shape `(pairs,)`: its model is one that returns given log-probs.

    Each response has its own number of tokens (`lengths`: first all chosen, then all rejected), two prompt tokens
    before them, and its log-ratio spread evenly over its tokens; the reference's log-probability is zero.
    """
    sums = torch.cat([chosen, rejected])
    width = 2 + max(lengths)
    mask = torch.tensor([[0, 0] + [1] * n + [0] * (width - 2 - n) for n in lengths])
    per_token = (sums / torch.tensor(lengths, dtype=sums.dtype))[:, None] * mask[:, 1:]
    nothing = torch.zeros_like(per_token)
    outputs = SimpleNamespace(log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    alone = SimpleNamespace(device="cpu", gather=lambda v: v, gather_for_metrics=lambda v: v)
    host = SimpleNamespace(
        accelerator=alone,
        model=SimpleNamespace(training=True),
        ld_alpha=None,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": torch.zeros_like(chosen),
        "ref_rejected_logps": torch.zeros_like(rejected),
    }
    return DPOTrainer._compute_loss(host, lambda **_: outputs, inputs, False)


LENGTHS = [3, 1, 7, 4, 2, 9, 5, 5, 2, 6]


@pytest.mark.parametrize(("estimator", "loss_type"), [("infonce", "sigmoid"), ("jsd", "bco_pair")])
@pytest.mark.parametrize("beta", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_estimators_are_losses_that_trl_has(estimator: str, loss_type: str, beta: float, dtype: Any) -> None:
    ours, theirs = log_ratios(5, seed=3, scale=20.0, dtype=dtype), log_ratios(5, seed=3, scale=20.0, dtype=dtype)
    loss = infopo_loss(*ours, estimator=estimator, beta=beta).losses.mean()
    expected = trl_loss(loss_type, *theirs, LENGTHS, beta)
    loss.backward()
    expected.backward()
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected, **tolerance)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **tolerance)


def test_normalised_infonce_is_trls_sigmoid_norm() -> None:
    ours, theirs = log_ratios(5, seed=4), log_ratios(5, seed=4)
    lengths = torch.tensor(LENGTHS).chunk(2)
    loss = infopo_loss(
        *ours, estimator="infonce", beta=2.0, chosen_lengths=lengths[0], rejected_lengths=lengths[1]
    ).losses.mean()
    expected = trl_loss("sigmoid_norm", *theirs, LENGTHS, 2.0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("normalised", [False, True])
def test_at_the_reference_the_nwj_gradient_is_twice_that_of_trls_dpo(beta: float, normalised: bool) -> None:
    zeros = [[torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in range(2)] for _ in range(2)]
    lengths = torch.tensor(LENGTHS).chunk(2)
    sides = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]} if normalised else {}
    infopo_loss(*zeros[0], beta=beta, **sides).losses.mean().backward()
    trl_loss("sigmoid_norm" if normalised else "sigmoid", *zeros[1], LENGTHS, beta).backward()
    for mine, theirs in zip(*zeros, strict=True):
        assert theirs.grad.abs().min() > 0
        torch.testing.assert_close(mine.grad, 2 * theirs.grad, rtol=1e-12, atol=0)


# --- the optimum of a table ------------------------------------------------------------------------------------------


def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two distributions over six outcomes."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))


def population_loss(critic: np.ndarray, p_w: np.ndarray, p_l: np.ndarray, estimator: str) -> tuple[float, np.ndarray]:
    """Expected loss of independent draws from the two distributions, and its gradient, through the tensors' code."""
    f = torch.tensor(critic, requires_grad=True)
    pairs = infopo_loss(*torch.meshgrid(f, f, indexing="ij"), estimator=estimator, beta=1.0, max_exponent=80.0).losses
    loss = (torch.tensor(np.outer(p_w, p_l)) * pairs).sum()
    loss.backward()
    return loss.item(), f.grad.numpy()


def best_critic(p_w: np.ndarray, p_l: np.ndarray, estimator: str) -> np.ndarray:
    """Minimiser of the population loss by BFGS."""
    arguments = (p_w, p_l, estimator)
    found = minimize(population_loss, np.zeros(6), args=arguments, jac=True, method="BFGS", options={"gtol": 1e-10})
    return found.x


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("estimator", ["nwj", "jsd", "nwj_mixture"])
def test_the_best_critic_of_a_table_is_the_log_density_ratio(estimator: str, seed: int) -> None:
    p_w, p_l = table(seed)
    denominator = (p_w + p_l) / 2 if estimator == "nwj_mixture" else p_l
    np.testing.assert_allclose(best_critic(p_w, p_l, estimator), np.log(p_w / denominator), atol=1e-4)


def divergence(p_w: np.ndarray, p_l: np.ndarray, estimator: str) -> float:
    """What the estimator bounds, computed directly from the table."""
    middle = (p_w + p_l) / 2
    if estimator == "nwj":
        return float(rel_entr(p_w, p_l).sum())
    if estimator == "jsd":
        return float((rel_entr(p_w, middle).sum() + rel_entr(p_l, middle).sum()) / 2)
    if estimator == "nwj_mixture":
        return float(rel_entr(p_w, middle).sum())
    if estimator == "lsif":
        return float(((p_w - p_l) ** 2 / p_l).sum())
    ordered, swapped = np.outer(p_w, p_l), np.outer(p_l, p_w)  # infonce: which of two draws is the chosen one
    return float(rel_entr(ordered, (ordered + swapped) / 2).sum())


# The bound is scale * mean loss + offset.
AFFINE = {
    "nwj": (-1, 1),
    "infonce": (-1, math.log(2)),
    "jsd": (-0.5, math.log(2)),
    "lsif": (-2, -1),
    "nwj_mixture": (-1, 1),
}


@pytest.mark.parametrize("seed", range(5))
@every_estimator
def test_the_bound_never_exceeds_the_divergence_and_meets_it_at_the_log_density_ratio(
    estimator: str, seed: int
) -> None:
    p_w, p_l = table(seed)
    factor, offset = AFFINE[estimator]
    true = divergence(p_w, p_l, estimator)
    best = np.log(p_w / ((p_w + p_l) / 2)) if estimator == "nwj_mixture" else np.log(p_w / p_l)
    assert factor * population_loss(best, p_w, p_l, estimator)[0] + offset == pytest.approx(true, abs=1e-12)
    rng = np.random.default_rng(seed)
    for scale in (1e-3, 0.1, 1.0, 3.0):
        for _ in range(50):
            critic = best + scale * rng.standard_normal(6)
            assert factor * population_loss(critic, p_w, p_l, estimator)[0] + offset <= true + 1e-12
    if (ceiling := MI_CEILING[estimator]) is not None:
        assert true < ceiling


def test_the_nwj_optimum_of_a_table_has_the_directly_computed_kl_as_its_value() -> None:
    for seed in range(5):
        p_w, p_l = table(seed)
        value = 1 - population_loss(best_critic(p_w, p_l, "nwj"), p_w, p_l, "nwj")[0]
        assert value == pytest.approx(float(rel_entr(p_w, p_l).sum()), abs=1e-8)


@every_estimator
def test_mi_estimate_is_the_affine_image_of_the_mean_loss(estimator: str) -> None:
    chosen, rejected = log_ratios(40, seed=8, scale=1.0)
    output = infopo_loss(chosen, rejected, estimator=estimator, beta=1.0)
    factor, offset = AFFINE[estimator]
    got = mi_estimate(output.chosen_critic, output.rejected_critic, estimator=estimator)
    assert got.item() == pytest.approx(factor * output.losses.mean().item() + offset, abs=1e-12)
    torch.testing.assert_close(bound_of_loss(output.losses, estimator), factor * output.losses + offset)
    assert mi_estimate(torch.zeros(3), torch.zeros(3), estimator=estimator) == pytest.approx(0, abs=1e-7)


def test_mi_estimate_with_a_cap_follows_the_capped_loss_and_without_one_the_bound() -> None:
    critics = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 200.0])
    assert mi_estimate(*critics) == -math.inf
    capped = 1 - infopo_loss(*critics, beta=1.0, max_exponent=5.0).losses.mean()
    assert mi_estimate(*critics, max_exponent=5.0).item() == pytest.approx(capped.item(), rel=1e-6)
    assert mi_estimate(*critics, estimator="jsd").item() == pytest.approx(-49.5, abs=0.5)


# --- gradients -------------------------------------------------------------------------------------------------------


TABLE: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "nwj": lambda w, r: (-1.0, math.exp(r)),
    "infonce": lambda w, r: (-1 / (1 + math.exp(w - r)), 1 / (1 + math.exp(w - r))),
    "jsd": lambda w, r: (-1 / (1 + math.exp(w)), 1 / (1 + math.exp(-r))),
    "lsif": lambda w, r: (-math.exp(w), math.exp(2 * r)),
    "nwj_mixture": lambda w, r: (-(1 - 0.5 * math.exp(w)), 0.5 * math.exp(r)),
}


@every_estimator
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_gradients_are_those_of_the_specifications_table(estimator: str, beta: float) -> None:
    chosen, rejected = log_ratios(50, seed=1, scale=0.7)
    infopo_loss(chosen, rejected, estimator=estimator, beta=beta).losses.sum().backward()
    critics = beta * chosen.detach(), beta * rejected.detach()
    pull, push = pull_and_push(*critics, estimator=estimator)
    for i, (f_w, f_l) in enumerate(zip(*(side.tolist() for side in critics), strict=True)):
        du_w, du_l = TABLE[estimator](f_w, f_l)
        assert chosen.grad[i].item() == pytest.approx(beta * du_w, rel=1e-12, abs=1e-15)
        assert rejected.grad[i].item() == pytest.approx(beta * du_l, rel=1e-12, abs=1e-15)
        assert (-pull[i].item(), push[i].item()) == pytest.approx((du_w, du_l), rel=1e-12, abs=1e-15)


@every_estimator
@pytest.mark.parametrize("place", [-3.0, -1e-3, 0.0, 1e-3, 2.0])
def test_gradients_are_finite_differences_below_at_and_above_the_cap(estimator: str, place: float) -> None:
    cap, lengths = 1.5, torch.tensor([1, 3])
    critic = torch.full((2,), (cap + place) / (2 if estimator == "lsif" else 1), dtype=torch.float64)
    for w, r in ((critic, critic - 1), (critic - 1, critic), (critic + 1, critic)):
        pair = w.clone().requires_grad_(), r.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda a, b: infopo_loss(a, b, estimator=estimator, beta=1.0, max_exponent=cap).losses, pair, atol=1e-5
        )
        assert torch.autograd.gradcheck(
            lambda a, b: (
                infopo_loss(
                    a,
                    b,
                    estimator=estimator,
                    beta=2.0,
                    chosen_lengths=lengths,
                    rejected_lengths=lengths,
                    max_exponent=cap,
                ).losses
            ),
            pair,
            atol=1e-5,
        )


@every_unpaired
@pytest.mark.parametrize("place", [-3.0, 0.0, 2.0])
def test_unpaired_gradients_are_finite_differences_below_at_and_above_the_cap(estimator: str, place: float) -> None:
    cap = 1.5
    critic = torch.full((4,), (cap + place) / (2 if estimator == "lsif" else 1), dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 1])
    assert torch.autograd.gradcheck(
        lambda u: (
            infopo_unpaired_loss(
                u, labels, estimator=estimator, beta=1.0, positive_fraction=0.3, max_exponent=cap
            ).losses
        ),
        (critic.requires_grad_(),),
        atol=1e-5,
    )


@every_estimator
def test_pull_and_push_are_the_slopes_above_the_cap_too(estimator: str) -> None:
    chosen, rejected = log_ratios(50, seed=2, scale=6.0)
    infopo_loss(chosen, rejected, estimator=estimator, beta=1.0, max_exponent=3.0).losses.sum().backward()
    pull, push = pull_and_push(chosen.detach(), rejected.detach(), estimator=estimator, max_exponent=3.0)
    torch.testing.assert_close(-chosen.grad, pull, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(rejected.grad, push, rtol=1e-12, atol=1e-15)


# --- the exponential's cap -------------------------------------------------------------------------------------------


def test_bounded_exp_is_exp_below_the_cap_and_its_tangent_above() -> None:
    below = torch.linspace(-50, 10, 1001)
    assert torch.equal(bounded_exp(below), torch.exp(below))
    above = torch.tensor([10.5, 20.0, 1e3], dtype=torch.float64, requires_grad=True)
    value = bounded_exp(above)
    value.sum().backward()
    expected = [math.exp(10) * (1 + x - 10) for x in above.tolist()]
    assert value.tolist() == pytest.approx(expected, rel=1e-14)
    assert above.grad.tolist() == pytest.approx([math.exp(10)] * 3, rel=1e-14)  # a clamp would give zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients_are_finite_in_every_precision(dtype: torch.dtype, estimator: str) -> None:
    extreme = torch.tensor([1e4, -1e4, 0.0, 11.0, 88.0], dtype=dtype)
    assert bounded_exp(extreme).dtype == torch.float32
    assert bounded_exp(extreme).isfinite().all()
    for chosen, rejected in ((extreme, extreme), (extreme, -extreme), (-extreme, extreme)):
        pair = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            output = infopo_loss(*pair, estimator=estimator, beta=1.0)
        assert output.losses.dtype == output.chosen_critic.dtype == torch.float32
        output.losses.sum().backward()
        assert output.losses.isfinite().all()
        assert all(side.grad.isfinite().all() for side in pair)


def test_a_runaway_rejected_response_is_still_pushed_down() -> None:
    runaway = torch.tensor([5_000.0], requires_grad=True)
    infopo_loss(torch.zeros(1), runaway, beta=0.1).losses.sum().backward()
    assert runaway.grad.item() == pytest.approx(0.1 * math.exp(10), rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("nwj", [False, False, False, True, True]),
        ("infonce", [False] * 5),
        ("jsd", [False] * 5),
        ("lsif", [False, True, True, True, True]),
        ("nwj_mixture", [False, False, True, True, True]),
    ],
)
def test_clipped_names_the_pairs_with_an_exponent_above_the_cap(estimator: str, expected: list[bool]) -> None:
    # pairs (f_w, f_l) at cap 2: at it, 2 f_l above it, f_w above it, f_l above it, both
    chosen, rejected = torch.tensor([2.0, 0.0, 2.1, 0.0, 9.0]), torch.tensor([1.0, 1.1, 0.0, 2.1, 9.0])
    assert infopo_loss(chosen, rejected, estimator=estimator, beta=1.0, max_exponent=2.0).clipped.tolist() == expected


def test_float64_stays_float64() -> None:
    chosen, rejected = log_ratios(3, seed=0)
    assert {value.dtype for value in infopo_loss(chosen, rejected)[:3]} == {torch.float64}
    assert infopo_unpaired_loss(chosen, torch.tensor([True, False, True])).losses.dtype == torch.float64


# --- a reimplementation without tensors ------------------------------------------------------------------------------


def scalar_loss(estimator: str, f_w: float, f_l: float, cap: float) -> float:
    """Loss of one pair by the standard library."""

    def exp(x: float) -> float:
        return math.exp(x) if x <= cap else math.exp(cap) * (1 + x - cap)

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    return {
        "nwj": lambda: -f_w + exp(f_l),
        "infonce": lambda: -log_sigmoid(f_w - f_l),
        "jsd": lambda: -log_sigmoid(f_w) - log_sigmoid(-f_l),
        "lsif": lambda: -exp(f_w) + exp(2 * f_l) / 2,
        "nwj_mixture": lambda: -f_w + (exp(f_w) + exp(f_l)) / 2,
    }[estimator]()


def token_lists(seed: int, rows: int) -> list[tuple[list[float], list[float]]]:
    """Per row, the completion tokens' log-probabilities under the policy and under the reference; some are empty."""
    rng = np.random.default_rng(seed)
    return [
        ((-rng.gamma(2.0, 1.0, n)).tolist(), (-rng.gamma(2.0, 1.0, n)).tolist()) for n in rng.integers(0, 12, rows)
    ]


@every_estimator
@pytest.mark.parametrize("normalised", [False, True])
def test_losses_are_those_of_a_loop_over_token_lists(estimator: str, normalised: bool) -> None:
    beta, cap = (1.5 if normalised else 0.4), 2.5
    chosen, rejected = token_lists(1, 30), token_lists(2, 30)
    expected, critics = [], []
    for pair in zip(chosen, rejected, strict=True):
        f = []
        for policy, reference in pair:
            u = 0.0
            for new, old in zip(policy, reference, strict=True):
                u += new - old
            f.append(beta * u / max(len(policy), 1) if normalised else beta * u)
        critics.append(f)
        expected.append(scalar_loss(estimator, f[0], f[1], cap))

    def stacked(rows: list[tuple[list[float], list[float]]]) -> tuple[Tensor, Tensor]:
        sums = [sum(policy) - sum(reference) for policy, reference in rows]
        return torch.tensor(sums, dtype=torch.float64), torch.tensor([len(policy) for policy, _ in rows])

    (u_w, n_w), (u_l, n_l) = stacked(chosen), stacked(rejected)
    lengths = {"chosen_lengths": n_w, "rejected_lengths": n_l} if normalised else {}
    output = infopo_loss(u_w, u_l, estimator=estimator, beta=beta, max_exponent=cap, **lengths)
    assert output.losses.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert output.chosen_critic.tolist() == pytest.approx([f_w for f_w, _ in critics], rel=1e-10, abs=1e-12)
    assert output.rejected_critic.tolist() == pytest.approx([f_l for _, f_l in critics], rel=1e-10, abs=1e-12)
    assert not output.chosen_critic.requires_grad
    assert any(n == 0 for n in n_w.tolist())  # an empty completion was among them


@every_unpaired
def test_unpaired_losses_are_those_of_a_loop(estimator: str) -> None:
    generator = torch.Generator().manual_seed(5)
    u = torch.randn(20, generator=generator, dtype=torch.float64)
    labels = torch.rand(20, generator=generator) < 0.4
    output = infopo_unpaired_loss(u, labels, estimator=estimator, beta=2.0, positive_fraction=0.3, max_exponent=1.0)
    # A side's term is the pair's loss less the other side's term, and the other side's at critic 0 is known.
    a0, b0 = {"nwj": (0, 1), "jsd": (math.log(2),) * 2, "lsif": (-1, 0.5), "nwj_mixture": (0.5, 0.5)}[estimator]
    for f, good, loss in zip((2 * u).tolist(), labels.tolist(), output.losses.tolist(), strict=True):
        if good:
            expected = (scalar_loss(estimator, f, 0.0, 1.0) - b0) / (2 * 0.3)
        else:
            expected = (scalar_loss(estimator, 0.0, f, 1.0) - a0) / (2 * 0.7)
        assert loss == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert output.chosen_critic.tolist() == pytest.approx((2 * u)[labels].tolist())
    assert output.rejected_critic.tolist() == pytest.approx((2 * u)[~labels].tolist())


# --- what is refused -------------------------------------------------------------------------------------------------

PAIR = (torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: infopo_loss(*PAIR, estimator="nwg"), ["'nwg'", "nwj, infonce, jsd, lsif, nwj_mixture", "mean 'nwj'"]),
        (lambda: infopo_loss(*PAIR, estimator="JSD"), ["'JSD'", "jsd"]),
        (lambda: infopo_loss(*PAIR, estimator="dv"), ["Donsker-Varadhan", "accumulation", "'nwj'"]),
        (lambda: mi_estimate(*PAIR, estimator="dv"), ["'nwj'"]),
        (lambda: pull_and_push(*PAIR, estimator="mixture"), ["'nwj_mixture'"]),
        (lambda: infopo_loss(*PAIR, beta=0.0), ["beta", "positive"]),
        (lambda: infopo_loss(*PAIR, beta=math.inf), ["beta", "inf"]),
        (lambda: infopo_loss(*PAIR, max_exponent=0.0), ["max_exponent", "(0, 80]"]),
        (lambda: infopo_loss(*PAIR, estimator="infonce", max_exponent=81.0), ["max_exponent", "81.0"]),
        (lambda: infopo_loss(torch.zeros(2), torch.zeros(3)), ["(2,)", "(3,)"]),
        (lambda: infopo_loss(*PAIR, chosen_lengths=torch.ones(2)), ["chosen_lengths", "rejected_lengths"]),
        (lambda: infopo_loss(*PAIR, chosen_lengths=torch.ones(1), rejected_lengths=torch.ones(2)), ["lengths (1,)"]),
        (lambda: infopo_unpaired_loss(PAIR[0], PAIR[1], estimator="infonce"), ["partner", "'jsd'"]),
        (lambda: infopo_unpaired_loss(PAIR[0], PAIR[1], estimator="dv"), ["'nwj'"]),
        (lambda: infopo_unpaired_loss(PAIR[0], torch.zeros(3)), ["labels (3,)"]),
        (lambda: infopo_unpaired_loss(*PAIR, positive_fraction=1.0), ["positive_fraction", "one class only"]),
        (lambda: infopo_unpaired_loss(*PAIR, positive_fraction=0.0), ["positive_fraction"]),
        (lambda: infopo_unpaired_loss(*PAIR, positive_fraction=math.nan), ["positive_fraction"]),
        (lambda: mi_estimate(torch.zeros(2), torch.zeros(3), estimator="infonce"), ["pair"]),
        (lambda: bounded_exp(torch.zeros(1), max_exponent=-1.0), ["max_exponent"]),
    ],
)
def test_what_cannot_be_used_is_a_value_error_that_says_what_to_do(call: Callable, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
