"""A KL in nats per token is kept to: by steps that a loop can follow, in a closed loop, and over an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ext.data.context_free import ContextFreeStore
from hf_ext.trainers.context_free import ContextFreeSFTConfig, ContextFreeSFTTrainer
from hf_ext.trainers.context_free.budget import FILE, KLBudget
from tests.conformance.registry import with_store
from tests.tiny import tiny_text_dataset
from tests.trainers.runs import build, config_of, logged, train, weights_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContextFreeStore:
    return with_store(tmp_path_factory.mktemp("budget"))["context_free_dataset"]


def trainer_of(store: ContextFreeStore, folder: Path, **changes: Any) -> Any:
    args = config_of(ContextFreeSFTConfig, folder, **({"kl": "exact"} | changes))
    return build(ContextFreeSFTTrainer, args, tiny_text_dataset(16), context_free_dataset=store)


# --- the rule --------------------------------------------------------------------------------------------------------


def test_the_weight_starts_at_one_rises_above_the_budget_and_falls_below_it() -> None:
    budget = KLBudget(0.1)
    assert budget.weight == 1.0
    weights = []
    for kl in (0.15, 0.05):
        budget.update(kl)
        weights.append(budget.weight)
    # log lambda: 0.2 for each 100 % above the budget so far, -0.1 for each below, and 2 for each of the last step
    assert weights[0] == pytest.approx(math.exp(0.2 * 0.5 + 2 * 0.5))
    assert weights[1] == pytest.approx(math.exp(0.2 * 0.5 - 0.1 * 0.5 - 2 * 0.5))
    budget.update(0.1)
    assert budget.weight == pytest.approx(math.exp(0.05))


@pytest.mark.parametrize(("kl", "bound"), [(1e9, 1e3), (0.0, 1e-3), (-5.0, 1e-3)])
def test_the_weight_stays_in_its_bounds_and_is_back_at_one_however_long_it_was_there(kl: float, bound: float) -> None:
    budget = KLBudget(0.1)
    for _ in range(1000):
        budget.update(kl)
    assert budget.weight == pytest.approx(bound)
    other = 0.0 if kl > 0 else 1e9
    for _ in range(70 if kl > 0 else 35):  # log(1000) / 0.1 or / 0.2, and one more
        budget.update(other)
    budget.update(0.1)
    assert budget.weight == pytest.approx(1.0, rel=math.expm1(0.1 if kl > 0 else 0.2) + 0.01)  # one step off


def test_a_checkpoint_holds_the_state_to_the_last_bit(tmp_path: Path) -> None:
    budget = KLBudget(0.07)
    for i in range(7):
        budget.update(0.01 * i**1.5)
    budget.save(tmp_path)
    other = KLBudget(0.07)
    other.load(tmp_path)
    assert other == budget
    assert budget.excess != 0
    (tmp_path / FILE).write_text(json.dumps({"log_multiplier": None, "excess": 1.0}))
    with pytest.raises(ValueError, match="is damaged"):
        other.load(tmp_path)


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kl", "metric"), [("exact", "exact"), ("topk", "topk"), ("sampled", "k3")])
def test_the_logged_weights_follow_from_the_logged_kl(
    kl: str, metric: str, store: ContextFreeStore, tmp_path: Path
) -> None:
    nats = 0.002
    trainer = trainer_of(store, tmp_path, kl=kl, kl_budget=nats, max_steps=8, gradient_accumulation_steps=2)
    train(trainer)
    metric = f"kl_original_to_new/{metric}"
    log_multiplier = 0.0
    expected = [1.0]
    for measured in logged(trainer, metric):
        excess = min(max(measured / nats - 1, -1), 1)
        log_multiplier += (0.2 if excess > 0 else 0.1) * excess
        expected.append(math.exp(log_multiplier + 2 * excess))
    weights = logged(trainer, "kl_weight")
    assert weights == pytest.approx(expected[:-1], rel=1e-4)
    assert len(set(weights)) > 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    anchor = logged(trainer, "loss/context_free" if kl == "sampled" else metric)
    parts = zip(logged(trainer, "loss/target"), weights, anchor, strict=True)
    assert losses == pytest.approx([target + weight * loss for target, weight, loss in parts], rel=1e-3)


def test_it_comes_to_rest_at_the_budget(store: ContextFreeStore, tmp_path: Path) -> None:
    nats = 0.02
    changes = {
        "max_steps": 100, "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "linear",
        "context_free_batch_size": len(store.to_dataset()),
    }  # fmt: skip
    trainer = trainer_of(store, tmp_path, kl_budget=nats, **changes)
    train(trainer)
    last = logged(trainer, "kl_original_to_new/exact")[-10:]
    assert sum(last) / len(last) == pytest.approx(nats, rel=0.2)
    free = trainer_of(store, tmp_path, kl_weight=1e-6, **changes)
    train(free)
    assert logged(free, "kl_original_to_new/exact")[-1] > 3 * nats


def test_a_run_that_goes_on_is_the_unbroken_one_and_a_checkpoint_without_a_budget_is_refused(
    store: ContextFreeStore, tmp_path: Path
) -> None:
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(store, tmp_path / "run", kl_budget=0.001, **saving)
    losses = train(whole)
    resumed = trainer_of(store, tmp_path / "run", kl_budget=0.001, **saving)
    again = train(resumed, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again == losses[3:]
    assert resumed.budget == whole.budget
    assert all(torch.equal(value, weights_of(whole.model)[name]) for name, value in weights_of(resumed.model).items())
    train(trainer_of(store, tmp_path / "plain", **saving))
    other = trainer_of(store, tmp_path / "plain", kl_budget=0.001, **saving)
    with pytest.raises(ValueError, match=rf"has no {FILE}.*start again with kl_budget"):
        other.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))


REPEATED = "learns by heart"


def test_it_is_said_where_a_store_repeats_and_the_estimate_drifts(
    store: ContextFreeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = len(store.to_dataset())

    def said(**changes: Any) -> int:
        caplog.clear()
        train(trainer_of(store, tmp_path, **changes))
        return sum(REPEATED in record.message for record in caplog.records)

    assert said(kl="sampled", kl_budget=0.1, context_free_batch_size=rows, max_steps=2) == 1
    assert said(kl="sampled", kl_budget=0.1, context_free_batch_size=rows, max_steps=1) == 0
    assert said(kl="exact", kl_budget=0.1, context_free_batch_size=rows, max_steps=2) == 0
    assert said(kl="sampled", context_free_batch_size=rows, max_steps=2) == 0
