"""What `select_best` is compared with at equal budgets: each takes losses `(candidates, items)`, and picks one."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BATCH = 32  # of UCB-E: its default
ASKED_EVERY = 8  # items: a test of Optuna's costs a millisecond


def uniform(losses: FloatArray, budget: int, seed: int) -> int:
    """All candidates on the same items."""
    order = np.random.default_rng(seed).permutation(losses.shape[1])
    return int(losses[:, order[: budget // len(losses)]].mean(axis=1).argmin())


def halving(losses: FloatArray, budget: int, seed: int) -> int:
    """Successive halving on the same items: the budget in equal parts, after each the worse half goes."""
    order = np.random.default_rng(seed).permutation(losses.shape[1])
    rounds = math.ceil(math.log2(len(losses)))
    racing = np.arange(len(losses))
    count = 0
    for _ in range(rounds):
        count = min(losses.shape[1], count + budget // (rounds * len(racing)))
        ranks = losses[racing][:, order[:count]].mean(axis=1).argsort()
        racing = racing[ranks[: math.ceil(len(racing) / 2)]]
    return int(racing[0])


def banditeval(losses: FloatArray, budget: int, seed: int) -> int:
    """UCB-E of `banditeval`, whose confidence is for values between 0 and 1: it is given them so scaled."""
    import torch
    from banditeval import BanditEval

    torch.manual_seed(seed)
    values = (losses.max() - losses) / (losses.max() - losses.min())
    search = BanditEval(
        list(range(len(losses))),
        list(range(losses.shape[1])),
        lambda candidate, items: torch.tensor(values[candidate, items], dtype=torch.float32),
        "ucbe",
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a bar a search
        means = search(budget // BATCH, batch_size=BATCH)
    return int(np.nanargmax(means.numpy()))


def optuna(losses: FloatArray, budget: int, seed: int) -> int:
    """A study with `WilcoxonPruner`, a candidate a trial, until the budget is spent."""
    import optuna as package

    package.logging.set_verbosity(package.logging.ERROR)
    warnings.simplefilter("ignore", package.exceptions.ExperimentalWarning)
    generator = np.random.default_rng(seed)
    order = generator.permutation(losses.shape[1])
    study = package.create_study(pruner=package.pruners.WilcoxonPruner(p_threshold=0.1))
    candidates = generator.permutation(len(losses)).tolist()
    for candidate in candidates:
        trial = study.ask()
        values = losses[candidate, order[:budget]].tolist()
        count = _reported(trial, dict(zip(order.tolist(), values, strict=False)))
        budget -= count
        if count == losses.shape[1]:
            study.tell(trial, float(np.mean(values)))
        else:  # pruned, or ended by the budget
            study.tell(trial, state=package.trial.TrialState.PRUNED)
        if budget <= 0:
            break
    finished_trials = study.get_trials(states=(package.trial.TrialState.COMPLETE,))
    return candidates[study.best_trial.number if finished_trials else 0]


def _reported(trial: Any, values: dict[int, float]) -> int:
    """How many values a trial reported before it was pruned, or all of them."""
    for count, (item, value) in enumerate(values.items(), 1):
        trial.report(value, item)
        if count % ASKED_EVERY == 0 and count < len(values) and trial.should_prune():
            return count
    return len(values)


RIVALS: dict[str, Callable[[FloatArray, int, int], int]] = {
    "uniform": uniform,
    "halving": halving,
    "banditeval": banditeval,
    "optuna": optuna,
}
