r"""
Which arm each policy plays, for R independent replicas at once.

Every array has the replicas first. A mean $m_j$ is known with information $I_j$ (its variance is $1 / I_j$); the
leader $s$ has the highest mean, gaps are $D_j = m_s - m_j$, and $D_s$ stands for the smallest other gap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_ext.bandits.lower_bound import covering_plan
from hf_ext.guards.numbers import NON_NEGATIVE

__all__ = ["Beliefs", "PolicyName", "Rules", "certificates", "learning_precision"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
PolicyName: TypeAlias = Literal["purchase", "purchase_ucb", "track", "thompson", "ucb_n", "ucb1"]

_BASELINES = ("thompson", "ucb_n", "ucb1")
_FLOOR_NATS = 0.5  # k in sqrt(2 k log t / I): on posterior draws alone a rare run gives the best arm up for ever
_GAP_FLOOR = 1e-4  # of the range of the means


@dataclass
class Beliefs:
    """
    What R replicas have learned.

    Args:
        plays (array of shape `(R, K)`):
            How often each arm was played; not whole after forgetting.
        information (array of shape `(R, K)`):
            Of each mean, in 1 / reward²; 0 where the arm was never observed.
        weighted_sums (array of shape `(R, K)`):
            Observations, each times its precision; over the information, the maximum-likelihood means.
        plan (array of shape `(R, K)`):
            Of `track`: plays per nat when it last planned.
        planned_leader (array of shape `(R,)`, int64):
            The leader then; -1 before the first plan.
        planned_at, explorations (arrays of shape `(R,)`):
            Rounds of exploration until then, and until now.
    """

    plays: FloatArray
    information: FloatArray
    weighted_sums: FloatArray
    plan: FloatArray
    planned_leader: IntArray
    planned_at: FloatArray
    explorations: FloatArray

    @classmethod
    def none(cls, replicas: int, num_arms: int) -> Self:
        """Nothing learned."""
        arms = np.zeros((replicas, num_arms))
        counts = np.zeros(replicas)
        leader = np.full(replicas, -1, dtype=np.int64)
        return cls(arms, arms.copy(), arms.copy(), arms.copy(), leader, counts, counts.copy())


class _Standing(NamedTuple):
    """Means, information, gaps floored above 0, each of shape `(R, K)`, and the leaders `(R,)`."""

    means: FloatArray
    information: FloatArray
    gaps: FloatArray
    leader: IntArray

    def take(self, rows: IntArray) -> _Standing:
        """Some of the replicas."""
        return _Standing(self.means[rows], self.information[rows], self.gaps[rows], self.leader[rows])


@dataclass(frozen=True, eq=False)
class Rules:
    """
    A policy with its settings; see [`SideObservationPolicy`] for them.

    Args:
        precision (array of shape `(K, K)`):
            Of the observations without bias.

    Raises:
        ValueError: if the policy is unknown, a setting is out of bounds, or the policy cannot use the costs or learn
            about every arm.
    """

    precision: FloatArray
    policy: PolicyName
    loglog: float = 0.0
    replan_slack: float = 0.1
    forced_eps: float = 0.3
    costs: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(PolicyName):
            names = ", ".join(map(repr, get_args(PolicyName)))
            raise ValueError(f"policy must be one of {names}, got {self.policy!r}.")
        for name in ("loglog", "replan_slack", "forced_eps"):
            problem = NON_NEGATIVE.problem_of(getattr(self, name))
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        blind_arms = np.flatnonzero(~self._sees_itself)
        if self.policy in _BASELINES and len(blind_arms):
            raise ValueError(
                f"policy={self.policy!r} learns of an arm by playing it, and arm {blind_arms[0]} does not observe "
                "itself. Use 'purchase', 'purchase_ucb' or 'track'."
            )
        if self.costs is not None:
            if self.policy not in ("purchase", "purchase_ucb"):
                raise ValueError(f"policy={self.policy!r} does not know of costs. Use 'purchase' or 'purchase_ucb'.")
            if self.costs.shape != (len(self.precision),) or not ((self.costs > 0) & (self.costs < np.inf)).all():
                raise ValueError(f"costs must be {len(self.precision)} finite numbers above 0, one an arm.")

    @cached_property
    def _sees_itself(self) -> NDArray[np.bool_]:
        return self.precision.diagonal() > 0

    def nats(self, rounds: float) -> float:
        """f(t): the nats of evidence that round t asks for."""
        log = math.log(max(rounds, 1.0))
        return log + self.loglog * math.log1p(log)

    def arms(self, beliefs: Beliefs, rounds: float, draws: FloatArray, gain: FloatArray) -> IntArray:
        """
        What each replica plays next.

        Args:
            beliefs ([`Beliefs`]):
                `track` changes its plan and its count of explorations.
            rounds (`float`):
                t, counted from 1.
            draws (array of shape `(R, K)`):
                Standard normal; only `purchase` and `thompson` look at them.
            gain (array of shape `(K, K)`):
                Information that one more play of the row brings of the column: the precision, less where a bias
                bounds it.

        Returns:
            Array of shape `(R,)`, int64.
        """
        if len(self.precision) == 1:
            return np.zeros(len(beliefs.plays), dtype=np.int64)
        nats = self.nats(rounds)
        if self.policy in _BASELINES:
            score = draws if self.policy == "thompson" else math.sqrt(2 * nats)
            return _index(beliefs, score).argmax(axis=1)
        if beliefs.information.min() > 0:
            return self._informed(beliefs, slice(None), nats, draws, gain)
        uncovered = beliefs.information <= 0
        arms = _cover(uncovered, beliefs.plays, gain)
        rows = np.flatnonzero(~uncovered.any(axis=1))
        if len(rows):
            arms[rows] = self._informed(beliefs, rows, nats, draws[rows], gain)
        return arms

    def _informed(
        self, beliefs: Beliefs, rows: IntArray | slice, nats: float, draws: FloatArray, gain: FloatArray
    ) -> IntArray:
        """The arms of replicas that have observed every arm; `rows` as a slice copies nothing."""
        information = beliefs.information[rows]
        means = beliefs.weighted_sums[rows] / information
        if self.policy == "track":
            return self._track(beliefs, np.arange(len(beliefs.plays))[rows], _standing(means, information), nats, gain)
        if self.policy == "purchase":
            index = means + np.maximum(draws, math.sqrt(2 * _FLOOR_NATS * nats)) / np.sqrt(information)
        else:
            index = means + math.sqrt(2 * nats) / np.sqrt(information)
        leader = means.argmax(axis=1)
        rival = index.argmax(axis=1)
        arms = leader.copy()
        doubtful = np.flatnonzero(rival != leader)
        if len(doubtful):
            standing = _standing(means[doubtful], information[doubtful])
            arms[doubtful] = self._purchase(standing, index[doubtful], rival[doubtful], nats, gain)
        if self.costs is not None or not self._sees_itself.all():
            # A leader that does not see itself would be trusted for ever, and under costs its plays are no gain.
            is_untold = np.full(len(leader), True) if self.costs is not None else ~self._sees_itself[leader]
            blind = np.flatnonzero((rival == leader) & is_untold)
            if len(blind):
                arms[blind] = self._tell_apart(_standing(means[blind], information[blind]), nats, gain)
        return arms

    def _prices(self, standing: _Standing) -> FloatArray:
        return standing.gaps if self.costs is None else np.broadcast_to(self.costs, standing.gaps.shape)

    def _purchase(
        self, standing: _Standing, index: FloatArray, rival: IntArray, nats: float, gain: FloatArray
    ) -> IntArray:
        """Of the arms that observe the rival, the one that settles most doubts for its price."""
        replicas = np.arange(len(rival))
        # An arm is in doubt if it rivals the leader's index, under a draw, or its mean, under UCB.
        threshold = (index if self.policy == "purchase" else standing.means)[replicas, standing.leader]
        doubted = index > threshold[:, None]
        doubted[replicas, standing.leader] = False
        weights = standing.gaps**2 / (2 * nats)
        shares = np.minimum(gain * weights[:, None, :], 1) * doubted[:, None, :]  # (R, played, learned)
        value = shares.sum(axis=2) / self._prices(standing)
        value[gain[:, rival].T <= 0] = -1
        return value.argmax(axis=1)

    def _tell_apart(
        self, standing: _Standing, nats: float, gain: FloatArray, candidates: NDArray[np.bool_] | None = None
    ) -> IntArray:
        """
        The arm that brings the leader's certificate furthest for its price; the leader where nothing is open.

        The variance of a difference of means is $1/v_j$ with $1/v_j = 1/I_j + 1/I_s$. $v_j$ grows with $I_j$ at the
        rate $q^2$ and with $I_s$ at $(1-q)^2$, $q = I_s / (I_j + I_s)$: a near tie sends its plays to whichever of the
        two is less known.
        """
        replicas = np.arange(len(standing.leader))
        leader_information = standing.information[replicas, standing.leader][:, None]
        total = standing.information + leader_information
        pooled = standing.information * leader_information / total
        needed_nats = 2 * nats / standing.gaps**2
        is_open = pooled < needed_nats
        is_open[replicas, standing.leader] = False
        missing = np.where(is_open, needed_nats - pooled, np.inf)
        q = leader_information / total
        on_leader = gain[:, standing.leader].T[:, :, None]  # (R, played, 1)
        shares = (gain * (q**2)[:, None, :] + on_leader * ((1 - q) ** 2)[:, None, :]) / missing[:, None, :]
        progress = np.minimum(shares, 1).sum(axis=2)
        value = progress / self._prices(standing)
        if candidates is not None:
            useful = candidates & (progress > 0)
            value = np.where(useful | ~useful.any(axis=1, keepdims=True), value, -1)
        return np.where(is_open.any(axis=1), value.argmax(axis=1), standing.leader)

    def _track(self, beliefs: Beliefs, rows: IntArray, standing: _Standing, nats: float, gain: FloatArray) -> IntArray:
        """Play the leader once it is certified; until then what the linear programme plans under the means so far."""
        arms = standing.leader.copy()
        evidence = certificates(standing.means, standing.information, standing.leader)
        exploring = np.flatnonzero((evidence < nats).any(axis=1))
        if not len(exploring):
            return arms
        standing = standing.take(exploring)
        rows = rows[exploring]
        # In units of each arm's best observation, so that the rule does not depend on the unit of reward.
        looks = standing.information / self.precision.max(axis=0)
        least = looks.argmin(axis=1)
        forced = looks.min(axis=1) < self.forced_eps * np.sqrt(beliefs.explorations[rows])
        arms[exploring[forced]] = gain[:, least[forced]].argmax(axis=0)
        due = beliefs.explorations[rows] >= 1 + (1 + self.replan_slack) * beliefs.planned_at[rows]
        due |= standing.leader != beliefs.planned_leader[rows]
        for position in np.flatnonzero(due & ~forced):
            row = rows[position]
            leader = int(standing.leader[position])
            beliefs.plan[row] = covering_plan(standing.gaps[position], leader, self.precision)
            beliefs.planned_leader[row] = leader
            beliefs.planned_at[row] = beliefs.explorations[row]
        beliefs.explorations[rows] += 1
        unforced = np.flatnonzero(~forced)
        if len(unforced):
            candidates = beliefs.plan[rows[unforced]] * nats > beliefs.plays[rows[unforced]]
            arms[exploring[unforced]] = self._tell_apart(standing.take(unforced), nats, gain, candidates)
        return arms


def learning_precision(precision: FloatArray, policy: str) -> FloatArray:
    """What a policy learns from: UCB1 is UCB-N of an arm's own observations."""
    return np.diag(precision.diagonal()) if policy == "ucb1" else precision


def certificates(means: FloatArray, information: FloatArray, leader: IntArray) -> FloatArray:
    r"""
    Nats of evidence that the leader beats each arm: $Z_j = D_j^2 / (2 (1/I_j + 1/I_s))$, the generalised likelihood
    ratio, shape `(R, K)`; infinite for the leader itself.
    """
    replicas = np.arange(len(leader))
    gaps = means[replicas, leader][:, None] - means
    leader_information = information[replicas, leader][:, None]
    total = information + leader_information
    evidence = gaps**2 * information * leader_information / (2 * total)
    evidence[replicas, leader] = np.inf
    return evidence


def _standing(means: FloatArray, information: FloatArray) -> _Standing:
    """Leaders and gaps: of a leader the smallest other, and none below a ten-thousandth of the means' range."""
    replicas = np.arange(len(means))
    leader = means.argmax(axis=1)
    gaps = means[replicas, leader][:, None] - means
    floor = _GAP_FLOOR * gaps.max(axis=1) + 1e-150  # its square is above 0
    gaps[replicas, leader] = np.inf
    gaps[replicas, leader] = gaps.min(axis=1)
    return _Standing(means, information, np.maximum(gaps, floor[:, None]), leader)


def _index(beliefs: Beliefs, score: FloatArray | float) -> FloatArray:
    """Means plus `score` standard deviations; infinite where an arm was never observed."""
    information = beliefs.information
    if information.min() > 0:
        return beliefs.weighted_sums / information + score / np.sqrt(information)
    observed = information > 0
    amount = np.where(observed, information, 1.0)
    return np.where(observed, beliefs.weighted_sums / amount + score / np.sqrt(amount), np.inf)


def _cover(uncovered: NDArray[np.bool_], plays: FloatArray, gain: FloatArray) -> IntArray:
    """
    The arm that observes most of the arms not observed so far (greedy set cover), the first of equal ones.

    An arm that was played and has not shown what it should have stands back behind the others.
    """
    num_shown = uncovered.astype(np.float64) @ (gain.T > 0)  # (R, played); booleans would add up to a boolean
    return (num_shown / (1 + plays)).argmax(axis=1)
