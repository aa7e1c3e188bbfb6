"""What InfoPO logs while it trains, and what acts on it."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from hf_ext.losses.infopo import infopo_unpaired_loss
from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer, LikelihoodGuardCallback
from hf_ext.trainers.infopo.callbacks import CeilingCallback
from hf_ext.trainers.infopo.diagnostics import pair_ratios, paired_bound_ratios, unpaired_ratios
from tests.tiny import tiny_model
from tests.trainers.preference import start
from tests.trainers.runs import TOKENIZER, train

KEY = "infopo/chosen_delta"


def logged(ratios: dict[str, Any]) -> dict[str, float]:
    return {name: float(numerator.sum() / denominator.sum()) for name, (numerator, denominator) in ratios.items()}


# --- diagnostics -----------------------------------------------------------------------------------------------------


def test_squeeze_counts_pairs_where_both_fall_and_the_margin_rises() -> None:
    chosen, rejected = torch.tensor([-1.0, -5.0, 2.0, -1.0]), torch.tensor([-5.0, -1.0, -4.0, 3.0])
    found = logged(pair_ratios(chosen, rejected, torch.tensor([2, 2, 2, 0]), torch.tensor([1, 1, 4, 4])))
    assert found["squeeze"] == pytest.approx((1 + 5) / 2 / 4)  # the first pair alone
    assert found["chosen_dropped"] == 0.75
    assert found["chosen_delta"] == pytest.approx((-0.5 - 2.5 + 1.0 - 1.0) / 4)  # no tokens count as one
    assert found["rejected_delta"] == pytest.approx((-5.0 - 1.0 - 1.0 + 0.75) / 4)


@pytest.mark.parametrize("estimator", ["nwj", "infonce", "jsd", "lsif", "nwj_mixture"])
def test_at_the_reference_every_bound_is_zero_and_push_equals_pull(estimator: str) -> None:
    from hf_ext.losses.infopo import infopo_loss

    zeros = torch.zeros(6)
    found = logged(paired_bound_ratios(infopo_loss(zeros, zeros, estimator=estimator), estimator, 10.0, False))
    assert found["mi"] == pytest.approx(0.0, abs=1e-6)
    assert found["mi_js"] == pytest.approx(0.0, abs=1e-6)
    assert found["push_pull"] == pytest.approx(1.0)
    capped = {"infonce", "jsd", "nwj_mixture"}
    assert found.get("mi_ceiling") == (pytest.approx(math.log(2)) if estimator in capped else None)
    labels = torch.tensor([True, False, True, True, False, True])
    settings = {"estimator": "jsd" if estimator == "infonce" else estimator, "positive_fraction": 0.7, "beta": 0.2}
    settings |= {"lengths": None, "max_exponent": 10.0}
    output = infopo_unpaired_loss(zeros, labels, **settings)
    single = logged(unpaired_ratios(zeros, labels, torch.ones(6), output, settings | {"reference_free": False}))
    assert single["mi"] == pytest.approx(0.0, abs=1e-6), "whatever classes the batch holds"


def test_unpaired_bounds_are_those_of_pairs_when_averaged_over_the_data_set() -> None:
    generator = torch.Generator().manual_seed(3)
    good, bad = torch.randn(300, generator=generator), torch.randn(700, generator=generator) - 0.5
    u = torch.cat([good, bad])
    labels = torch.arange(1000) < 300
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    settings = {"estimator": "nwj", "positive_fraction": 0.3, "beta": 0.8, "lengths": None, "max_exponent": 10.0}
    order = torch.randperm(1000, generator=generator)
    for rows in order.split(8):
        output = infopo_unpaired_loss(u[rows], labels[rows], **settings)
        found = unpaired_ratios(
            u[rows], labels[rows], torch.full((len(rows),), 4), output, settings | {"reference_free": False}
        )
        for name, (numerator, denominator) in found.items():
            sums[name] += [float(numerator.sum()), float(denominator.sum())]
    means = {name: numerator / denominator for name, (numerator, denominator) in sums.items()}
    f_w, f_l = 0.8 * good.double().numpy(), 0.8 * bad.double().numpy()
    assert means["mi"] == pytest.approx(1 + f_w.mean() - np.exp(f_l).mean(), abs=1e-4)
    expected = math.log(2) - 0.5 * (np.log1p(np.exp(-f_w)).mean() + np.log1p(np.exp(f_l)).mean())
    assert means["mi_js"] == pytest.approx(expected, abs=1e-4)
    assert means["push_pull"] == pytest.approx(np.exp(f_l).mean(), rel=1e-4)
    assert means["chosen_delta"] == pytest.approx(good.mean().item() / 4, abs=1e-5)
    assert means["rejected_delta"] == pytest.approx(bad.mean().item() / 4, abs=1e-5)
    assert means["chosen_dropped"] == pytest.approx((good < 0).double().mean().item())


def test_pairs_beyond_the_cap_are_counted(tmp_path: Path) -> None:
    trainer = start(
        InfoPOTrainer, InfoPOConfig, tmp_path, 8, model=tiny_model(TOKENIZER, seed=1), beta=5.0, max_exponent=0.5,
        max_steps=1,
    )  # fmt: skip
    train(trainer)
    (logs,) = [entry for entry in trainer.state.log_history if KEY in entry]
    assert 0 < logs["infopo/clipped"] <= 1
    assert math.isfinite(logs["infopo/mi"])


def test_accumulated_micro_batches_log_the_whole_batchs_means(tmp_path: Path) -> None:
    logs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = start(
            InfoPOTrainer, InfoPOConfig, tmp_path / str(batch), 8, reference=1, beta=0.05, max_steps=1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        train(trainer)
        logs.append(trainer.state.log_history[0])
    ours = [name for name in logs[0] if name.startswith("infopo/")]
    assert len(ours) == 8
    for name in ours:
        assert logs[0][name] == pytest.approx(logs[1][name], abs=2e-5), name


# --- the guard -------------------------------------------------------------------------------------------------------


def watch(guard: LikelihoodGuardCallback, values: list[float], strategy: str = "no", prefix: str = "") -> list[bool]:
    """Log the values one by one; whether training was to stop after each."""
    args, state, stopped = SimpleNamespace(eval_strategy=strategy), TrainerState(), []
    for step, value in enumerate(values):
        state.global_step = step
        control = TrainerControl()
        state.log_history.append({prefix + KEY: value})
        guard.on_log(args, state, control, logs={prefix + KEY: value})
        stopped.append(control.should_training_stop)
    return stopped


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_the_guard_waits_for_as_many_falls_in_a_row_as_its_patience(patience: int) -> None:
    values = [0.1, -0.1, 0.2, -0.2, -0.3, 0.1, -0.1, -0.1, -0.1, -0.1]
    runs = [0]
    for value in values:
        runs.append(runs[-1] + 1 if value < 0 else 0)
    guard = LikelihoodGuardCallback("stop", 0.0, patience)
    assert watch(guard, values) == [run >= patience for run in runs[1:]]


def test_the_tolerance_is_a_drop_that_is_allowed() -> None:
    assert watch(LikelihoodGuardCallback("stop", 0.05, 1), [-0.05, -0.04, -0.06]) == [False, False, True]


def test_the_guard_says_it_once_with_numbers_and_remedies_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    guard = LikelihoodGuardCallback("warn", 0.0, 2)
    assert watch(guard, [0.01, -0.0123, -0.0456, -0.07, -0.08]) == [False] * 5
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    said = record.getMessage()
    assert "-0.0123, -0.0456 nats per token" in said
    remedies = ["['infopo', 'sft']", "lower learning_rate", "raise beta", "filter pairs"]
    places = [said.index(remedy) for remedy in remedies]
    assert places == sorted(places)
    assert "fell: -0.0700, -0.0800" in guard.verdict


def test_with_evaluations_the_guard_reads_them_alone() -> None:
    assert watch(LikelihoodGuardCallback("stop", 0.0, 1), [-1.0], strategy="steps") == [False]
    assert watch(LikelihoodGuardCallback("stop", 0.0, 1), [-1.0], strategy="steps", prefix="eval_") == [True]


def test_a_resumed_run_goes_on_counting() -> None:
    state = TrainerState(log_history=[{KEY: -0.1}, {"loss": 1.0}, {KEY: -0.2}, {KEY: -0.3}])
    control = TrainerControl()
    LikelihoodGuardCallback("stop", 0.0, 3).on_log(SimpleNamespace(eval_strategy="no"), state, control, {KEY: -0.3})
    assert control.should_training_stop


@pytest.mark.parametrize("wrong", [{"mode": "off"}, {"tolerance": -1.0}, {"patience": 0}])
def test_a_guard_that_cannot_work_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        LikelihoodGuardCallback(**wrong)


@pytest.mark.parametrize("loss_type", ["infopo", "sigmoid"])
def test_a_run_that_sinks_is_stopped_whatever_the_loss(
    loss_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference is a model trained on the chosen answers: against it the policy starts low."""
    settings: dict[str, Any] = {"likelihood_guard": "stop", "guard_patience": 2, "max_steps": 8, "learning_rate": 1e-5}
    reference = tiny_model(TOKENIZER)
    taught = start(
        InfoPOTrainer, InfoPOConfig, tmp_path / "a", 8, loss_type="sft", model=reference, max_steps=12,
        learning_rate=0.3, max_grad_norm=1.0, likelihood_guard="off",
    )  # fmt: skip
    train(taught)
    trainer = start(
        InfoPOTrainer,
        InfoPOConfig,
        tmp_path / "b",
        8,
        loss_type=loss_type,
        kwargs={"ref_model": reference},
        **settings,
    )
    train(trainer)
    assert trainer.state.global_step == 2
    assert "Training stops here" in caplog.text
    assert trainer.card_class(trainer).facts()["likelihood guard"].startswith("chosen responses fell")


def test_a_plain_host_trainer_may_be_guarded_too_but_logs_nothing_to_read(tmp_path: Path) -> None:
    guard = LikelihoodGuardCallback("stop", 0.0, 1)
    guard.on_log(SimpleNamespace(eval_strategy="no"), TrainerState(), TrainerControl(), {"loss": 1.0})
    assert guard.verdict == "no value yet"


def test_a_full_estimator_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    callback, state = CeilingCallback(), TrainerState(global_step=7)
    ceiling = math.log(2)
    for value in (0.2, 0.94 * ceiling, 0.96 * ceiling, 0.97 * ceiling):
        callback.on_log(None, state, TrainerControl(), {"infopo/mi": value, "infopo/mi_ceiling": ceiling})
    callback.on_log(None, state, TrainerControl(), {"infopo/mi": 50.0})
    (record,) = caplog.records
    assert f"{0.96 * ceiling:.3f} of at most 0.693 nats at step 7" in record.getMessage()
