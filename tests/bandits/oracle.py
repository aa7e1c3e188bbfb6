"""Bandits computed slowly and plainly: linear programmes by HiGHS, levels on a grid, policies as loops."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linprog

from hf_ext.bandits.information import SideInformation

TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}

BANDIT_MEANS = (1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
HUB_MEANS = (1, 0.9, 0.85, 0.8, 0.8, 0.75, 0.75, 0.7, 0.7, 0.7)
REVEAL_MEANS = (1, 0.7, 0.6, 0.3)


def hub() -> SideInformation:
    precision = np.eye(10)
    precision[9] = 4
    return SideInformation(precision)


def reveal() -> SideInformation:
    precision = np.zeros((4, 4))
    precision[3] = 1
    return SideInformation(precision)


def random_problem(seed: int, sees_itself: bool) -> tuple[np.ndarray, np.ndarray]:
    """Means with the best first, and precisions of which half are 0."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 9))
    means = np.sort(rng.uniform(0, 1, size))[::-1].copy()
    means[1:] -= 0.05
    precision = (rng.random((size, size)) < 0.5) * rng.uniform(0.2, 4, (size, size))
    precision[0, 0] = rng.uniform(0.2, 4) if sees_itself else 0
    for arm in np.flatnonzero(precision[1:].sum(axis=0) == 0):
        precision[-1, arm] = 1
    return means, precision


def cheapest(costs: np.ndarray, rows: list, demands: list) -> float:
    """Cost of the cheapest plays with `row @ plays >= demand` for every row."""
    if not rows:
        return 0.0
    result = linprog(costs, -np.array(rows), -np.array(demands), method="highs", options=TIGHT)
    assert result.status == 0, result.message
    return result.fun


def lp_bound(means: np.ndarray, precision: np.ndarray) -> float:
    """The linear programme, as it is written down; the best arm is the first."""
    gaps = means[0] - means
    gaps[0] = gaps[1:].min()
    columns = [j for j in range(len(means)) if precision[0, j] == 0]
    return cheapest(
        np.append(0.0, means[0] - means[1:]), [precision[:, j] for j in columns], [2 / gaps[j] ** 2 for j in columns]
    )


def levels_of(j: int, means: np.ndarray, free: np.ndarray, points: int) -> np.ndarray:
    """Levels at which arm j could overtake all, on a grid; none where that is impossible."""
    floor = max([means[k] for k in range(len(means)) if free[k] and k != j], default=-math.inf)
    if free[j]:
        return means[[j]] if floor <= means[j] else means[:0]
    return np.linspace(max(means[j], floor), means[0], points)


def level_weights(j: int, level: float, means: np.ndarray, free: np.ndarray) -> np.ndarray:
    """What each arm's information counts in the evidence against j at a level."""
    weights = np.maximum(means - level, 0) ** 2 / 2
    weights[j] = (level - means[j]) ** 2 / 2
    return np.where(free, 0, weights)


def grid_bound(means: np.ndarray, precision: np.ndarray, points: int) -> float:
    """The exact bound with one linear constraint a grid point: from below, and near for many points."""
    free = precision[0] > 0
    weights = [
        level_weights(j, level, means, free)
        for j in range(1, len(means))
        for level in levels_of(j, means, free, points)
    ]
    rows = [precision @ row for row in weights]
    return cheapest(np.append(0.0, means[0] - means[1:]), rows, [1.0] * len(rows))


def least_nats(allocation: np.ndarray, means: np.ndarray, precision: np.ndarray, points: int) -> float:
    """Evidence against the likeliest means under which another arm is best, on a grid."""
    free = precision[0] > 0
    information = precision.T @ allocation
    return min(
        (
            level_weights(j, level, means, free) @ information
            for j in range(1, len(means))
            for level in levels_of(j, means, free, points)
        ),
        default=math.inf,
    )


def purchase_arm(policy: str, means, information, precision, t: int, draws) -> int:
    """The arm that the two purchase policies play once every arm was observed: the text of the rule, as loops."""
    size = len(means)
    f = math.log(t)
    bonus = [math.sqrt((1 if policy == "purchase" else 2) * f / information[j]) for j in range(size)]
    index = [means[j] + bonus[j] for j in range(size)]
    if policy == "purchase":
        index = [max(index[j], means[j] + draws[j] / math.sqrt(information[j])) for j in range(size)]
    leader = max(range(size), key=lambda j: means[j])
    rival = max(range(size), key=lambda j: index[j])
    gaps = [means[leader] - means[j] for j in range(size)]
    gaps[leader] = min(gaps[j] for j in range(size) if j != leader)
    gaps = [max(gap, 1e-4 * (max(means) - min(means))) for gap in gaps]
    others = [j for j in range(size) if j != leader]
    worth = {}
    if rival == leader:
        pooled = {j: 1 / (1 / information[j] + 1 / information[leader]) for j in others}
        undecided = [j for j in others if gaps[j] ** 2 * pooled[j] / 2 < f]
        if precision[leader][leader] > 0 or not undecided:
            return leader
        for i in range(size):
            worth[i] = 0.0
            for j in undecided:
                q = information[leader] / (information[j] + information[leader])
                rate = precision[i][j] * q**2 + precision[i][leader] * (1 - q) ** 2
                worth[i] += min(1, rate / (2 * f / gaps[j] ** 2 - pooled[j])) / gaps[i]
    else:
        threshold = index[leader] if policy == "purchase" else means[leader]
        for i in range(size):
            if precision[i][rival] > 0:
                shares = [min(1, precision[i][j] * gaps[j] ** 2 / (2 * f)) for j in others if index[j] > threshold]
                worth[i] = sum(shares) / gaps[i]
    return max(worth, key=lambda i: worth[i])


def reveal_regret(horizon: int, replicas: int) -> np.ndarray:
    """
    Regret of "explore until certified" where the last arm alone shows all, and its own plays teach all that there is.

    A certified leader is played until log t has caught up with its evidence: rounds are leapt over, not played.
    """
    rng = np.random.default_rng(0)
    means = np.array(REVEAL_MEANS)
    sums = np.zeros((replicas, len(means)))
    looks = np.zeros(replicas)
    rounds = np.ones(replicas)
    regret = np.zeros(replicas)
    while len(running := np.flatnonzero(rounds <= horizon)):
        ranked = np.sort(sums[running] / np.maximum(looks[running], 1)[:, None], axis=1)
        nats = (ranked[:, -1] - ranked[:, -2]) ** 2 * looks[running] / 4
        certified = (nats >= np.log(rounds[running])) & (looks[running] > 0)
        exploring = running[~certified]
        sums[exploring] += means + rng.standard_normal((len(exploring), len(means)))
        looks[exploring] += 1
        rounds[exploring] += 1
        regret[exploring] += means.max() - means[-1]
        exploiting = running[certified]
        until = np.minimum(np.floor(np.exp(np.minimum(nats[certified], 50))) + 1, horizon + 1)
        gaps = means.max() - means[sums[exploiting].argmax(axis=1)]
        regret[exploiting] += gaps * (until - rounds[exploiting])
        rounds[exploiting] = until
    return regret
