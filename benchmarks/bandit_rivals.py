"""What is run beside the policies in the benchmark of regret: other packages, HiGHS, and plans made at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from bandit_problems import FloatArray, Problem
from scipy.optimize import linprog

import hf_ext.bandits.rules
from hf_ext.bandits.lower_bound import covering_lp, covering_plan
from hf_ext.bandits.side_observations import SideObservationPolicy, simulate

FLAT_PRIOR = 1e-6  # precision of a peer's prior; ours has none
SIMPLEX_PROBLEMS = 20  # random ones of each size
REPLAN_REPLICAS = 12


def mabwiser_arms(problem: Problem, seed: int) -> Any:
    """UCB1 of `mabwiser`, on the rewards of the arms played: it takes no other values."""
    from mabwiser.mab import MAB, LearningPolicy

    bandit = MAB(list(range(len(problem.means))), LearningPolicy.UCB1(alpha=1.0), seed=seed)
    unplayed = list(range(len(problem.means)))
    is_fitted = False

    def step(arm: int | None, shown: FloatArray) -> int:
        nonlocal is_fitted
        if arm is not None:
            (bandit.partial_fit if is_fitted else bandit.fit)([arm], [shown[arm]])
            is_fitted = True
        return unplayed.pop(0) if unplayed else int(bandit.predict())

    return step


def bayesian_arms(problem: Problem, seed: int, *, told: bool) -> Any:
    """
    Thompson sampling of `bayesianbandits` with known variances; `told`: every value that is shown updates its arm,
    which the package allows and has no word for.
    """
    from bayesianbandits import Agent, Arm, NormalRegressor, ThompsonSampling

    precision = problem.info.precision
    arms = [Arm(arm, learner=NormalRegressor(FLAT_PRIOR, precision[arm, arm])) for arm in range(len(problem.means))]
    agent = Agent(arms, ThompsonSampling(), random_seed=seed)

    def step(arm: int | None, shown: FloatArray) -> int:
        if arm is not None:
            for other in np.flatnonzero(~np.isnan(shown)) if told else (arm,):
                weight = precision[arm, other] / precision[other, other]
                agent.select_for_update(int(other)).update(shown[other : other + 1], np.array([weight]))
        return int(agent.pull()[0])

    return step


def our_arms(problem: Problem, seed: int) -> Any:
    """`purchase` in the same loop."""
    policy = SideObservationPolicy(problem.info, "purchase", seed=seed)

    def step(arm: int | None, shown: FloatArray) -> int:
        if arm is not None:
            policy.tell(arm, shown)
        return policy.ask()

    return step


# Each makes a function of the last arm and of what it showed, which gives the next arm.
STEPS: dict[str, Callable[[Problem, int], Callable[[int | None, FloatArray], int]]] = {
    "hf-ext": our_arms,
    "mabwiser": mabwiser_arms,
    "bayesianbandits": partial(bayesian_arms, told=False),
    "bayesianbandits_told": partial(bayesian_arms, told=True),
}


def loop_run(problem: Problem, package: str, horizon: int, seed: int) -> dict[str, Any]:
    """One run, a round after the other: its regret, and the processor's milliseconds a round."""
    step = STEPS[package](problem, seed)
    # not the stream of a package that seeds its own generator with the same number: draws would follow the noise
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    precision = problem.info.precision
    spread = np.divide(1, np.sqrt(precision), out=np.full_like(precision, np.nan), where=precision > 0)
    plays = np.zeros(len(problem.means))
    arm = None
    shown = np.full(len(problem.means), np.nan)
    started = time.process_time()
    for _ in range(horizon):
        arm = step(arm, shown)
        shown = problem.means + spread[arm] * generator.standard_normal(len(plays))
        plays[arm] += 1
    seconds = time.process_time() - started
    regret = float(plays @ (problem.means.max() - problem.means))
    return {"regret": round(regret, 3), "ms_a_round": round(1000 * seconds / horizon, 4)}


def simplex_times() -> list[dict[str, Any]]:
    """Seconds of the simplex method and of HiGHS on the same random covering programmes, K from 2 to 12."""
    rows = []
    for size in (2, 4, 8, 12):
        generator = np.random.Generator(np.random.PCG64(size))
        for _ in range(SIMPLEX_PROBLEMS):
            coverage = generator.uniform(0.2, 4, (size, size)) * (generator.random((size, size)) < 0.5)
            coverage[np.arange(size), np.arange(size)] += 0.5
            costs = generator.uniform(0.1, 1, size)
            demand = generator.uniform(2, 200, size)
            simplex_seconds, bought = _fastest(lambda a=(costs, coverage, demand): covering_lp(*a).value)
            highs_seconds, exact = _fastest(
                lambda a=(costs, coverage, demand): linprog(a[0], -a[1].T, -a[2], method="highs").fun
            )
            if abs(bought - exact) > 1e-7 * exact:
                raise ArithmeticError(f"simplex {bought} and HiGHS {exact} differ")
            times = {"simplex_us": 1e6 * simplex_seconds, "highs_us": 1e6 * highs_seconds}
            rows.append({"arms": size, **{name: round(value, 2) for name, value in times.items()}})
    return rows


def _fastest(solve: Any) -> tuple[float, float]:
    """The least seconds of three, each checked solution included, and the optimum."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        value = solve()
        seconds.append(time.perf_counter() - started)
    return min(seconds), float(value)


def replans(problem: Problem, horizon: int) -> list[dict[str, Any]]:
    """How often `track` plans, lazily and at every round of exploration, and its regret then."""
    rows = []
    for slack in (0.1, 0.0):
        with patch.object(hf_ext.bandits.rules, "covering_plan", wraps=covering_plan) as plan:
            curves = simulate(
                problem.means, problem.info, "track", horizon=horizon, replicas=REPLAN_REPLICAS, replan_slack=slack
            )
        plans = plan.call_count / REPLAN_REPLICAS
        rows.append({"slack": slack, "plans": plans, "regret": np.round(curves.regret[:, 0], 3).tolist()})
    return rows
