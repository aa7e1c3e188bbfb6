"""One draw: the inverse of the distribution function, exact where a long float32 sum would not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ext.data.sampling import draw, row_uniforms


def grid(count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Evenly spaced numbers: each token is hit by its share of them, give or take one."""
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("vocab", [3, 255, 256, 257, 1_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evenly_spaced_numbers_give_each_token_its_share(vocab, dtype):
    logits = (3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab))).to(dtype)
    exact = torch.log_softmax(logits[0].double(), dim=-1)
    tokens, logps = draw(logits, grid(20_000))
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    assert np.abs(counts - 20_000 * exact.exp().numpy()).max() <= 1.01
    torch.testing.assert_close(logps.double(), exact[tokens], atol=2e-6, rtol=0)


def test_rows_are_drawn_from_their_own_logits():
    logits = torch.full((3, 600), -50.0)
    logits[[0, 1, 2], [599, 0, 300]] = 50.0
    tokens, _ = draw(logits, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert tokens.tolist() == [599, 0, 300]
    assert logits.max() == 50.0  # the caller's logits are left as they were


def test_forty_thousand_rare_tokens_behind_a_likely_one_keep_their_masses():
    rare, number = 1e-9, 40_000
    logits = torch.full((1, 1 + number), float(np.log(rare)))
    logits[0, 0] = 0.0
    total = 1 + number * rare
    tokens, _ = draw(logits, grid(number, low=1 / total))
    counts = np.bincount(tokens.numpy(), minlength=1 + number)
    assert counts.max() <= 2
    assert (counts == 0).sum() < number / 100  # in float32 the running sum takes about 60 tokens to change

    upto = torch.softmax(logits[0], dim=-1).cumsum(dim=-1)
    assert len(upto.unique()) < number / 10


@pytest.mark.parametrize("vocab", [5, 300])
def test_no_number_draws_a_token_without_mass(vocab):
    logits = torch.zeros(1, vocab)
    logits[0, [0, 2, vocab - 1]] = -torch.inf
    ends = torch.tensor([0.0, 2.0**-60, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logps = draw(logits, torch.cat([ends, grid(5_000)]))
    assert not {0, 2, vocab - 1} & set(tokens.tolist())
    assert (tokens.min(), tokens.max()) == (1, vocab - 2)
    torch.testing.assert_close(logps, torch.full_like(logps, -np.log(vocab - 3)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_no_number_is_refused(bad):
    logits = torch.zeros(4, 300)
    logits[2, 299] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        draw(logits, grid(4))


def test_a_rows_numbers_depend_on_the_seed_and_the_row_alone():
    numbers = row_uniforms(3, range(10), 12)
    assert numbers.shape == (10, 12)
    assert numbers.unique().numel() == 120
    assert torch.equal(row_uniforms(3, range(4, 6), 5), numbers[4:6, :5])
    assert not torch.equal(row_uniforms(4, range(10), 12), numbers)
