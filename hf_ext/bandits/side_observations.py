"""Policies for Gaussian bandits with side information: whom to play next, in a user's own loop."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.bandits.curves import RegretCurves
from hf_ext.bandits.information import SideInformation, float_array, require_information
from hf_ext.bandits.lower_bound import Bound, lower_bound
from hf_ext.bandits.rules import Beliefs, PolicyName, Rules, certificates, learning_precision
from hf_ext.bandits.simulation import simulate
from hf_ext.guards.numbers import POSITIVE, SEED, SIZE, Bounds

__all__ = ["RegretCurves", "SideInformation", "SideObservationPolicy", "simulate"]

FloatArray = NDArray[np.float64]

LARGEST = 1e100  # reward whose square, times a precision, float64 holds
_FADED = 1e-200  # what a window has left of a number may be 0 on one side and not yet on the other
_WINDOW = Bounds(float, 1, math.inf, "a finite number of observations above 1", above=True, below=True)


class SideObservationPolicy:
    r"""
    Chooses what to measure next where one measurement tells of several things: `ask` for an arm, `tell` its values.

    Means are maximum-likelihood: $m_j = S_j / I_j$ with information $I_j$, in 1 / reward². The leader $s$ has the
    highest.

    | `policy` | doubts the arm with the highest | and plays |
    |---|---|---|
    | `"purchase"` | `max(posterior draw, m + sqrt(log t / I))` | the arm that settles most doubts for its regret |
    | `"purchase_ucb"` | `m + sqrt(2 log t / I)` | the same; UCB1 where every arm shows itself alone |
    | `"track"` | | the lower bound's allocation, until the leader is certified |
    | `"thompson"` | posterior draw | that arm |
    | `"ucb_n"` | `m + sqrt(2 log t / I)` | that arm |
    | `"ucb1"` | the same, of an arm's own observations alone | that arm |

    `purchase` and `purchase_ucb` have no proof of optimality: what is known of them is measured.

    Args:
        info ([`SideInformation`]):
            What playing an arm tells.
        policy (`str`, *optional*, defaults to `"purchase"`):
            See the table.
        loglog (`float`, *optional*, defaults to `0.0`):
            Evidence asked for at round t is `log t + loglog * log(1 + log t)` nats.
        replan_slack (`float`, *optional*, defaults to `0.1`):
            Of `track`: share by which the rounds of exploration grow before it plans anew.
        forced_eps (`float`, *optional*, defaults to `0.3`):
            Of `track`: an arm with fewer looks than this times the root of the rounds of exploration comes first.
        maximize (`bool`, *optional*, defaults to `True`):
            `False` where values are losses.
        costs (array of shape `(K,)`, *optional*):
            Price of playing each arm, for *choosing* the best arm where regret does not count. The leader is then
            played only where that tells it apart, or where it is certified.
        window (`float`, *optional*):
            Observations after which a value has faded to 1/e, above 1: for rewards that drift. The theory of regret
            then does not hold.
        clip_sd (`float`, *optional*):
            Standard deviations, of one observation and of the mean so far together, beyond which a value is moved to
            that distance; `clipped` counts them. For loss spikes.
        seed (`int`, *optional*, defaults to `0`):
            Of the posterior draws, which are not those of `numpy.random.default_rng` with the same seed.

    Attributes:
        clipped (`int`):
            Values that `clip_sd` moved.

    Raises:
        TypeError: if `info` is a matrix.
        ValueError: if a setting is out of bounds, `"thompson"`, `"ucb_n"` or `"ucb1"` meets an arm that does not show
            itself, or a policy other than the two of purchase is given costs.

    Relations: `simulate` plays the same rules; [`lower_bound`] says what regret no policy can avoid.

    Reference: Wu, György and Szepesvári 2015 (arXiv 1510.08108) and Atsidakou et al. 2022, *Asymptotically-Optimal
    Gaussian Bandits with Side Observations* (arXiv 2505.10698), for the setting; Caron et al. 2012, *Leveraging Side
    Observations in Stochastic Bandits* (UCB-N). `track` and both of purchase are derived here.
    """

    def __init__(
        self,
        info: SideInformation,
        policy: PolicyName = "purchase",
        *,
        loglog: float = 0.0,
        replan_slack: float = 0.1,
        forced_eps: float = 0.3,
        maximize: bool = True,
        costs: ArrayLike | None = None,
        window: float | None = None,
        clip_sd: float | None = None,
        seed: int = 0,
    ) -> None:
        require_information(info)
        for name, value, bounds in (
            ("window", window, _WINDOW),
            ("clip_sd", clip_sd, POSITIVE),
            ("seed", seed, SEED),
        ):
            problem = bounds.problem_of(value) if value is not None or name == "seed" else None
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        if not isinstance(maximize, bool):
            raise ValueError(f"maximize must be True or False, got {maximize!r}.")
        prices = None if costs is None else float_array("costs", costs)
        self.info = info
        self.clipped = 0
        unbiased = learning_precision(info.unbiased_precision, policy)
        self._rules = Rules(unbiased, policy, loglog, replan_slack, forced_eps, prices)
        self._precision = learning_precision(info.precision, policy)
        self._sign = 1.0 if maximize else -1.0
        self._fading = 1.0 if window is None else 1 - 1 / window
        self._clip_sd = clip_sd
        # A child of the seed: `default_rng(seed)` in a user's loop would else draw the same numbers as noise.
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(int(seed)).spawn(2)[1]))
        self._beliefs = Beliefs.none(1, info.num_arms)
        # What each arm told of each other, (K, K): only a bias makes the sums over the arms played too little.
        self._pair_information = np.zeros_like(info.precision)
        self._pair_sums = np.zeros_like(info.precision)

    @property
    def plays(self) -> FloatArray:
        """How often each arm was played, shape `(K,)`; faded under a window."""
        return self._beliefs.plays[0].copy()

    @property
    def information(self) -> FloatArray:
        """Of each mean, shape `(K,)`, in 1 / reward²: one over its variance."""
        return self._beliefs.information[0].copy()

    @property
    def means(self) -> FloatArray:
        """Estimated means, shape `(K,)`, in units of reward; NaN where an arm was never observed."""
        information = self._beliefs.information[0]
        sums = self._sign * self._beliefs.weighted_sums[0]
        return np.divide(sums, information, out=np.full_like(sums, np.nan), where=information > 0)

    @property
    def leader(self) -> int:
        """The arm with the best mean so far; 0 before the first observation."""
        means = self._sign * self.means
        return int(np.where(np.isnan(means), -np.inf, means).argmax())

    @property
    def certificate(self) -> FloatArray:
        """
        Nats of evidence that the leader beats each arm, shape `(K,)`: infinite for itself, 0 while either is unknown.

        All of them above `threshold` is what `track` asks for before it plays the leader alone.
        """
        information = self._beliefs.information
        means = np.where(information > 0, np.nan_to_num(self._sign * self.means), 0.0)
        amount = np.where(information > 0, information, np.finfo(np.float64).tiny)
        evidence = certificates(means, amount, np.array([self.leader]))[0]
        unknown = (information[0] <= 0) | (information[0, self.leader] <= 0)
        unknown[self.leader] = False
        return np.where(unknown, 0.0, evidence)

    @property
    def threshold(self) -> float:
        """f(t): the nats of evidence that the coming round asks for."""
        return self._rules.nats(self._rounds(self._beliefs))

    def ask(self) -> int:
        """The arm to play next; asking changes no mean."""
        return self._choose(self._beliefs)

    def ask_batch(self, num_arms: int) -> NDArray[np.int64]:
        """
        Arms to play at the same time, as by parallel workers.

        Each choice counts on the information that the earlier ones will bring, and on no reward: means stay where they
        are, and an arm that was never observed is taken for as good as the best.

        Args:
            num_arms (`int`):
                Plays wanted; arms may come several times.

        Returns:
            Array of shape `(num_arms,)`, int64.

        Raises:
            ValueError: if `num_arms` is no whole number above 0.
        """
        problem = SIZE.problem_of(num_arms)
        if problem is not None:
            raise ValueError(f"num_arms {problem}.")
        coming = replace(
            self._beliefs,
            plays=self._beliefs.plays.copy(),
            information=self._beliefs.information.copy(),
            weighted_sums=self._beliefs.weighted_sums.copy(),
        )
        means = self._sign * self.means
        means = np.where(np.isnan(means), 0.0 if np.isnan(means).all() else np.nanmax(means), means)
        pairs = self._pair_information.copy()
        arms = np.zeros(int(num_arms), dtype=np.int64)
        for position in range(len(arms)):
            arms[position] = arm = self._choose(coming, pairs)
            coming.plays[0, arm] += 1
            coming.information[0] += self._gain(pairs)[arm]
            coming.weighted_sums[0] = means * coming.information[0]
            pairs[arm] += self._precision[arm]
        return arms

    def tell(self, arm: int, values: ArrayLike, counts: ArrayLike | None = None) -> None:
        """
        What playing an arm has shown.

        Args:
            arm (`int`):
                The arm played, asked for or not.
            values (array of shape `(K,)`):
                What was observed of each arm, in units of reward; NaN where nothing was, which is allowed everywhere.
            counts (array of shape `(K,)`, *optional*):
                How many observations each value is the mean of: its precision is that many times `info.precision`. 1
                otherwise; any number that is not negative, 0 for none.

        Raises:
            ValueError: if the arm or a shape is wrong, a value is infinite or beyond 1e100, a count is negative or not
                finite, or a value is given where the arm tells nothing. Nothing is learned then.
        """
        size = self.info.num_arms
        if isinstance(arm, bool) or not isinstance(arm, int | np.integer) or not 0 <= arm < size:
            raise ValueError(f"arm must be a whole number from 0 to {size - 1}, got {arm!r}.")
        observations = self._vector("values", values)
        amounts = np.ones(size) if counts is None else self._vector("counts", counts)
        names = self.info.names
        for other in np.flatnonzero(~((amounts >= 0) & (amounts < np.inf))):
            raise ValueError(f"the count of {names[other]!r} is {amounts[other]:g}. Give a finite number, at least 0.")
        is_shown = ~np.isnan(observations) & (amounts > 0)
        for other in np.flatnonzero(is_shown & (self.info.precision[arm] == 0)):
            raise ValueError(
                f"playing {names[arm]!r} was said to show {names[other]!r} as {observations[other]:g}, but precision "
                f"at row {arm}, column {other} is 0. Give NaN there."
            )
        rewards = self._sign * np.where(is_shown, observations, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            precision = np.where(is_shown, self._precision[arm] * amounts, 0.0)
            sums = self._beliefs.weighted_sums[0] + precision * rewards
            is_finite = np.isfinite(sums) & np.isfinite(precision)
        for other in np.flatnonzero(~(is_finite & (np.abs(rewards) < LARGEST))):
            raise ValueError(
                f"the value {observations[other]:g} of {names[other]!r}, shown by {names[arm]!r}, cannot be added up. "
                "Leave out what has diverged: give NaN."
            )
        rewards = self._clip(rewards, precision)
        self._learn(int(arm), precision, rewards)

    def lower_bound(self) -> Bound:
        """
        The lower bound on regret if the means so far were the true ones; equal best means count as one arm.

        Raises:
            ValueError: if an arm was never observed.
        """
        for arm in np.flatnonzero(self._beliefs.information[0] <= 0):
            raise ValueError(f"{self.info.names[arm]!r} was never observed: there is no bound without its mean.")
        return lower_bound(self._sign * self.means, self.info, tie="merge")

    def state_dict(self) -> dict[str, Any]:
        """Everything the next choices depend on, of numbers, texts, lists and dictionaries alone, for JSON."""
        arrays = {field.name: getattr(self._beliefs, field.name)[0].tolist() for field in fields(Beliefs)}
        return {
            "settings": self._settings(),
            "clipped": self.clipped,
            "generator": self._generator.bit_generator.state,
            "pair_information": self._pair_information.tolist(),
            "pair_sums": self._pair_sums.tolist(),
            **arrays,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from a state: the next choices are those that the policy of that state would have made.

        Args:
            state (`dict`):
                Of `state_dict`, also after JSON.

        Raises:
            ValueError: if it is of a policy with other arms or settings (the message lists both), or no such state.
        """
        expected = self.state_dict()
        if not isinstance(state, dict) or state.keys() != expected.keys() or not isinstance(state["settings"], dict):
            raise ValueError(f"this is no state of a SideObservationPolicy: it must hold {', '.join(expected)}.")
        stored = state["settings"]
        settings = self._settings()
        for name in settings:
            if stored.get(name) != settings[name]:
                raise ValueError(
                    f"the state is of a policy with {name} {_excerpt(stored.get(name))}, and this one has "
                    f"{_excerpt(settings[name])}. Make it with the same settings, or start anew."
                )
        generator = np.random.PCG64(0)
        arrays = {}
        try:
            generator.state = state["generator"]
            for name, value in expected.items():
                if isinstance(value, list | float | int):
                    if isinstance(value, int) and type(state[name]) is not int:
                        raise ValueError(f"{name} must be a whole number")
                    arrays[name] = np.array(state[name], dtype=np.asarray(value).dtype)
                    if arrays[name].shape != np.shape(value) or not np.isfinite(arrays[name]).all():
                        raise ValueError(f"{name} must be finite and of shape {np.shape(value)}")
                    if not name.endswith(("sums", "leader")) and (arrays[name] < 0).any():
                        raise ValueError(f"{name} must not be negative")
            self._check_sums(arrays)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"the state of the policy is damaged: {error}.") from error
        self.clipped = int(arrays["clipped"])
        self._generator = np.random.Generator(generator)
        self._pair_information = arrays["pair_information"]
        self._pair_sums = arrays["pair_sums"]
        self._beliefs = Beliefs(**{field.name: arrays[field.name][None] for field in fields(Beliefs)})

    def _check_sums(self, arrays: dict[str, FloatArray]) -> None:
        """Refuse counts and sums of a state that no observations can have left."""
        plays, information, weighted_sums = (arrays[name] for name in ("plays", "information", "weighted_sums"))
        observers = (self._precision > 0) & (plays > 0)[:, None]
        for arm in np.flatnonzero((information > _FADED) & ~observers.any(axis=0)):
            raise ValueError(f"{self.info.names[arm]!r} has information, and no arm was played that shows it")
        with np.errstate(over="ignore"):
            bound = LARGEST * information
        for arm in np.flatnonzero(np.abs(weighted_sums) > bound + _FADED):
            raise ValueError(f"the mean of {self.info.names[arm]!r} would be beyond {LARGEST:g}")
        if not -1 <= arrays["planned_leader"] < self.info.num_arms:
            raise ValueError(f"planned_leader must be an arm from 0 to {self.info.num_arms - 1}, or -1")
        if self.info.bias_sd is not None:
            totals = np.stack(_pooled(arrays["pair_information"], arrays["pair_sums"], self.info.bias_sd))
            if not np.allclose(totals, [information, weighted_sums], rtol=1e-9, atol=_FADED):
                raise ValueError("information and weighted_sums are not those of pair_information and pair_sums")
        elif arrays["pair_information"].any() or arrays["pair_sums"].any():
            raise ValueError("pair_information and pair_sums must be 0 where no observation has a bias")

    def _settings(self) -> dict[str, Any]:
        rules = self._rules
        bias_sd = self.info.bias_sd
        return {
            "names": list(self.info.names),
            "policy": rules.policy,
            "loglog": float(rules.loglog),
            "replan_slack": float(rules.replan_slack),
            "forced_eps": float(rules.forced_eps),
            "maximize": self._sign > 0,
            "costs": None if rules.costs is None else rules.costs.tolist(),
            "fading": self._fading,
            "clip_sd": None if self._clip_sd is None else float(self._clip_sd),
            "precision": self.info.precision.tolist(),
            "bias_sd": None if bias_sd is None else bias_sd.tolist(),
        }

    def _rounds(self, beliefs: Beliefs) -> float:
        return float(beliefs.plays.sum()) + 1

    def _choose(self, beliefs: Beliefs, pairs: FloatArray | None = None) -> int:
        draws = self._generator.standard_normal(beliefs.plays.shape)
        gain = self._gain(self._pair_information if pairs is None else pairs)
        return int(self._rules.arms(beliefs, self._rounds(beliefs), draws, gain)[0])

    def _gain(self, pairs: FloatArray) -> FloatArray:
        """Information that one more play of each arm brings, `(K, K)`, after `pairs` without their bias."""
        if self.info.bias_sd is None:
            return self._precision
        return _bounded(pairs + self._precision, self.info.bias_sd) - _bounded(pairs, self.info.bias_sd)

    def _vector(self, name: str, values: ArrayLike) -> FloatArray:
        vector = float_array(name, values)
        if vector.shape != (self.info.num_arms,):
            raise ValueError(f"{name} must be {self.info.num_arms} numbers, one an arm, got shape {vector.shape}.")
        return vector

    def _clip(self, rewards: FloatArray, precision: FloatArray) -> FloatArray:
        information = self._beliefs.information[0]
        if self._clip_sd is None:
            return rewards
        usable = (precision > 0) & (information > 0)
        variances = 1 / np.where(usable, precision, 1) + 1 / np.where(usable, information, 1)
        reach = np.where(usable, self._clip_sd * np.sqrt(variances), np.inf)
        means = np.where(usable, self._sign * np.nan_to_num(self.means), 0.0)
        clipped = np.clip(rewards, means - reach, means + reach)
        self.clipped += int((clipped != rewards).sum())
        return clipped

    def _learn(self, arm: int, precision: FloatArray, rewards: FloatArray) -> None:
        beliefs = self._beliefs
        for array in (beliefs.plays, beliefs.information, beliefs.weighted_sums):
            array *= self._fading
        beliefs.plays[0, arm] += 1
        if self.info.bias_sd is None:
            beliefs.information[0] += precision
            beliefs.weighted_sums[0] += precision * rewards
            return
        self._pair_information *= self._fading
        self._pair_sums *= self._fading
        self._pair_information[arm] += precision
        self._pair_sums[arm] += precision * rewards
        information, sums = _pooled(self._pair_information, self._pair_sums, self.info.bias_sd)
        beliefs.information[0] = information
        beliefs.weighted_sums[0] = sums


def _bounded(information: FloatArray, bias_sd: FloatArray) -> FloatArray:
    """`1 / (bias_sd² + 1 / information)`: what is known of a mean through a look with an unknown bias."""
    return information / (1 + information * bias_sd**2)


def _pooled(information: FloatArray, sums: FloatArray, bias_sd: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Information of each mean, and its weighted sum, `(K,)`, from what each arm told of each other, `(K, K)`."""
    weights = _bounded(information, bias_sd)
    amount = np.where(information > 0, information, 1)
    return weights.sum(axis=0), (weights * sums / amount).sum(axis=0)


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
