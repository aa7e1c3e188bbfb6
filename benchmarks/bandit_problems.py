"""
Bandits with side information for the benchmark of regret: means, and what each arm shows of the others.

Six are written down. `fresh` draws more; it was committed, with its test, before a policy was run on what it draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hf_ext.bandits.lower_bound import lower_bound
from hf_ext.bandits.side_observations import SideInformation

FloatArray = NDArray[np.float64]

BANDIT_MEANS = (1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
HUB_MEANS = (1, 0.9, 0.85, 0.8, 0.8, 0.75, 0.75, 0.7, 0.7, 0.7)
REVEAL_MEANS = (1, 0.7, 0.6, 0.3)
FRESH_SEEDS = (1, 2, 3, 4, 5, 6)
SMALLEST_BOUND = 3.0  # of a fresh one: below it constants, and no policy, decide a ratio at 100,000 rounds


@dataclass(frozen=True, eq=False)
class Problem:
    """
    Arms with known means.

    Args:
        name (`str`):
            "hub", "fresh 3", ...
        means (array of shape `(K,)`):
            In units of reward.
        info ([`SideInformation`]):
            What playing an arm tells.
    """

    name: str
    means: FloatArray
    info: SideInformation


@cache
def problems() -> list[Problem]:
    """The six that are written down, then the fresh ones."""
    return [*written_problems(), *(fresh(seed) for seed in FRESH_SEEDS)]


def written_problems() -> list[Problem]:
    """Bandit, full, hub, reveal, ring and kernel."""
    bandit = np.array(BANDIT_MEANS, dtype=np.float64)
    hub = np.array(HUB_MEANS, dtype=np.float64)
    hub_precision = np.eye(10)
    hub_precision[9] = 4
    reveal_precision = np.zeros((4, 4))
    reveal_precision[3] = 1
    steps = (np.arange(8)[:, None] - np.arange(8)) % 8
    kernel = np.exp(-np.square(np.arange(10)[:, None] - np.arange(10)) / 2)
    return [
        Problem("bandit", bandit, SideInformation.bandit(8)),
        Problem("full", bandit, SideInformation.full(8)),
        Problem("hub", hub, SideInformation(hub_precision)),
        Problem("reveal", np.array(REVEAL_MEANS, dtype=np.float64), SideInformation(reveal_precision)),
        Problem("ring", bandit, SideInformation.graph(np.isin(steps, (0, 1, 7)))),
        Problem("kernel", hub, SideInformation(np.where(kernel < 0.05, 0.0, kernel))),
    ]


def fresh(seed: int) -> Problem:
    """
    Arms of random means, 5 to 10 of them, of the kind that `seed % 3` says: looks at random others (0), looks at what
    lies near in a plane (1), or one arm that shows all (2). Every arm shows itself, so that every policy is defined.

    Where the lower bound is below `SMALLEST_BOUND` the same generator draws again.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    while True:
        means, precision = _drawn(generator, seed % 3)
        info = SideInformation(precision)
        if lower_bound(means, info).value >= SMALLEST_BOUND:
            return Problem(f"fresh {seed}", means, info)


def _drawn(generator: np.random.Generator, kind: int) -> tuple[FloatArray, FloatArray]:
    """Means with gaps of 0.1 to 0.9 below 1, and precisions; in random order."""
    size = int(generator.integers(5, 11))
    means = 1 - np.append(0.0, generator.uniform(0.1, 0.9, size - 1))
    if kind == 0:
        precision = (generator.random((size, size)) < 0.3) * generator.uniform(0.25, 4, (size, size))
        np.fill_diagonal(precision, generator.uniform(0.5, 2, size))
    elif kind == 1:
        places = generator.random((size, 2))
        distances = np.square(places[:, None] - places).sum(axis=2)
        precision = np.exp(-distances / 0.1)
        precision[precision < 0.05] = 0
    else:
        precision = np.diag(generator.uniform(0.5, 2, size))
        precision[generator.integers(1, size)] = generator.uniform(1, 4, size)
    order = generator.permutation(size)
    return means[order], precision[np.ix_(order, order)]
