"""Properties of InfoPO's losses on any log-ratios: bounds, invariances, convexity, and rows in place of pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.losses.infopo import (
    ESTIMATORS,
    MI_CEILING,
    UNPAIRED_ESTIMATORS,
    bounded_exp,
    infopo_loss,
    infopo_unpaired_loss,
    mi_estimate,
    pull_and_push,
)
from tests.losses.properties import EXAMPLES, tensors

CAP = 4.0

estimators = st.sampled_from(ESTIMATORS)
betas = st.floats(0.01, 3.0)


def pairs(bound: float = 40.0, max_size: int = 12) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Log-ratios of chosen and rejected, each of shape `(pairs,)`, in float64."""
    both = tensors((-bound, bound), (-bound, bound), max_rows=1, max_columns=max_size)
    return both.map(lambda sides: (sides[0][0], sides[1][0]))


@st.composite
def labelled(draw: Any) -> tuple[Tensor, Tensor]:
    """Log-ratios and labels of a data set with both classes."""
    u = torch.cat(draw(pairs(max_size=6)))
    labels = draw(st.lists(st.booleans(), min_size=len(u), max_size=len(u)))
    assume(any(labels) and not all(labels))
    return u, torch.tensor(labels)


@given(pairs(), estimators, betas)
@EXAMPLES
def test_the_bound_never_exceeds_its_ceiling(pair: tuple[Tensor, Tensor], estimator: str, beta: float) -> None:
    output = infopo_loss(*pair, estimator=estimator, beta=beta, max_exponent=CAP)
    exact = mi_estimate(output.chosen_critic, output.rejected_critic, estimator=estimator).item()
    capped = mi_estimate(output.chosen_critic, output.rejected_critic, estimator=estimator, max_exponent=CAP).item()
    ceiling = MI_CEILING[estimator]
    assert ceiling is None or exact <= ceiling + 1e-12
    assert math.isfinite(capped)
    if not output.clipped.any():
        assert exact == pytest.approx(capped, rel=1e-9, abs=1e-9)


@given(pairs(), betas, st.randoms(use_true_random=False), estimators)
@EXAMPLES
def test_the_order_and_the_company_of_pairs_do_not_matter(
    pair: tuple[Tensor, Tensor], beta: float, rng: Any, estimator: str
) -> None:
    order = list(range(len(pair[0])))
    rng.shuffle(order)
    whole = infopo_loss(*pair, estimator=estimator, beta=beta, max_exponent=CAP)
    shuffled = infopo_loss(*(side[order] for side in pair), estimator=estimator, beta=beta, max_exponent=CAP)
    alone = [
        infopo_loss(*(side[i : i + 1] for side in pair), estimator=estimator, beta=beta, max_exponent=CAP).losses
        for i in order
    ]
    torch.testing.assert_close(whole.losses[order], shuffled.losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(alone), shuffled.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole.clipped[order], shuffled.clipped)


@given(pairs(), betas, st.floats(0.1, 10), estimators)
@EXAMPLES
def test_beta_is_a_scale_of_the_log_ratios_and_lengths_divide_them(
    pair: tuple[Tensor, Tensor], beta: float, factor: float, estimator: str
) -> None:
    settings_ = {"estimator": estimator, "max_exponent": CAP}
    scaled = infopo_loss(*(factor * side for side in pair), beta=beta, **settings_).losses
    torch.testing.assert_close(
        scaled, infopo_loss(*pair, beta=factor * beta, **settings_).losses, rtol=1e-9, atol=1e-9
    )
    lengths = torch.arange(len(pair[0])), torch.arange(1, len(pair[0]) + 1)
    normalised = infopo_loss(
        *pair, beta=beta, chosen_lengths=lengths[0], rejected_lengths=lengths[1], **settings_
    ).losses
    by_hand = [side / n.clamp(min=1) for side, n in zip(pair, lengths, strict=True)]
    torch.testing.assert_close(normalised, infopo_loss(*by_hand, beta=beta, **settings_).losses, rtol=1e-9, atol=1e-9)


@given(pairs(), betas, estimators)
@EXAMPLES
def test_every_estimator_pushes_the_rejected_response_down_and_nwj_pulls_the_chosen_one_alike(
    pair: tuple[Tensor, Tensor], beta: float, estimator: str
) -> None:
    chosen, rejected = (side.clone().requires_grad_() for side in pair)
    infopo_loss(chosen, rejected, estimator=estimator, beta=beta, max_exponent=CAP).losses.sum().backward()
    assert (rejected.grad >= 0).all()
    if estimator == "nwj":
        torch.testing.assert_close(chosen.grad, torch.full_like(chosen, -beta), rtol=1e-12, atol=0)
    pull, push = pull_and_push(beta * pair[0], beta * pair[1], estimator=estimator, max_exponent=CAP)
    torch.testing.assert_close(chosen.grad, -beta * pull, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rejected.grad, beta * push, rtol=1e-9, atol=1e-12)


@given(pairs(), pairs(), st.floats(0, 1), st.sampled_from([name for name in ESTIMATORS if name != "lsif"]))
@EXAMPLES
def test_losses_other_than_lsif_are_convex_in_the_log_ratios_across_the_cap(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], share: float, estimator: str
) -> None:
    n = min(len(first[0]), len(second[0]))
    ends = [tuple(side[:n] for side in pair) for pair in (first, second)]
    between = tuple(share * a + (1 - share) * b for a, b in zip(*ends, strict=True))

    def losses(pair: tuple[Tensor, ...]) -> Tensor:
        return infopo_loss(*pair, estimator=estimator, beta=0.5, max_exponent=CAP).losses

    above = share * losses(ends[0]) + (1 - share) * losses(ends[1])
    assert (losses(between) <= above + 1e-9 * (1 + above.abs())).all()


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8), st.floats(0.1, 80.0))
@EXAMPLES
def test_bounded_exp_lies_under_exp_grows_and_never_ends(values: list[float], cap: float) -> None:
    x = torch.tensor(sorted(values), dtype=torch.float64, requires_grad=True)
    y = bounded_exp(x, cap)
    y.sum().backward()
    assert y.isfinite().all()
    assert (y <= torch.exp(x) * (1 + 1e-12)).all()
    assert (y.diff() >= 0).all()
    assert (x.grad <= math.exp(cap) * (1 + 1e-12)).all()
    assert (x.grad[x > -700] > 0).all()


@given(pairs(), betas, st.sampled_from(UNPAIRED_ESTIMATORS), st.randoms(use_true_random=False))
@EXAMPLES
def test_a_pair_split_in_two_rows_has_half_the_loss_and_half_the_gradient_in_any_order(
    pair: tuple[Tensor, Tensor], beta: float, estimator: str, rng: Any
) -> None:
    settings_ = {"estimator": estimator, "beta": beta, "max_exponent": CAP}
    paired = [side.clone().requires_grad_() for side in pair]
    split = [side.clone().requires_grad_() for side in pair]
    n = len(pair[0])
    order = list(range(2 * n))
    rng.shuffle(order)
    labels = torch.tensor([True] * n + [False] * n)[order]
    expected = infopo_loss(*paired, **settings_).losses.mean() / 2
    got = infopo_unpaired_loss(torch.cat(split)[order], labels, positive_fraction=0.5, **settings_).losses.mean()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    expected.backward()
    got.backward()
    for one, other in zip(paired, split, strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-12)


@given(labelled(), betas, st.sampled_from(UNPAIRED_ESTIMATORS), st.integers(1, 5))
@EXAMPLES
def test_the_mean_over_micro_batches_is_the_whole_sets_loss_whatever_the_split(
    rows: tuple[Tensor, Tensor], beta: float, estimator: str, size: int
) -> None:
    u, labels = rows
    share = labels.double().mean().item()
    settings_ = {"estimator": estimator, "beta": beta, "max_exponent": CAP, "positive_fraction": share}
    whole = infopo_unpaired_loss(u, labels, **settings_)
    parts = [
        infopo_unpaired_loss(some, good, **settings_).losses.sum()
        for some, good in zip(u.split(size), labels.split(size), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum() / len(u), whole.losses.mean(), rtol=1e-9, atol=1e-9)
    # With the data set's share, the two classes weigh alike: the mean over all crossed pairs is twice the row mean.
    crossed = infopo_loss(
        u[labels].repeat_interleave(int((~labels).sum())),
        u[~labels].repeat(int(labels.sum())),
        estimator=estimator,
        beta=beta,
        max_exponent=CAP,
    ).losses.mean()
    torch.testing.assert_close(2 * whole.losses.mean(), crossed, rtol=1e-9, atol=1e-9)


@given(labelled(), st.sampled_from(UNPAIRED_ESTIMATORS), st.floats(0.05, 0.95))
@EXAMPLES
def test_an_infinite_critic_of_the_other_side_cannot_make_a_row_nan(
    rows: tuple[Tensor, Tensor], estimator: str, share: float
) -> None:
    u, labels = rows[0].clone(), rows[1]
    u[labels.nonzero()[0]] = 1e300
    u[(~labels).nonzero()[0]] = -1e300
    u.requires_grad_()
    losses = infopo_unpaired_loss(u, labels, estimator=estimator, beta=1.0, positive_fraction=share).losses
    losses.sum().backward()
    assert not losses.isnan().any()
    assert u.grad.isfinite().all()
