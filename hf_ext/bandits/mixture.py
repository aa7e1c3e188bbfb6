"""Shares of several sources that change while a model is trained: which source comes next, from what each has done."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_ext.bandits.information import SideInformation
from hf_ext.bandits.mixture_report import MixtureReport
from hf_ext.bandits.rules import PolicyName
from hf_ext.bandits.side_observations import LARGEST, SideObservationPolicy
from hf_ext.bandits.source_rows import checked_rows, checked_sources, require_same_columns
from hf_ext.bandits.spread import Spread
from hf_ext.guards.numbers import SEED, SIZE, Bounds
from hf_ext.guards.runs import changed_settings

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["REWARDS", "SideObservationMixture"]

FloatArray = NDArray[np.float64]

REWARDS = ("alignment", "loss", "probe_drop")
FLOOR = Bounds(float, 0, 1, "a number, at least 0 and below 1", below=True)
WINDOW = Bounds(float, 2, math.inf, "a finite number, at least 2", below=True)
_LEAST_LOOKS = 2  # at each source, before the policy is asked: a variance needs a difference
_CURVE_PARTS = 50
# Streams of random numbers, behind the seed.
_SOURCE_DRAWS, _ROW_DRAWS, _TARGET_DRAWS = 1, 2, 3


class SideObservationMixture:
    r"""
    Sources of training rows whose shares follow what each source does for a target, by a bandit with side information.

    Every micro-batch, over all processes, holds rows of one source. Arm $i$ leads: its micro-batch is of source $i$
    with probability $1 - K f + f$, of each other one with $f$, the floor share. So playing any arm tells a little of
    every other: that is the side information, $P_{ij} = ((1 - K f)\,\delta_{ij} + f) / v_j$. Which rows a micro-batch
    holds is a pure function of the arms so far, which a checkpoint keeps: a resumed run repeats it.

    | `reward` | of a micro-batch, seen in the first steps and in every `reward_every`-th |
    |---|---|
    | `"alignment"` | cosine of the angle between its gradient and the target's |
    | `"loss"` | its training loss: the usual reward of such mixtures, which likes noise |
    | `"probe_drop"` | by how much the target's loss falls over `reward_every` steps led by one source |
    | a function | called with the trainer after `reward_every` steps led by one source; a number, higher is better |

    An alignment does not count how long a gradient is: optimisers clip or rescale it, and under a plain inner product
    a source whose gradients are long and of any direction (noise, repeats) is known so badly that the policy keeps
    asking for it.

    Args:
        sources (`dict[str, Dataset]`):
            Name to rows. All have the same columns; each is prepared, and packed, apart from the others.
        target (`Dataset`, *optional*):
            Held-out rows of what the model is to become good at, with the columns of the sources and none of their
            rows. `"alignment"` and `"probe_drop"` need it.
        reward (`str` or `Callable`, *optional*, defaults to `"alignment"`):
            See the table. Of a function the mean over processes counts.
        reward_every (`int`, *optional*, defaults to `4`):
            Optimiser steps from one measurement to the next, once every source can have been looked at twice.
        target_rows (`int`, *optional*, defaults to `32`):
            Prepared target rows of a measurement, over all processes.
        floor_share (`float`, *optional*, defaults to `0.02`):
            Least share of a source, at most 1 / number of sources.
        reward_window (`float`, *optional*, defaults to `100.0`):
            Observed micro-batches after which one has faded to 1/e: rewards drift as the model learns, and no theory
            of regret holds.
        policy (`str`, *optional*, defaults to `"thompson"`):
            Of [`SideObservationPolicy`]. Posterior draws share the micro-batches out among sources that are nearly as
            good, and that is what a target of several parts needs; `"purchase"` follows one for long.
        seed (`int`, *optional*, defaults to `0`):
            Of all that is drawn.

    Raises:
        ValueError: if there is no source, one is empty, a stream, or has other columns than the first, a setting is
            out of bounds, or the reward needs a target and there is none.

    Relations: [`with_mixture`] gives it to a trainer; [`MixtureFeedbackCallback`] brings back what is observed.

    Reference: Atsidakou et al. 2022, *Asymptotically-Optimal Gaussian Bandits with Side Observations* (arXiv
    2505.10698), for the setting; Albalak et al. 2023, *Efficient Online Data Mixing For Language Model Pre-Training*
    (arXiv 2312.02406), for a bandit on sources, whose reward is the loss.
    """

    def __init__(
        self,
        sources: Mapping[str, Dataset],
        target: Dataset | None = None,
        *,
        reward: str | Callable[[Any], float] = "alignment",
        reward_every: int = 4,
        target_rows: int = 32,
        floor_share: float = 0.02,
        reward_window: float = 100.0,
        policy: PolicyName = "thompson",
        seed: int = 0,
    ) -> None:
        numbers = (("reward_every", SIZE), ("target_rows", SIZE), ("floor_share", FLOOR), ("reward_window", WINDOW))
        for name, bounds in (*numbers, ("seed", SEED)):
            if (problem := bounds.problem_of(locals()[name])) is not None:
                raise ValueError(f"{name} {problem}.")
        if not (callable(reward) or reward in REWARDS):
            raise ValueError(f"reward must be one of {REWARDS}, or a function of the trainer, got {reward!r}.")
        self.sources = checked_sources(sources)
        self.names = tuple(self.sources)
        if floor_share * len(self.names) > 1:
            raise ValueError(
                f"floor_share is {floor_share:g} and there are {len(self.names)} sources: no more than "
                f"{1 / len(self.names):g} can go to each."
            )
        if target is not None:
            target = checked_rows("the target", target)
            require_same_columns(self.names[0], self.sources[self.names[0]], "the target", target)
        elif reward in ("alignment", "probe_drop"):
            raise ValueError(f"reward={reward!r} needs target=, held-out rows of what the model is to become good at.")
        self.target = target
        self.reward = reward
        self.reward_every = int(reward_every)
        self.target_rows = int(target_rows)
        self.floor_share = float(floor_share)
        self.reward_window = float(reward_window)
        self.policy_name = policy
        self.seed = int(seed)
        self.sizes: tuple[int, ...] = tuple(len(rows) for rows in self.sources.values())
        self.rows_per_batch = 1
        self.batches_per_step = 1
        self.begin()

    # --- a training ------------------------------------------------------------------------------------------------

    def lay_out(self, sizes: Sequence[int], rows_per_batch: int, batches_per_step: int) -> None:
        """
        What a training draws from, before it begins.

        Args:
            sizes (`Sequence[int]`):
                Prepared rows of each source.
            rows_per_batch (`int`):
                Rows of a micro-batch over all processes.
            batches_per_step (`int`):
                Micro-batches of an optimiser step.
        """
        for name, size in zip(self.names, sizes, strict=True):
            if size < 1:
                raise ValueError(f"source {name!r} has no row left once it is prepared: nothing can be drawn from it.")
        self.sizes = tuple(int(size) for size in sizes)
        self.rows_per_batch = int(rows_per_batch)
        self.batches_per_step = int(batches_per_step)

    def begin(self) -> None:
        """Forget every arm and reward."""
        num_sources = len(self.names)
        share = self.floor_share
        composition = (1 - num_sources * share) * np.eye(num_sources) + share  # (K, K): led by, drawn from
        self._composition = composition
        self._policy = SideObservationPolicy(
            SideInformation(composition, names=self.names), self.policy_name, window=self.reward_window, seed=self.seed
        )
        self._spread = Spread(num_sources, self.reward_window)
        self._waiting: list[tuple[int, int, float]] = []  # arm, source and reward, until all variances are known
        self.arms: list[int] = []
        self.batch_sources: list[int] = []
        self._earlier: list[int] = []  # micro-batches of the same source before each
        self._drawn = [0] * num_sources
        self._permutations: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self.first_step = 0
        self.num_trained = 0  # micro-batches; arms are chosen ahead of the training, as batches are fetched
        self.former_loss: float | None = None  # of the target, where its drop is the reward

    @property
    def rewards_blocks(self) -> bool:
        """Whether one source leads all steps from one measurement to the next, and one reward is theirs."""
        return self.reward not in ("alignment", "loss")

    def is_observed(self, step: int) -> bool:
        """
        Whether the micro-batches of an optimiser step are measured, or a block of steps ends before it.

        So are the first steps, until every source can have been looked at twice.
        """
        is_among_first = step * self.batches_per_step < _LEAST_LOOKS * len(self.names)
        return step % self.reward_every == 0 or (is_among_first and not self.rewards_blocks)

    # --- which rows ------------------------------------------------------------------------------------------------

    def rows_of(self, batch: int) -> tuple[int, NDArray[np.int64]]:
        """
        Source of a micro-batch, and positions of its rows in that source.

        Args:
            batch (`int`):
                Number of the micro-batch since the training began; those before it are chosen too, where they are not.

        Returns:
            `tuple[int, numpy.ndarray]`: the source's number, and an int64 array of shape `(rows_per_batch,)`. A source
            is read through, in an order of its own, before a row comes again.
        """
        while len(self.arms) <= batch:
            for arm in self.choose(len(self.arms), self.batches_per_step * self.reward_every):
                self._append(arm)
        source = self.batch_sources[batch]
        first = self._earlier[batch] * self.rows_per_batch
        return source, self._read(first, self.rows_per_batch, self.sizes[source], _ROW_DRAWS, source)

    def target_positions(self, measurement: int, num_rows: int) -> NDArray[np.int64]:
        """
        Positions of the target rows of a measurement.

        Args:
            measurement (`int`):
                Its number: the next ones read on, but for `"probe_drop"`, which compares losses of the same rows.
            num_rows (`int`):
                Prepared rows of the target.
        """
        count = min(self.target_rows, num_rows)
        first = 0 if self.rewards_blocks else measurement * count
        return self._read(first, count, num_rows, _TARGET_DRAWS, len(self.names))

    def _read(self, first: int, count: int, size: int, stream: int, number: int) -> NDArray[np.int64]:
        """Rows `first` to `first + count` of the endless reading of `size` rows, shuffled anew each time."""
        rows = []
        for reading in range(first // size, (first + count - 1) // size + 1):
            if self._permutations.get(number, (-1,))[0] != reading:
                generator = np.random.default_rng((self.seed, stream, number, reading))
                self._permutations[number] = (reading, generator.permutation(size))
            order = self._permutations[number][1]
            rows.append(order[max(first - reading * size, 0) : first + count - reading * size])
        return np.concatenate(rows)

    def choose(self, start: int, length: int) -> list[int]:
        """
        Arms of the next micro-batches, up to a measurement, by what is known now; a subclass may choose otherwise.

        Args:
            start (`int`):
                Number of the first one.
            length (`int`):
                How many.
        """
        if self._spread.looks.min() < _LEAST_LOOKS:
            return self._first_looks(start, length)
        if self.rewards_blocks:
            return [self._policy.ask()] * length
        return self._policy.ask_batch(length).tolist()

    def _first_looks(self, start: int, length: int) -> list[int]:
        """Before variances are known: the source with fewest looks where one is taken, any source elsewhere."""
        if self.rewards_blocks:
            arms = np.array(self.arms[::length], dtype=np.int64)
            return [int(np.bincount(arms, minlength=len(self.names)).argmin())] * length
        is_seen = [self.is_observed(batch // self.batches_per_step) for batch in range(start + length)]
        earlier = np.array(self.batch_sources, dtype=np.int64)
        looks = np.bincount(earlier[is_seen[:start]], minlength=len(self.names))
        generator = np.random.default_rng((self.seed, _SOURCE_DRAWS, start, 1))
        arms = generator.integers(len(self.names), size=length)
        for position in np.flatnonzero(is_seen[start:]):
            arms[position] = looks.argmin()
            looks[arms[position]] += 1
        return arms.tolist()

    def _append(self, arm: int) -> None:
        """One more micro-batch, led by `arm`."""
        generator = np.random.default_rng((self.seed, _SOURCE_DRAWS, len(self.arms)))
        source = int(generator.choice(len(self.names), p=self._composition[arm]))
        self.arms.append(arm)
        self.batch_sources.append(source)
        self._earlier.append(self._drawn[source])
        self._drawn[source] += 1

    # --- what was observed -----------------------------------------------------------------------------------------

    def tell(self, step: int, rewards: Sequence[float]) -> None:
        """
        What was observed of a step, or of the block of steps that began with it.

        Args:
            step (`int`):
                Number of the optimiser step, from 0.
            rewards (`Sequence[float]`):
                One of each of its micro-batches; of a block one in all. What is not finite, or beyond 1e100, is passed
                over.
        """
        first = step * self.batches_per_step
        for position, value in enumerate(rewards):
            if not abs(value) < LARGEST:  # NaN neither
                continue
            arm = self.arms[first + position]
            source = arm if self.rewards_blocks else self.batch_sources[first + position]
            self._spread.add(source, value)
            self._waiting.append((arm, source, float(value)))
        if self._spread.looks.min() < _LEAST_LOOKS:
            return
        for arm, source, value in self._waiting:
            values = np.full(len(self.names), np.nan)
            values[source] = value
            amounts = np.zeros(len(self.names))
            amounts[source] = 1 / (self._spread.variance(source) * self._composition[arm, source])
            self._policy.tell(arm, values, amounts)
        self._waiting = []

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source in the micro-batches trained lately, as many as the window of rewards spans."""
        span = max(1, round(self.reward_window * self.reward_every))
        last_batches = self.batch_sources[: self.num_trained][-span:]
        counts = np.bincount(np.array(last_batches, dtype=np.int64), minlength=len(self.names))
        return dict(zip(self.names, (counts / max(len(last_batches), 1)).tolist(), strict=True))

    @property
    def means(self) -> dict[str, float]:
        """Estimated reward of each source; NaN before the first looks are taken."""
        return dict(zip(self.names, self._policy.means.tolist(), strict=True))

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of `means`; infinite before the first looks are taken."""
        information = self._policy.information
        errors = np.divide(1.0, information, out=np.full_like(information, np.inf), where=information > 0) ** 0.5
        return dict(zip(self.names, errors.tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """Share, mean and standard error of each source, as they are logged: `mixture/<name>/share`."""
        values = {"share": self.shares, "mean": self.means, "se": self.standard_errors}
        return {
            f"mixture/{name}/{kind}": values[kind][name]
            for name in self.names
            for kind in values
            if math.isfinite(values[kind][name])
        }

    def report(self) -> MixtureReport:
        """How the shares have gone so far, as a table and a plot."""
        trained = np.array(self.batch_sources[: self.num_trained], dtype=np.int64)
        counts = np.bincount(trained, minlength=len(self.names))
        edges = np.unique(np.linspace(0, len(trained), min(len(trained), _CURVE_PARTS) + 1).astype(np.int64))
        parts = [np.bincount(trained[start:stop], minlength=len(self.names)) for start, stop in pairwise(edges)]
        curve = np.array([part / part.sum() for part in parts]).reshape(-1, len(self.names)).T
        observed_names = [name for name, error in self.standard_errors.items() if math.isfinite(error)]
        readings = counts * self.rows_per_batch / np.array(self.sizes)
        return MixtureReport(
            reward="a function" if callable(self.reward) else self.reward,
            rows=dict(zip(self.names, self.sizes, strict=True)),
            readings=dict(zip(self.names, readings.tolist(), strict=True)),
            shares=self.shares,
            overall_shares=dict(zip(self.names, (counts / max(len(trained), 1)).tolist(), strict=True)),
            means={name: self.means[name] for name in observed_names},
            standard_errors={name: self.standard_errors[name] for name in observed_names},
            steps=((edges[:-1] + edges[1:]) / 2 / self.batches_per_step).tolist(),
            curve=dict(zip(self.names, curve.tolist(), strict=True)),
        )

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything the next micro-batches depend on, of numbers, texts, lists and dictionaries alone, for JSON."""
        return {
            "settings": self._settings(),
            "arms": _packed(self.arms),
            "num_trained": self.num_trained,
            "waiting": [list(entry) for entry in self._waiting],
            "spread": self._spread.state_dict(),
            "former_loss": self.former_loss,
            "policy": self._policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Go on from a state: the next micro-batches are those that the mixture of that state would have drawn.

        Raises:
            ValueError: if it is of a mixture with other sources, sizes, batches or settings (each is named), or no
                such state.
        """
        try:
            stored = dict(state["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("this is no state of a SideObservationMixture: it has no settings.") from error
        changes = changed_settings(stored, self._settings())
        if changes:
            raise ValueError(
                f"the mixture was begun otherwise: {'; '.join(changes)}. Go on with the same sources and settings, or "
                "start anew without resuming."
            )
        self.begin()
        try:
            for arm in _unpacked(state["arms"], len(self.names)):
                self._append(arm)
            self.num_trained = state["num_trained"]
            if type(self.num_trained) is not int or not 0 <= self.num_trained <= len(self.arms):
                raise ValueError(f"{self.num_trained!r} micro-batches are trained, and {len(self.arms):,} were drawn")
            self._waiting = [self._waiting_reward(*entry) for entry in state["waiting"]]
            self._spread.load_state_dict(state["spread"])
            self.former_loss = None if state["former_loss"] is None else float(state["former_loss"])
            if not math.isfinite(self.former_loss or 0.0):
                raise ValueError(f"former_loss is {self.former_loss}")
            self._policy.load_state_dict(state["policy"])
        except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
            self.begin()
            raise ValueError(f"the state of the mixture is damaged: {error}.") from error

    def _waiting_reward(self, arm: int, source: int, value: float) -> tuple[int, int, float]:
        """Arm, source and reward that a state holds back; `ValueError` where there are no such ones."""
        for number in (arm, source):
            if type(number) is not int or not 0 <= number < len(self.names):
                raise ValueError(f"a reward is of source {number!r}, of {len(self.names)}")
        if not abs(value) < LARGEST:
            raise ValueError(f"a reward is {value!r}")
        return arm, source, float(value)

    def _settings(self) -> dict[str, Any]:
        return {
            "sources": list(self.names),
            "prepared rows": list(self.sizes),
            "rows of a micro-batch over all processes": self.rows_per_batch,
            "micro-batches of a step": self.batches_per_step,
            "reward": "a function" if callable(self.reward) else self.reward,
            "reward_every": self.reward_every,
            "target_rows": self.target_rows,
            "floor_share": self.floor_share,
            "reward_window": self.reward_window,
            "policy": self.policy_name,
            "seed": self.seed,
        }


def _packed(arms: Sequence[int]) -> str:
    """Arms in few characters: the host writes a list with a line for each number."""
    return base64.b64encode(zlib.compress(np.array(arms, dtype="<u2").tobytes())).decode("ascii")


def _unpacked(text: str, num_arms: int) -> list[int]:
    arms = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<u2")
    if arms.size and arms.max() >= num_arms:
        raise ValueError(f"an arm is {arms.max()}, of {num_arms} sources")
    return arms.tolist()
