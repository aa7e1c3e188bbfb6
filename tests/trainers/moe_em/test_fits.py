"""A training of a mixture is its fit: same parameters, an iteration a step, its own end, what held-out rows choose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from transformers import EarlyStoppingCallback, TrainingArguments

from hf_ext.losses.moe_likelihood import moe_nll
from hf_ext.moe.em import fit_em
from tests.moe.problems import SHAPES, rows_of
from tests.trainers.mixtures import feature_rows, mixture_config, mixture_trainer
from tests.trainers.runs import logged, train, weights_of


@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_a_training_gives_the_parameters_of_its_fit(kind: str, tmp_path: Path) -> None:
    trainer = mixture_trainer(tmp_path, feature_rows(60, kind, weighted=False), method="auto", tol=0.0)
    trainer.train()
    X, y = rows_of(SHAPES[kind], n=60)
    seen = []
    expected = fit_em(
        X.float(), y, SHAPES[kind], arguments=trainer.args.fit_arguments(),
        generator=torch.Generator().manual_seed(7), callback=lambda log: seen.append(log) or log.iteration == 8,
    )  # fmt: skip
    ours = trainer.model.mixture_parameters()
    for name in ("gate", "experts", "mean", "scale"):
        assert torch.allclose(getattr(ours, name), getattr(expected.parameters, name), rtol=1e-5, atol=1e-5), name
    assert logged(trainer, "nll") == pytest.approx([log.nll for log in seen], rel=1e-12)
    assert logged(trainer, "passes") == pytest.approx([log.passes for log in seen])
    assert trainer.fit_result.objective == pytest.approx(expected.objective, rel=1e-12)


def test_one_softmax_expert_is_scikit_learn_s_logistic_regression_with_row_weights(tmp_path: Path) -> None:
    rows = feature_rows(80)
    trainer = mixture_trainer(tmp_path, rows, num_experts=1, ridge=1e-2, max_steps=60, tol=1e-13)
    trainer.train()
    X, weight = np.array(rows["embeddings"]), np.array(rows["weight"])
    mean = np.average(X, axis=0, weights=weight)
    X = (X - mean) / np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight))
    oracle = LogisticRegression(C=1 / (1e-2 * weight.sum()), tol=1e-10, max_iter=2000)
    oracle.fit(X, rows["label"], sample_weight=weight)
    predicted = torch.from_numpy(trainer.predict(rows).predictions).double().softmax(-1).numpy()
    assert np.abs(predicted - oracle.predict_proba(X)).max() < 1e-4


def test_one_linear_expert_is_least_squares(tmp_path: Path) -> None:
    rows = feature_rows(60, "linear", weighted=False)
    trainer = mixture_trainer(tmp_path, rows, num_experts=1, ridge=0, max_steps=20)
    trainer.train()
    X = np.column_stack([np.array(rows["embeddings"]), np.ones(60)])
    expected = X @ np.linalg.lstsq(X, np.array(rows["label"]), rcond=None)[0]
    assert trainer.predict(rows).predictions[:, 0] == pytest.approx(expected, abs=1e-4)


def test_a_step_of_sgd_on_all_rows_is_a_step_of_gradient_descent(tmp_path: Path) -> None:
    """Of one's optimiser and the host's gradient, the other's coordinates; the same start, ridge and weights."""
    rows = feature_rows(40)
    same = {"max_steps": 1, "learning_rate": 0.5, "ridge": 0.3, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    same["whiten"] = False  # the start is fitted in these coordinates, to a tolerance
    whole = {"restarts": 1, "finalists": 1}
    descent = mixture_trainer(tmp_path / "gd", rows, method="gd", **same, **whole)
    descent.train()
    stock = mixture_trainer(tmp_path / "sgd", rows, method="sgd", per_device_train_batch_size=40, **same)
    start = weights_of(stock.model)
    stock.train()
    theirs = weights_of(descent.model)
    for name, value in weights_of(stock.model).items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name
        assert not torch.allclose(value, start[name], atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "linear symmetric", "logistic symmetric"])
def test_the_loss_of_a_stock_optimiser_is_the_objective_of_a_fit(kind: str, tmp_path: Path) -> None:
    """Evaluated by the fit itself, in float64: likelihood, labels' unit, penalty and the symmetric pair."""
    shape = SHAPES[kind]
    rows = feature_rows(40, kind)
    changes = {
        "method": "sgd", "max_steps": 1, "ridge": 0.3, "per_device_train_batch_size": 40, "num_experts": 2,
        "symmetric": shape.symmetric, "expert_type": shape.expert_type,
    }  # fmt: skip
    if kind == "linear":
        changes["num_experts"] = 3
    trainer = mixture_trainer(tmp_path, rows, **changes)
    losses = train(trainer)
    state = trainer.fit.state
    value = float(trainer.fit.objective.likelihood(state.point, state.ridge).value) + trainer.fit.label_nats()
    assert losses == pytest.approx([value], rel=1e-5)


def test_adam_reaches_the_likelihood_of_moe_nll_that_it_reports(tmp_path: Path) -> None:
    rows = feature_rows(60, weighted=False)
    changes = {"max_steps": 60, "learning_rate": 0.05, "per_device_train_batch_size": 20}
    trainer = mixture_trainer(tmp_path, rows, method="adam", **changes)
    before = trainer.evaluate(rows)["eval_loss"]
    trainer.train()
    model = trainer.model
    gate, experts = model.mixture(torch.tensor(rows["embeddings"][:]))
    nll = float(moe_nll(gate, experts, torch.tensor(rows["label"][:])).mean().detach())
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(nll, rel=1e-5)
    assert nll < before - 0.5


def test_a_fit_ends_by_itself_and_saves_evaluates_and_logs_its_end(tmp_path: Path) -> None:
    rows = feature_rows(60)
    changes = {
        "ridge": 0.1, "tol": 1e-4, "max_steps": -1, "logging_steps": 50, "save_strategy": "steps", "save_steps": 50,
        "eval_strategy": "steps", "eval_steps": 50,
    }  # fmt: skip

    def trainer() -> Any:
        held_out = feature_rows(40, weighted=False, seed=9)
        return mixture_trainer(tmp_path, rows, **changes, kwargs={"eval_dataset": held_out})

    first = trainer()
    first.train()
    steps = first.state.global_step
    assert first.args.max_steps == 1000
    assert 3 < steps < 100
    assert first.fit.finished
    assert first.fit_result.stop_reason in ("tol", "held_out")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{steps}"]
    assert logged(first, "eval_loss")[-1] == pytest.approx(first.fit_result.held_out_nll, rel=1e-4)
    assert len(logged(first, "nll")) == len(logged(first, "mim_lambda_max")) == 1
    resumed = trainer()
    assert train(resumed, resume_from_checkpoint=True) == []
    assert resumed.state.global_step == steps
    assert all(torch.equal(value, weights_of(resumed.model)[name]) for name, value in weights_of(first.model).items())


def test_held_out_rows_choose_the_ridge_and_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    """24 rows and 40 more columns of noise: the smallest ridge over-fits."""
    generator = np.random.default_rng(0)

    def rows(n: int, seed: int) -> Dataset:
        plain = feature_rows(n, weighted=False, seed=seed)
        noise = generator.standard_normal((n, 40)).astype(np.float32)
        wide = np.column_stack([np.array(plain["embeddings"], dtype=np.float32), noise])
        return Dataset.from_dict({"embeddings": wide.tolist(), "label": plain["label"][:]})

    held_out = rows(200, 0)
    changes = {
        "ridge": "auto", "max_steps": 12, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps",
        "save_steps": 4, "load_best_model_at_end": True, "patience": 100,
    }  # fmt: skip
    trainer = mixture_trainer(tmp_path, rows(24, 0), **changes, kwargs={"eval_dataset": held_out})
    trainer.train()
    assert trainer.fit_result.ridge > 1e-5
    best = min(logged(trainer, "eval_loss"))
    assert trainer.state.best_metric == pytest.approx(best)
    assert trainer.fit_result.held_out_nll == pytest.approx(best, rel=1e-4)
    assert trainer.fit_result.iterations == trainer.fit.state.iteration == trainer.state.best_global_step
    trainer.save_model()  # the loaded one, not the last iteration's
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_stock_callbacks_metrics_and_several_evaluation_sets_work(tmp_path: Path) -> None:
    rows = feature_rows(60, weighted=False)
    sets = {"a": rows.select(range(30)), "b": rows.select(range(30, 60))}
    seen = []

    def accuracy(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    changes = {
        "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_a_accuracy", "max_steps": 40,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True,
        "patience": 100, "tol": 0.0, "save_only_model": True,
    }  # fmt: skip
    kwargs = {"eval_dataset": sets, "compute_metrics": accuracy, "callbacks": [EarlyStoppingCallback(2)]}
    trainer = mixture_trainer(tmp_path, rows, **changes, kwargs=kwargs)
    trainer.train()
    values = logged(trainer, "eval_a_accuracy")
    best = values.index(max(values))
    assert len(values) == best + 3, "two evaluations without a better one end the training"
    assert np.exp(seen[0]).sum(1) == pytest.approx(1, abs=1e-5), "log-probabilities"


def test_plain_arguments_of_the_host_run_until_the_fit_ends(tmp_path: Path) -> None:
    from hf_ext import MoEEMTrainer

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = MoEEMTrainer(None, args, train_dataset=feature_rows(40))
    assert trainer.args.max_steps == 1000
    assert trainer.args.method == "auto"


def test_sixteen_bits_are_said_to_have_no_effect_on_a_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = mixture_config(tmp_path, bf16=True, fp16_full_eval=True)
    assert "bf16=True has no effect on a fit by method='auto', which is in float64" in caplog.text
    assert not args.bf16
    assert not args.fp16_full_eval
    assert mixture_trainer(tmp_path, feature_rows(40), bf16=True).accelerator.mixed_precision == "no"


def test_advice_follows_where_em_would_crawl(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels without a mixture in them: experts that do not differ are told apart by nothing. L-BFGS is no EM."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((80, 3)).astype(np.float32)
    y = X[:, 0] + 3 * generator.standard_normal(80)
    rows = Dataset.from_dict({"embeddings": X.tolist(), "label": y.tolist()})
    trainer = mixture_trainer(tmp_path, rows, num_experts=2, method="em", max_steps=5)
    trainer.train()
    rate = logged(trainer, "mim_lambda_max")[0]
    assert rate > 0.98
    assert "EM will crawl" in caplog.text
    caplog.clear()
    mixture_trainer(tmp_path, rows, num_experts=2, max_steps=5).train()
    assert "EM will crawl" not in caplog.text
    predicted = logged(trainer, "predicted_iterations")
    assert predicted == [] if rate >= 1 else predicted[0] == pytest.approx(math.log(1e-6) / math.log(rate))
