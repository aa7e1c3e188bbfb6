"""Other ways to choose the source of the next micro-batch, under the same sampler as ours. A part of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_ext.bandits.mixture import SideObservationMixture

_DRAWS = 7  # a stream of random numbers of their own
REWARD_SCALE = 10.0  # of online data mixing: its reward is a tenth of the loss
TEMPERATURE = 1.0  # nats, of the softmax of losses
FADING = 0.9  # of a running mean loss, a micro-batch


class ChosenByShares(SideObservationMixture):
    """
    Sources drawn independently with the shares that `current_shares` gives; losses come to `learn`, each step.

    Args:
        sources (`dict[str, Dataset]`):
            Name to rows.
        seed (`int`):
            Of the draws.
    """

    def __init__(self, sources: Mapping[str, Dataset], seed: int) -> None:
        super().__init__(sources, reward="loss", reward_every=1, floor_share=0.0, seed=seed)

    def current_shares(self) -> NDArray[np.float64]:
        """Shares of the next micro-batches, shape `(K,)`."""
        raise NotImplementedError

    def learn(self, source: int, loss: float) -> None:
        """Take in the loss of a micro-batch; the default forgets it."""

    def choose(self, start: int, length: int) -> list[int]:
        """Draw with the shares of the moment."""
        generator = np.random.default_rng((self.seed, _DRAWS, start))
        return generator.choice(len(self.names), size=length, p=self.current_shares()).tolist()

    def tell(self, step: int, rewards: Sequence[float]) -> None:
        """Losses of the micro-batches of a step."""
        first = step * self.batches_per_step
        for position, loss in enumerate(rewards):
            self.learn(self.batch_sources[first + position], loss)


class FixedShares(ChosenByShares):
    """The same shares all along."""

    def __init__(self, sources: Mapping[str, Dataset], seed: int, shares: Sequence[float]) -> None:
        super().__init__(sources, seed)
        self.fixed = np.array(shares) / sum(shares)

    def current_shares(self) -> NDArray[np.float64]:
        """As given."""
        return self.fixed


class OnlineDataMixing(ChosenByShares):
    """
    EXP3 on losses: a source whose loss is high is drawn more often.

    Reference: Albalak et al. 2023, *Efficient Online Data Mixing For Language Model Pre-Training* (arXiv 2312.02406).
    Estimated rewards are summed, and a tenth of the loss is the reward, as in its authors' code; an exploration of
    min(1/K, sqrt(log K / (K t))) falls with the micro-batches t.
    """

    def __init__(self, sources: Mapping[str, Dataset], seed: int) -> None:
        super().__init__(sources, seed)
        self.rewards = np.zeros(len(self.names))
        self.exploration = 1 / len(self.names)
        self.probabilities = np.full(len(self.names), 1 / len(self.names))
        self.num_told = 0

    def current_shares(self) -> NDArray[np.float64]:
        """Of EXP3."""
        return self.probabilities

    def learn(self, source: int, loss: float) -> None:
        """A reward weighted by the inverse of its probability."""
        size = len(self.names)
        self.num_told += 1
        self.rewards[source] += loss / REWARD_SCALE / self.probabilities[source]
        scores = self.exploration * self.rewards
        self.exploration = min(1 / size, float(np.sqrt(np.log(size) / (size * self.num_told))))
        weights = np.exp(scores - scores.max())
        self.probabilities = (1 - size * self.exploration) * weights / weights.sum() + self.exploration


class SoftmaxOfLosses(ChosenByShares):
    """Shares proportional to exp(running mean loss / temperature)."""

    def __init__(self, sources: Mapping[str, Dataset], seed: int) -> None:
        super().__init__(sources, seed)
        self.losses = np.full(len(self.names), np.nan)

    def current_shares(self) -> NDArray[np.float64]:
        """Of the losses so far; a source that was not drawn yet counts as the mean of the others."""
        if np.isnan(self.losses).all():
            return np.full(len(self.names), 1 / len(self.names))
        losses = np.where(np.isnan(self.losses), np.nanmean(self.losses), self.losses)
        weights = np.exp((losses - losses.max()) / TEMPERATURE)
        return weights / weights.sum()

    def learn(self, source: int, loss: float) -> None:
        """A running mean a source."""
        former = self.losses[source]
        self.losses[source] = loss if np.isnan(former) else FADING * former + (1 - FADING) * loss


def rival(name: str, sources: Mapping[str, Dataset], seed: int, fixed: Mapping[str, Sequence[float]]) -> Any:
    """
    The rival of that name.

    Args:
        name (`str`):
            "uniform", "proportional" (to the rows of each source), "odm", "softmax", or a key of `fixed`.
        sources (`dict[str, Dataset]`), seed (`int`):
            As of [`ChosenByShares`].
        fixed (`dict[str, Sequence[float]]`):
            Name to shares, in the order of the sources.
    """
    if name == "odm":
        return OnlineDataMixing(sources, seed)
    if name == "softmax":
        return SoftmaxOfLosses(sources, seed)
    sizes = [float(len(rows)) for rows in sources.values()]
    shares = {"uniform": [1.0] * len(sizes), "proportional": sizes} | dict(fixed)
    return FixedShares(sources, seed, shares[name])
