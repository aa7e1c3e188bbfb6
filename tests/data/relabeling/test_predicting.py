"""Predictions as columns, out of fold; and the forward loss inside the stock trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, List, Value
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_ext.data.relabeling import RRChannel, fold_numbers, noisy_accuracy, predict_column, relabel
from hf_ext.losses.label_noise import forward_corrected_nll, forward_loss_func
from tests.data.relabeling.oracle import channel_matrix

K = 3


class Linear(nn.Module):
    """A classifier of a vector, or of each vector of a list."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Linear(width, K)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.view(-1, K), labels.view(-1)), "logits": logits}


def fresh() -> Linear:
    torch.manual_seed(0)
    return Linear()


def rows(n: int = 60, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, K, n)
    x = rng.normal(size=(n, 6)) + 2 * np.eye(6)[label]
    return Dataset.from_dict({"id": list(range(n)), "x": x.astype(np.float32).tolist(), "label": label.tolist()})


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    base: dict[str, Any] = {"output_dir": str(folder), "use_cpu": True, "report_to": [], "save_strategy": "no"}
    base |= {"per_device_train_batch_size": 8, "max_steps": 6, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    base |= {"disable_tqdm": True, "logging_strategy": "no", "optim": "sgd", "dataloader_pin_memory": False}
    return TrainingArguments(**(base | settings))


def trained(folder: Path, dataset: Dataset) -> Trainer:
    trainer = Trainer(fresh(), arguments(folder), train_dataset=dataset)
    trainer.train()
    return trainer


def test_predictions_in_sample_are_the_model_s_softmax(tmp_path: Path) -> None:
    trainer = trained(tmp_path, rows())
    done = predict_column(trainer, rows())
    with torch.no_grad():
        expected = trainer.model(torch.tensor(rows()["x"][:]))["logits"].double().softmax(-1)
    np.testing.assert_allclose(done["probs"][:], expected, atol=1e-6)
    assert done["pred"][:] == expected.argmax(-1).tolist()
    assert set(done["pred_is_out_of_fold"]) == {False}
    assert done.features["probs"] == List(Value("float32"), length=K)
    assert done.column_names == [*rows().column_names, "pred", "probs", "pred_is_out_of_fold"]
    again = predict_column(trainer, done)  # earlier predictions are replaced
    assert again[:] == done[:]


def test_the_label_is_hidden_from_prediction(tmp_path: Path) -> None:
    trainer = trained(tmp_path, rows())
    wrong = rows().map(lambda row: {"label": 0})
    assert predict_column(trainer, wrong)["probs"][:] == predict_column(trainer, rows())["probs"][:]


def test_each_fold_is_predicted_by_a_model_of_the_others(tmp_path: Path) -> None:
    dataset = fold_numbers(rows(), 2)
    trainer = Trainer(model_init=fresh, args=arguments(tmp_path), train_dataset=dataset)
    done = predict_column(trainer, dataset, "fold")
    assert set(done["pred_is_out_of_fold"]) == {True}
    for fold in range(2):
        inside = np.flatnonzero(np.array(dataset["fold"]) == fold)
        others = dataset.select(np.flatnonzero(np.array(dataset["fold"]) != fold).tolist())
        set_seed(42)
        alone = Trainer(model_init=fresh, args=arguments(tmp_path / "alone"), train_dataset=others)
        alone.train()
        with torch.no_grad():
            expected = alone.model(torch.tensor(dataset.select(inside.tolist())["x"][:]))["logits"].softmax(-1)
        np.testing.assert_allclose(done.select(inside.tolist())["probs"][:], expected, atol=1e-5)


@pytest.mark.parametrize("how", ["model_init", "function"])
def test_poisoning_a_label_does_not_move_its_own_prediction_and_moves_others(tmp_path: Path, how: str) -> None:
    """No row's prediction comes from a model that saw its label."""
    dataset = fold_numbers(rows(18), 3)

    def factory(train_rows: Dataset, fold: object) -> Trainer:
        return trained(tmp_path / str(fold), train_rows)

    trainer: Any = factory if how == "function" else Trainer(model_init=fresh, args=arguments(tmp_path))
    before = np.array(predict_column(trainer, dataset, "fold")["probs"][:])
    for row in (7,) if how == "function" else (11,):
        poisoned = dataset.map(lambda r, row=row: {"label": (r["label"] + 1) % K if r["id"] == row else r["label"]})
        after = np.array(predict_column(trainer, poisoned, "fold")["probs"][:])
        fold = np.array(dataset["fold"])
        assert (after[fold == fold[row]] == before[fold == fold[row]]).all()
        assert (after[fold != fold[row]] != before[fold != fold[row]]).any(axis=1).all()
    trainer = trained(tmp_path / "in-sample", dataset)
    poisoned = trained(tmp_path / "in-sample", dataset.map(lambda r: {"label": 0 if r["id"] == 0 else r["label"]}))
    if dataset["label"][0] != 0:
        assert predict_column(trainer, dataset)["probs"][0] != predict_column(poisoned, dataset)["probs"][0]


def test_a_memorising_model_looks_better_in_sample_than_out_of_fold(tmp_path: Path) -> None:
    rng, n, channel = np.random.default_rng(0), 120, RRChannel(1.0, K)
    true = np.array(rows(n)["label"])
    kept = rng.random(n) < channel.p
    noisy = np.where(kept, true, (true + rng.integers(1, K, n)) % K)
    wide = rng.normal(size=(n, 200)).astype(np.float32)  # more numbers than rows: it can learn them by heart
    wide[:, :6] += np.array(rows(n)["x"])
    dataset = fold_numbers(Dataset.from_dict({"x": wide.tolist(), "label": noisy.tolist()}), 4)
    args = arguments(tmp_path, max_steps=80, learning_rate=0.5)

    def model_init() -> Linear:
        torch.manual_seed(0)
        return Linear(200)

    trainer = Trainer(model_init=model_init, args=args, train_dataset=dataset)
    trainer.train()
    seen, unseen = predict_column(trainer, dataset), predict_column(trainer, dataset, "fold")
    with pytest.warns(UserWarning, match="in-sample"):
        lie = noisy_accuracy(noisy, seen["pred"], channel, out_of_fold=seen["pred_is_out_of_fold"])
    honest = noisy_accuracy(noisy, unseen["pred"], channel, out_of_fold=unseen["pred_is_out_of_fold"])
    assert lie.value > 1
    accuracy = float(np.mean(np.array(unseen["pred"]) == true))
    assert honest.low < accuracy < honest.high
    assert relabel(unseen, "consensus", channel, return_report=True)[1].out_of_fold is True


def test_tokens_are_predicted_one_by_one_up_to_each_row_s_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 1, 5, 2, 4, 2]
    columns = {"x": [rng.normal(size=(n, 6)).astype(np.float32).tolist() for n in lengths]}
    dataset = Dataset.from_dict(columns | {"labels": [[-100, *([1] * (n - 1))] for n in lengths]})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["x"]) for row in batch)
        return {"x": torch.tensor([row["x"] + [[0.0] * 6] * (longest - len(row["x"])) for row in batch])}

    args = arguments(tmp_path, per_device_eval_batch_size=2)
    done = predict_column(Trainer(fresh(), args, data_collator=collate), dataset, label="labels")
    for row in done:
        with torch.no_grad():
            expected = fresh()(torch.tensor([row["x"]]))["logits"][0].softmax(-1)
        np.testing.assert_allclose(row["probs"], expected, atol=1e-5)
        assert row["pred"] == expected.argmax(-1).tolist()


def test_rows_are_prepared_for_the_model_and_come_back_as_they_were(tmp_path: Path) -> None:
    raw = rows().rename_column("x", "raw")

    def prepare(dataset: Dataset) -> Dataset:
        return dataset.rename_column("raw", "x")

    plain = predict_column(trained(tmp_path, rows()), rows())
    done = predict_column(trained(tmp_path, rows()), raw, model_inputs=prepare)
    assert done["probs"][:] == plain["probs"][:]
    assert "raw" in done.column_names
    folded = fold_numbers(raw, 2)
    trainer = Trainer(model_init=fresh, args=arguments(tmp_path))
    expected = predict_column(trainer, fold_numbers(rows(), 2), "fold")
    assert predict_column(trainer, folded, "fold", model_inputs=prepare)["probs"][:] == expected["probs"][:]


def test_folds_are_equal_in_size_repeatable_and_keep_copies_together() -> None:
    done = fold_numbers(rows(61), 4, seed=3)
    assert sorted(np.bincount(done["fold"][:]).tolist()) == [15, 15, 15, 16]
    assert fold_numbers(done, 4, seed=3)["fold"][:] == done["fold"][:]
    assert fold_numbers(rows(61), 4, seed=4)["fold"][:] != done["fold"][:]
    person = rows(60).add_column("person", [f"p{i % 20}" for i in range(60)])
    table = fold_numbers(person, 5, id_column="person").to_pandas()
    assert (table.groupby("person")["fold"].nunique() == 1).all()
    for folds in (1, 0, 62):
        with pytest.raises(ValueError, match="folds="):
            fold_numbers(rows(61), folds)


def failing(value: Any) -> Callable[..., Any]:
    class Predicts:
        def predict(self, dataset: Dataset) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(predictions=value)

    return Predicts()


def test_what_cannot_predict_is_refused(tmp_path: Path) -> None:
    trainer = trained(tmp_path, rows())
    with pytest.raises(ValueError, match="no model_init"):
        predict_column(trainer, fold_numbers(rows(), 2), "fold")
    with pytest.raises(ValueError, match="no column 'fold'"):
        predict_column(trainer, rows(), "fold")
    with pytest.raises(ValueError, match="one fold only"):
        predict_column(trainer, rows().add_column("fold", [0] * 60), "fold")
    with pytest.raises(ValueError, match="no rows"):
        predict_column(trainer, rows().select([]))
    with pytest.raises(ValueError, match="a trained Trainer is needed, got int"):
        predict_column(3, rows())
    with pytest.raises(ValueError, match=r"shape \(7, 3\) for 60 rows"):
        predict_column(failing(np.zeros((7, K))), rows())
    with pytest.raises(ValueError, match="not finite"):
        predict_column(failing(np.full((60, K), np.nan)), rows())
    assert len(predict_column(failing((np.zeros((60, K)), "hidden")), rows())) == 60


# --- the forward loss in the stock trainer ------------------------------------------------------------------------


def losses_and_weights(folder: Path, batch: int, accumulate: int, loss: Any, dataset: Dataset) -> tuple[list, Any]:
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate, "max_steps": 6}
    args = arguments(folder, **settings, logging_strategy="steps", logging_steps=1)
    trainer = Trainer(fresh(), args, train_dataset=dataset, compute_loss_func=loss)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(dataset)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], trainer.model.head.weight.detach()


def test_accumulation_changes_neither_loss_nor_weights(tmp_path: Path) -> None:
    channel = RRChannel(1.0, K)
    runs = [
        losses_and_weights(tmp_path, b, a, forward_loss_func(channel), rows()) for b, a in ((8, 1), (4, 2), (1, 8))
    ]
    for losses, weights in runs[1:]:
        np.testing.assert_allclose(losses, runs[0][0], atol=1e-6)
        torch.testing.assert_close(weights, runs[0][1], atol=1e-6, rtol=0)
    # the first step by hand: the enumerated mixture of eight rows
    with torch.no_grad():
        first = rows().select(range(8))
        mixture = (
            fresh()(torch.tensor(first["x"][:]))["logits"].softmax(-1) @ torch.tensor(channel_matrix(1.0, K)).float()
        )
        expected = -mixture[torch.arange(8), torch.tensor(first["label"][:])].log().mean()
    assert runs[0][0][0] == pytest.approx(float(expected), abs=1e-4)  # logs are rounded


def test_rows_whose_labels_are_masked_do_not_count_under_accumulation(tmp_path: Path) -> None:
    masked = rows().map(lambda row: {"label": -100 if row["id"] % 3 == 0 else row["label"]})
    func = forward_loss_func(RRChannel(1.0, K))
    one, two = (losses_and_weights(tmp_path, b, a, func, masked) for b, a in ((8, 1), (2, 4)))
    np.testing.assert_allclose(one[0], two[0], atol=1e-6)
    torch.testing.assert_close(one[1], two[1], atol=1e-6, rtol=0)


def test_evaluation_takes_the_same_loss(tmp_path: Path) -> None:
    channel = RRChannel(1.0, K)
    args = arguments(tmp_path, per_device_eval_batch_size=60)
    trainer = Trainer(fresh(), args, eval_dataset=rows(), compute_loss_func=forward_loss_func(channel))
    with torch.no_grad():
        logits = fresh()(torch.tensor(rows()["x"][:]))["logits"]
        expected = forward_corrected_nll(logits, torch.tensor(rows()["label"][:]), torch.tensor(channel.matrix()))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
