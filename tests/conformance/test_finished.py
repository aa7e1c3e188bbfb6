"""A run that has come to its end, whatever ended it, stays as it is when it is resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, set_seed

from tests.conformance.registry import BY_NAME
from tests.distributed.run_trainer import digest_of, state_digest
from tests.trainers.runs import train

SAVING = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 3e-3}
BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
# What ends the run, and the step it ends after: 24 rows are 6 batches of 4.
ENDS: dict[str, tuple[dict[str, Any], int]] = {
    "a constant schedule": ({"max_steps": 7, "lr_scheduler_type": "constant"}, 7),
    "cosine with a floor": (
        {"max_steps": 7, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, 7,
    ),
    "one epoch and a half": ({"max_steps": -1, "num_train_epochs": 1.5}, 9),
    "whole epochs": ({"max_steps": -1, "num_train_epochs": 1, "save_strategy": "epoch"}, 6),
    "accumulation with leftovers": ({"max_steps": 3, "gradient_accumulation_steps": 4}, 3),
    "no data skipped": ({"max_steps": 7, "ignore_data_skip": True}, 7),
    "the best model at the end": ({"max_steps": 7, "learning_rate": 0.3} | BEST, 7),
    "one checkpoint kept": ({"max_steps": 7, "save_total_limit": 1}, 7),
}  # fmt: skip
# The others are in the slow suite.
USUAL = ("a constant schedule", "one epoch and a half", "the best model at the end")


def trainer_of(folder: Path, changes: dict[str, Any], method: str = "weighted_sft", **kwargs: Any) -> Any:
    method = BY_NAME[method]
    if "eval_strategy" in changes:
        kwargs["eval_dataset"] = method.rows(8)
    return method.build(folder, 24, model=method.model(0.1), **(SAVING | changes), kwargs=kwargs)


def end_of(trainer: Any, **kwargs: Any) -> tuple[list[float], int, str, str]:
    set_seed(3)  # a resumed run starts from other random numbers than the run before it left
    losses = train(trainer, **kwargs)
    return losses, trainer.state.global_step, digest_of(trainer.model), state_digest(trainer)


@pytest.mark.parametrize("end", [pytest.param(end, marks=[] if end in USUAL else pytest.mark.slow) for end in ENDS])
def test_a_finished_run_that_is_resumed_twice_is_as_it_was(end: str, tmp_path: Path) -> None:
    changes, last = ENDS[end]
    _, *whole = end_of(trainer_of(tmp_path, changes))
    assert whole[0] == last
    for _ in range(2):
        losses, *resumed = end_of(trainer_of(tmp_path, changes), resume_from_checkpoint=True)
        assert losses == []
        assert resumed == whole


def test_max_steps_lowered_below_the_checkpoint_trains_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, *whole = end_of(trainer_of(tmp_path, {"max_steps": 7, "lr_scheduler_type": "constant"}))
    trainer = trainer_of(tmp_path, {"max_steps": 5, "lr_scheduler_type": "constant"})
    losses, *resumed = end_of(trainer, resume_from_checkpoint=True)
    assert (losses, resumed[:2]) == ([], whole[:2])
    assert "checkpoint-7 is the end of its run, step 7 of 5: nothing is left to train." in caplog.text


def test_max_steps_raised_trains_the_further_steps(tmp_path: Path) -> None:
    end_of(trainer_of(tmp_path, {"max_steps": 7, "lr_scheduler_type": "constant"}))
    trainer = trainer_of(tmp_path, {"max_steps": 9, "lr_scheduler_type": "constant"})
    losses, step, *_ = end_of(trainer, resume_from_checkpoint=True)
    assert (len(losses), step) == (2, 9)


def test_a_run_of_no_further_step_reports_no_mean_loss(tmp_path: Path) -> None:
    changes = {"max_steps": 7}
    assert trainer_of(tmp_path, changes).train().training_loss > 0
    output = trainer_of(tmp_path, changes).train(resume_from_checkpoint=True)
    assert math.isnan(output.training_loss)
    assert "train_loss" not in output.metrics


@pytest.mark.parametrize("at", [2, 4, 6])
def test_early_stopping_counts_on_and_stops_at_the_same_step_wherever_it_is_resumed(at: int, tmp_path: Path) -> None:
    """A learning rate of zero improves nothing: of patience 2 after the first value, step 6 is the last."""
    changes = {"max_steps": 12, "learning_rate": 0.0} | BEST

    def trainer() -> Any:
        return trainer_of(tmp_path, changes, callbacks=[EarlyStoppingCallback(2)])

    losses, *whole = end_of(trainer())
    assert len(losses) == whole[0] == 6
    losses, *resumed = end_of(trainer(), resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{at}"))
    assert len(losses) == 6 - at
    assert resumed[0] == 6
    if at == 6:
        assert resumed == whole


def test_a_run_that_the_likelihood_guard_stopped_is_over(tmp_path: Path) -> None:
    """At a tolerance of zero and a huge learning rate the chosen responses fall at once."""
    changes = {"max_steps": 9, "save_steps": 1, "learning_rate": 0.5, "likelihood_guard": "stop", "guard_patience": 1}
    trainer = trainer_of(tmp_path, changes, "infopo")
    _, *whole = end_of(trainer)
    assert 1 <= whole[0] < 9
    resumed = trainer_of(tmp_path, changes, "infopo")
    losses, *end = end_of(resumed, resume_from_checkpoint=True)
    assert (losses, end) == ([], whole)
    assert resumed.likelihood_guard.verdict == trainer.likelihood_guard.verdict
