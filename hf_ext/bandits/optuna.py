"""Paired items in an Optuna study: trials that are behind on the same items are pruned, and the best one is tested."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hf_ext.bandits.refutation import lead_statistics, look_counts, refuted
from hf_ext.evaluation.intervals import student_quantile
from hf_ext.guards.extras import naming_extras
from hf_ext.guards.numbers import CONFIDENCE, COUNT

with naming_extras():
    from optuna.pruners import BasePruner
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["LikelyBest", "PairedPruner", "likely_best_trial"]

FEWEST = 8  # items that two trials must share to be compared at the end: of fewer no spread can be told


class PairedPruner(BasePruner):
    """
    Prunes a trial that is behind the best finished one on the items that both were measured on, by more than chance.

    The objective reports a value for each item, with the item's number as the step: `trial.report(value, item)`. Go
    through the items in one shuffled order in all trials, and ask `trial.should_prune()` as often as you like: it
    looks at 32 items, and each time a quarter more, by the test of [`~hf_ext.bandits.refutation`]; a trial that has
    all items stays. One with a value that is not finite is pruned.

    Args:
        num_items (`int`):
            How many items an objective has in all, at most.
        confidence (`float`, *optional*, defaults to 0.95):
            Probability, at least, with which a trial is not pruned that is better on all items than the best finished
            one: over the whole trial, however often it looks.

    Raises:
        ValueError: if a number is out of bounds, or later if a trial has more items than `num_items`.

    Relations: `WilcoxonPruner` tests after every report at one level, without a correction for looking again.

    Example:

    ```python
    >>> study = optuna.create_study(pruner=PairedPruner(num_items=len(held_out)))
    ```
    """

    def __init__(self, num_items: int, confidence: float = 0.95) -> None:
        for name, number, bounds in (("num_items", num_items, COUNT), ("confidence", confidence, CONFIDENCE)):
            problem = bounds.problem_of(number)
            if problem is not None:
                raise ValueError(f"{name} {problem}.")
        self.num_items = num_items
        self.confidence = confidence
        self.looks = look_counts(num_items)[:-1]
        self._num_looks: dict[tuple[str, int], int] = {}  # by study and trial

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to end; called by `trial.should_prune()`."""
        if not all(map(math.isfinite, trial.intermediate_values.values())):
            return True
        if len(trial.intermediate_values) > self.num_items:
            count = len(trial.intermediate_values)
            raise ValueError(f"Trial {trial.number} has {count:,} items and num_items is {self.num_items:,}.")
        key = (study.study_name, trial.number)
        if self._looks_due(len(trial.intermediate_values)) <= self._num_looks.get(key, 0):
            return False  # before the best trial is asked for, which the study copies
        try:
            best = study.best_trial
        except ValueError:  # none is finished
            return False
        differences = _differences(study, best, trial)
        count = len(differences)
        number = self._looks_due(count)
        if number <= self._num_looks.get(key, 0):
            return False
        self._num_looks[key] = number
        if count == self.num_items:  # it is finished, and its value is exact
            return False
        values = np.stack([differences, np.zeros(count)])
        return bool(refuted(values, self.num_items, 1 - self.confidence, 2, len(self.looks))[1])

    def _looks_due(self, count: int) -> int:
        return sum(look <= count for look in self.looks)


@dataclass(frozen=True)
class LikelyBest:
    """
    What a study tells of its best trial.

    Args:
        trial (`FrozenTrial`):
            The study's best one.
        certified (`bool`):
            Whether every other trial is behind it by more than chance explains.
        level (`float`, *optional*):
            The confidence asked for; `None` where nothing is certified.
        undecided (`list[int]`):
            Numbers of the trials that may be better.
    """

    trial: FrozenTrial
    certified: bool
    level: float | None
    undecided: list[int]


def likely_best_trial(study: Study, confidence: float = 0.95) -> LikelyBest:
    """
    Whether a study's best trial is better than the others, or may only have been luckier with its items.

    The items are taken for a sample of endlessly many: of the sample itself the best one is known.

    Args:
        study (`Study`):
            With one direction, whose trials reported a value for each item, as for [`PairedPruner`]. Trials that
            failed, or reported none, are left out.
        confidence (`float`, *optional*, defaults to 0.95):
            Probability, at least, with which no other trial is better than a certified one.

    Returns:
        [`LikelyBest`]: `.trial`, `.certified`, `.level`, `.undecided`.

    Raises:
        ValueError: if no trial is finished, if the best one reported no item, if the study has several directions, or
            if `confidence` is out of bounds.
    """
    problem = CONFIDENCE.problem_of(confidence)
    if problem is not None:
        raise ValueError(f"confidence {problem}.")
    if len(study.directions) > 1:
        raise ValueError(f"The study has {len(study.directions)} directions, and no best trial: choose one of them.")
    best = study.best_trial
    if not best.intermediate_values:
        raise ValueError(f"Trial {best.number}, the best one, reported no items: call trial.report(value, item).")
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    rivals = [
        trial for trial in study.get_trials(states=states) if trial.number != best.number and trial.intermediate_values
    ]
    undecided = []
    for trial in rivals:
        differences = _differences(study, best, trial)
        count = len(differences)
        is_finite = all(map(math.isfinite, trial.intermediate_values.values()))
        if not is_finite:
            continue  # as for the pruner, it cannot be the best
        threshold = student_quantile(1 - (1 - confidence) / len(rivals), count - 1) if count >= FEWEST else math.inf
        if count < FEWEST or not lead_statistics(differences[None], None)[0] > threshold:
            undecided.append(trial.number)
    return LikelyBest(best, not undecided, None if undecided else confidence, undecided)


def _differences(study: Study, best: FrozenTrial, trial: FrozenTrial) -> NDArray[np.float64]:
    """The best trial's value minus the other's on each item that both have, so that positive is better."""
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    of_best, of_trial = best.intermediate_values, trial.intermediate_values
    items = [item for item in of_trial if item in of_best and math.isfinite(of_best[item])]
    return sign * np.array([of_best[item] - of_trial[item] for item in items], dtype=np.float64)
