"""Regret of the policies against known means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.bandits.curves import RegretCurves
from hf_ext.bandits.information import SideInformation, float_array, require_information
from hf_ext.bandits.rules import Beliefs, PolicyName, Rules, learning_precision
from hf_ext.guards.numbers import COUNT, SEED, SIZE

__all__ = ["simulate"]

FloatArray = NDArray[np.float64]

_BLOCK = 256  # rounds whose noise is drawn at once
_MOST_NOISE = 2**23  # numbers of it that are held at once; the runs do not depend on how they are cut


def simulate(
    means: ArrayLike,
    info: SideInformation,
    policy: PolicyName = "purchase",
    *,
    horizon: int,
    replicas: int = 60,
    seed: int = 0,
    marks: Sequence[int] | None = None,
    loglog: float = 0.0,
    replan_slack: float = 0.1,
    forced_eps: float = 0.3,
) -> RegretCurves:
    """
    Play a policy against known means, all replicas at once.

    The same seed gives every policy the same noise: what is shown of an arm in a round of a replica is its mean plus
    the same standard normal number times the standard deviation of whoever shows it.

    Args:
        means (array of shape `(K,)`):
            True means, finite, in units of reward; more is better.
        info ([`SideInformation`]):
            What playing an arm tells; without bias.
        policy (`str`, *optional*, defaults to `"purchase"`):
            See [`SideObservationPolicy`].
        horizon (`int`):
            Rounds.
        replicas (`int`, *optional*, defaults to `60`):
            Independent runs.
        seed (`int`, *optional*, defaults to `0`):
            Of noise and draws.
        marks (`Sequence[int]`, *optional*):
            Rounds after which the regret is noted, rising, within the horizon; the horizon otherwise.
        loglog, replan_slack, forced_eps (`float`, *optional*):
            Of the policy.

    Returns:
        [`RegretCurves`]: the regret of every replica at every mark.

    Raises:
        TypeError: if `info` is a matrix.
        ValueError: if a number is out of bounds, the means do not fit, or an observation has a bias.
    """
    require_information(info)
    mu = float_array("means", means)
    if mu.shape != (info.num_arms,) or not np.isfinite(mu).all():
        raise ValueError(f"means must be {info.num_arms} finite numbers, one an arm, got {mu.tolist()!r}."[:400])
    if info.bias_sd is not None:
        raise ValueError("simulate draws observations without bias. Leave bias_sd out.")
    for name, value, bounds in (("horizon", horizon, COUNT), ("replicas", replicas, SIZE), ("seed", seed, SEED)):
        problem = bounds.problem_of(value)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
    horizon, replicas = int(horizon), int(replicas)  # 1e5 is a whole number too
    rounds = np.atleast_1d(horizon if marks is None else np.asarray(marks))
    is_whole = rounds.dtype.kind in "iuf" and rounds.ndim == 1 and len(rounds) > 0 and not (rounds % 1).any()
    if not is_whole or (np.diff(rounds) <= 0).any() or not 1 <= rounds[0] <= rounds[-1] <= horizon:
        raise ValueError(f"marks must be rising whole rounds from 1 to {horizon:,}, got {marks!r}."[:400])
    stops = tuple(int(mark) for mark in rounds)
    precision = learning_precision(info.precision, policy)
    rules = Rules(precision, policy, loglog, replan_slack, forced_eps)
    noise, draws = (
        np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(int(seed)).spawn(2)
    )
    beliefs = Beliefs.none(replicas, len(mu))
    everyone = np.arange(replicas)
    # A precision times a value of mean mu and that precision, of standard normal noise z: P mu + sqrt(P) z.
    look_table = np.stack([precision, precision * mu, np.sqrt(precision)], axis=1)  # (K, 3, K): looked up once a round
    curves = np.zeros((replicas, len(stops)))
    needs_draws = policy in ("purchase", "thompson")
    block = max(1, min(_BLOCK, _MOST_NOISE // (replicas * len(mu))))
    for first in range(1, horizon + 1, block):
        length = min(block, horizon + 1 - first)
        shocks = noise.standard_normal((length, replicas, len(mu)))
        scores = draws.standard_normal(shocks.shape) if needs_draws else shocks
        for t in range(first, first + length):
            arms = rules.arms(beliefs, t, scores[t - first], precision)
            gain, drift, spread = look_table.take(arms, axis=0).swapaxes(0, 1)
            beliefs.information += gain
            beliefs.weighted_sums += drift + spread * shocks[t - first]
            beliefs.plays[everyone, arms] += 1
            if t in stops:
                curves[:, stops.index(t)] = beliefs.plays @ (mu.max() - mu)
    return RegretCurves(policy, mu, info, stops, curves, beliefs.plays)
