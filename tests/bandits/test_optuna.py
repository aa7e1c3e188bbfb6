"""Trials of an Optuna study, paired by item: what is pruned, what stays, and what is told of the best one."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from hf_ext.bandits.optuna import PairedPruner, likely_best_trial

NUM_ITEMS = 200
optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_of(offsets, *, direction="minimize", pruner=None, noise=0.3, num_items=NUM_ITEMS, every=1):
    """One trial for each offset: losses on shared items, reported in one order."""
    generator = np.random.default_rng(5)
    hardness = generator.gamma(1, 3, num_items)
    values = hardness + np.array(offsets)[:, None] + noise * generator.normal(size=(len(offsets), num_items))
    values = values if direction == "minimize" else -values
    study = optuna.create_study(direction=direction, pruner=pruner or PairedPruner(num_items))

    def objective(trial):
        for item, value in enumerate(values[trial.number]):
            trial.report(value, item)
            if (item + 1) % every == 0 and trial.should_prune():
                raise optuna.TrialPruned
        return float(values[trial.number].mean())

    study.optimize(objective, n_trials=len(offsets))
    return study, values


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_that_is_behind_on_the_same_items_is_pruned_early_and_a_better_one_is_not(direction):
    study, _ = study_of([0.5, 0.8, 0, 0.5], direction=direction)
    counts = [len(trial.intermediate_values) for trial in study.trials]
    assert counts == [NUM_ITEMS, 32, NUM_ITEMS, 32]  # items differ by 3, candidates by 0.3 and 0.5
    assert study.best_trial.number == 2


def test_a_trial_that_would_have_been_the_best_on_all_items_is_rarely_pruned():
    study, values = study_of([0] * 25, num_items=100)
    means = values.mean(axis=1)
    is_pruned = np.array([trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials])
    would_be_best = [number for number in range(1, 25) if means[number] < means[:number].min()]
    assert len(would_be_best) >= 3
    assert is_pruned.sum() >= 3
    assert not is_pruned[would_be_best].any()


def test_asking_seldom_gives_the_looks_that_are_due_and_asking_again_gives_none():
    study, _ = study_of([0, 5], every=50)
    assert len(study.trials[1].intermediate_values) == 50
    pruner = PairedPruner(NUM_ITEMS)
    assert pruner.prune(study, study.trials[1])
    assert not pruner.prune(study, study.trials[1])


def test_a_trial_with_a_value_that_is_not_finite_is_pruned():
    study, _ = study_of([0])
    trial = study.ask()
    trial.report(float("nan"), 0)
    assert trial.should_prune()


def test_nothing_is_pruned_before_one_trial_is_finished_or_after_all_items():
    study = optuna.create_study(pruner=PairedPruner(40))
    trial = study.ask()
    for item in range(40):
        trial.report(1.0 + item, item)
        assert not trial.should_prune()
    study.tell(trial, 1.0)
    late = study.ask()
    for item in range(40):
        late.report(100.0 + item, item)
    assert not late.should_prune()


def test_more_items_than_were_said_are_refused():
    study, _ = study_of([0, 0.01], num_items=50, noise=0.1)
    with pytest.raises(ValueError, match="has 50 items and num_items is 40"):
        PairedPruner(40).prune(study, study.trials[1])


def test_the_best_trial_is_certified_where_all_others_are_behind():
    best = likely_best_trial(study_of([0.3, 0, 0.6])[0])
    assert (best.trial.number, best.certified, best.level, best.undecided) == (1, True, 0.95, [])


def test_of_trials_that_are_level_nothing_is_told():
    study, values = study_of([0, 0, 3])
    best = likely_best_trial(study, confidence=0.9)
    assert best.trial.number == values[:2].mean(axis=1).argmin()
    assert (best.certified, best.level) == (False, None)
    assert best.undecided == [1 - best.trial.number]


def test_few_shared_items_tell_nothing():
    assert likely_best_trial(study_of([0, 50], num_items=7)[0]).undecided == [1]
    assert likely_best_trial(study_of([0, 50], num_items=8)[0]).certified


def test_lucky_trials_are_certified_at_most_as_often_as_stated():
    generator = np.random.default_rng(0)
    certified = 0
    for _ in range(60):
        study = optuna.create_study()
        values = generator.normal(size=(4, 40))  # all alike: whoever is best was lucky
        for row in values:
            study.add_trial(
                optuna.trial.create_trial(value=row.mean(), intermediate_values=dict(enumerate(row.tolist())))
            )
        certified += likely_best_trial(study).certified
    assert certified <= 3


def test_trials_that_fail_are_left_out_whatever_they_reported():
    study, values = study_of([0.3, 0.6])
    failed = study.ask()
    for item, value in enumerate(values[0] - 5):
        failed.report(value, item)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    later = study.ask()
    pruned_at = None
    for item, value in enumerate(values[0] + 3):
        later.report(value, item)
        if later.should_prune():
            pruned_at = item
            break
    assert pruned_at is not None
    study.tell(later, state=optuna.trial.TrialState.PRUNED)
    best = likely_best_trial(study)
    assert (best.trial.number, best.certified) == (0, True)


def test_a_study_without_a_finished_trial_or_with_two_directions_is_refused():
    study = optuna.create_study()
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    with pytest.raises(ValueError, match="No trials are completed yet"):
        likely_best_trial(study)
    with pytest.raises(ValueError, match="has 2 directions, and no best trial"):
        likely_best_trial(optuna.create_study(directions=["minimize", "maximize"]))


def test_a_study_that_reports_no_items_is_refused():
    study = optuna.create_study()
    study.optimize(lambda trial: trial.number, n_trials=2)
    with pytest.raises(ValueError, match="Trial 0, the best one, reported no items"):
        likely_best_trial(study)


@pytest.mark.parametrize(("number", "settings"), [("num_items", {"num_items": 0}), ("confidence", {"confidence": 1})])
def test_numbers_out_of_bounds_are_refused(number, settings):
    with pytest.raises(ValueError, match=f"{number} must be"):
        PairedPruner(**({"num_items": 9} | settings))
