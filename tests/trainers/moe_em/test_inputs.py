"""Rows, settings and checkpoints that cannot be fitted are refused by name, before the fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset
from safetensors.torch import save_file

from hf_ext import MoEEMTrainer
from hf_ext.guards.rows import RowError
from hf_ext.trainers.moe_em import MoEEMConfig
from hf_ext.trainers.moe_em.fitting import FIT_FILE, read_fit, write_fit
from tests.moe.models import tiny_encoder
from tests.tiny import tiny_tokenizer
from tests.trainers.mixtures import feature_rows, mixture_config, mixture_trainer, text_rows

BAD_ROWS: dict[str, tuple[str, str, Any, str]] = {
    "a NaN feature": ("softmax", "embeddings", [0.0, math.nan, 0.0, 0.0], "dimension 1 is nan"),
    "an infinite feature": ("softmax", "embeddings", [0.0, 0.0, 0.0, -math.inf], "dimension 3 is -inf"),
    "a short vector": ("softmax", "embeddings", [0.0], "the vector has 1 numbers, that of row 0 has 4"),
    "no vector": ("softmax", "embeddings", None, "there is no vector"),
    "a label of -100": ("softmax", "label", -100, "the label is -100, not a class from 0 to 3"),
    "no label": ("softmax", "label", None, "there is no label"),
    "a NaN label": ("linear", "label", math.nan, "the label is nan"),
    "a negative weight": ("softmax", "weight", -1.0, "the weight is -1.0"),
    "a NaN weight": ("softmax", "weight", math.nan, "the weight is nan"),
}


def with_value(rows: Dataset, place: int, column: str, value: Any) -> Dataset:
    values = rows[column][:]
    values[place] = value
    return rows.remove_columns(column).add_column(column, values)


def with_labels(rows: Dataset, labels: list[Any], kind: Any = None) -> Dataset:
    rows = rows.remove_columns("label").add_column("label", labels)
    return rows if kind is None else rows.cast_column("label", kind)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_its_column(name: str, tmp_path: Path) -> None:
    kind, column, value, problem = BAD_ROWS[name]
    rows = with_value(feature_rows(20, kind), 13, column, value)
    with pytest.raises(RowError, match=f"row 13, column '{column}': {problem}") as refused:
        mixture_trainer(tmp_path, rows)
    assert (refused.value.row_index, refused.value.column) == (13, column)
    held_out = {"eval_dataset": rows.remove_columns("weight")}
    if column != "weight":
        with pytest.raises(RowError, match=f"^evaluation dataset, row 13, column '{column}': {problem}"):
            mixture_trainer(tmp_path, feature_rows(20, kind), kwargs=held_out)


def test_a_held_out_label_that_no_training_row_has_is_named(tmp_path: Path) -> None:
    held_out = with_value(feature_rows(20), 5, "label", 9)
    with pytest.raises(RowError, match="evaluation dataset, row 5, column 'label': the label is 9, not a class from"):
        mixture_trainer(tmp_path, feature_rows(40), kwargs={"eval_dataset": held_out})


def test_names_are_classes_in_whatever_order_other_rows_number_them(tmp_path: Path) -> None:
    rows = feature_rows(40)
    names = [f"class {label}" for label in rows["label"]]
    backwards = with_labels(rows, [3 - label for label in rows["label"]], ClassLabel(names=sorted(set(names))[::-1]))
    numbered = mixture_trainer(tmp_path, rows, max_steps=2, kwargs={"eval_dataset": rows})
    named = mixture_trainer(tmp_path, with_labels(rows, names), max_steps=2, kwargs={"eval_dataset": backwards})
    numbered.train()
    named.train()
    expected = numbered.evaluate(rows)["eval_loss"]
    assert named.evaluate(with_labels(rows, names))["eval_loss"] == pytest.approx(expected)
    assert named.evaluate()["eval_loss"] == pytest.approx(expected)
    assert named.model.config.id2label[2] == "class 2"
    assert named.model.config.label2id["class 2"] == 2
    strange = with_labels(rows, [*names[:-1], "class 9"])
    with pytest.raises(RowError, match=r"row 39, column 'label': the label is 'class 9', none of .* 4 classes"):
        named.evaluate(strange)


def test_whole_numbers_are_numbers_to_linear_experts(tmp_path: Path) -> None:
    rows = feature_rows(40)
    outputs = []
    for labels in (rows, with_labels(rows, [float(label) for label in rows["label"]])):
        trainer = mixture_trainer(tmp_path, labels, expert_type="linear", max_steps=2)
        trainer.train()
        outputs.append(trainer.predict(labels).predictions)
    assert (outputs[0] == outputs[1]).all()


def test_a_cut_or_strange_state_is_named(tmp_path: Path) -> None:
    trainer = mixture_trainer(tmp_path / "out", feature_rows(20), max_steps=1)
    trainer.train()
    file = tmp_path / FIT_FILE
    write_fit(tmp_path, trainer.fit, False, {})
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{FIT_FILE} cannot be read .*resume from another checkpoint"):
        read_fit(tmp_path, trainer.fit, False, {})
    save_file({"settings": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"{FIT_FILE} is no state of a fit: it has no 'row_sums'"):
        read_fit(tmp_path, trainer.fit, False, {})


def test_what_rows_can_never_give_is_refused_in_a_sentence(tmp_path: Path) -> None:
    rows = feature_rows(20)
    constant = rows.remove_columns("label").add_column("label", [2.5] * 20)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (rows.remove_columns("label"), {}, "no column 'label'.*label_column"),
        (rows.remove_columns("embeddings"), {}, "no column 'embeddings'.*pass the encoder"),
        (with_labels(rows, ["a"] * 20), {}, "there is nothing to tell"),
        (with_labels(rows, [*range(19), 10**9]), {}, "the class 1,000,000,000 in 20 rows.*class_encode_column"),
        (with_labels(rows, [[1, 2]] * 20), {}, "a label is a class"),
        (with_labels(rows, [1e30 * i for i in range(20)]), {}, "float32 numbers do not hold: shift and scale"),
        (with_labels(rows, [1e9 + i for i in range(20)]), {}, "float32 numbers do not hold: shift and scale"),
        (rows, {"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        (rows.to_iterable_dataset(), {}, "a stream.*cache embeddings.*StochasticMixtureFit"),
        (rows.select([]), {}, "the training dataset is empty"),
        (rows, {"symmetric": True, "expert_type": "logistic"}, "symmetric=True means two"),
        (with_labels(rows, ["a", "b"] * 10), {"expert_type": "linear"}, "'linear' does not go with .* holds classes"),
        (feature_rows(20, "linear"), {"expert_type": "softmax"}, "which holds numbers"),
        (rows.remove_columns("weight").add_column("weight", [0.0] * 20), {}, "every weight is 0"),
        (rows, {"ridge": "auto"}, "ridge='auto'.*eval_dataset"),
    ]
    for dataset, changes, message in refused:
        with pytest.raises(ValueError, match=message):
            mixture_trainer(tmp_path, dataset, **changes)
    for dataset, changes, message in (
        (constant, {}, "every label is 2.5"),
        (rows.select(range(14)), {"ridge": 0}, r"14 rows are fewer than num_experts x \(features \+ 1\) = 15"),
    ):
        with pytest.raises(ValueError, match=message):
            mixture_trainer(tmp_path, dataset, **changes).train()
    with pytest.raises(TypeError, match=r"got DatasetDict: choose a split \(train\)"):
        mixture_trainer(tmp_path, DatasetDict(train=rows))
    with pytest.raises(ValueError, match=r"does not support model: .*An encoder is the first argument"):
        MoEEMTrainer(None, mixture_config(tmp_path), train_dataset=rows, model=torch.nn.Linear(1, 1))


def test_what_can_be_fitted_all_the_same_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = feature_rows(14)
    widened = [[*vector, 7.0] for vector in rows["embeddings"]]
    labels = [0 if label == 1 else label for label in rows["label"]]
    rows = Dataset.from_dict({"embeddings": widened, "label": labels})
    mixture_trainer(tmp_path, rows, max_steps=1).train()
    assert (
        "14 rows are fewer than num_experts x (features + 1) = 18: the ridge of 0.001 decides the fit" in caplog.text
    )
    assert "1 of 5 features are constant, the first in column 4: their scale is 1" in caplog.text
    assert "1 of 4 classes are in no row, the first is 1" in caplog.text


def test_separable_classes_without_a_ridge_stop_and_the_advice_is_a_ridge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    X = torch.linspace(-1, 1, 40)[:, None]
    rows = Dataset.from_dict({"embeddings": X.tolist(), "label": (X[:, 0] > 0).long().tolist()})
    trainer = mixture_trainer(tmp_path, rows, num_experts=1, ridge=0, max_steps=300, tol=0.0, method="lbfgs")
    trainer.train()
    assert trainer.fit_result.stop_reason == "separable"
    assert "ridge" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "emm"}, "method='emm' is not one of .*did you mean 'em'"),
        ({"num_experts": 0}, "num_experts must be a whole number, at least 1"),
        ({"ridge": -1}, "ridge must be a finite number, at least 0, got -1.0 or auto"),
        ({"ridge": "much"}, "ridge must be"),
        ({"eta": 2.0}, "eta must be a number above 0 and below 2"),
        ({"eta": 0.5, "method": "lbfgs"}, "eta is the length of EM's step"),
        ({"method": "adam", "ridge": "auto"}, "ridge='auto' compares fits, and method='adam' is none"),
        ({"method": "sgd", "weight_decay": 0.1}, "weight_decay=0.1 would come beside ridge"),
        ({"learning_rate": math.nan}, "learning_rate must be"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MoEEMConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "other experts": ({"num_experts": 2}, "num_experts was 3 and is 2"),
    "another ridge": ({"ridge": 0.5}, "ridge was 0.001 and is 0.5"),
    "another method": ({"method": "adam"}, "method was 'auto' and is 'adam'"),
    "two of them": ({"restarts": 3, "eta": 0.5}, "eta was 1.0 and is 0.5; restarts was 2 and is 3"),
    "other rows": ({}, "it was of 40 rows, and these 39 are others"),
}


def test_a_run_of_other_settings_or_rows_is_not_gone_on_with(tmp_path: Path) -> None:
    rows = feature_rows(40)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    mixture_trainer(tmp_path, rows, **saving).train()
    for name, (changes, message) in CHANGES.items():
        others = rows.select(range(39)) if name == "other rows" else rows
        trainer = mixture_trainer(tmp_path, others, **(saving | {"max_steps": 4} | changes))
        with pytest.raises(ValueError, match=f"the fit cannot be resumed: {message}"):
            trainer.train(resume_from_checkpoint=True)
    trainer = mixture_trainer(tmp_path, rows, **(saving | {"max_steps": 4}))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    adam = mixture_trainer(tmp_path / "adam", rows, method="adam", **saving)
    adam.train()
    with pytest.raises(ValueError, match=r"the fit cannot be resumed: ridge was 0\.001 and is 0.5"):
        mixture_trainer(tmp_path / "adam", rows, method="adam", ridge=0.5, **saving).train(resume_from_checkpoint=True)


def test_a_run_on_another_encoder_is_not_gone_on_with(tmp_path: Path, vectors_in: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "num_experts": 2}
    pair = (tiny_encoder(), tiny_tokenizer())
    mixture_trainer(tmp_path, text_rows(30), pair, **saving).train()
    other = (tiny_encoder(), tiny_tokenizer())
    with torch.no_grad():
        next(other[0].parameters()).mul_(1.001)
    with pytest.raises(ValueError, match=r"the fit cannot be resumed: encoder was '[0-9a-f]+' and is '[0-9a-f]+'"):
        mixture_trainer(tmp_path, text_rows(30), other, **saving).train(resume_from_checkpoint=True)


def test_a_model_that_would_be_sharded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = MoEEMTrainer.create_accelerator_and_postprocess

    def sharding(trainer: Any) -> None:
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(MoEEMTrainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed ZeRO, which cut the model, are not supported"):
        mixture_trainer(tmp_path, feature_rows(20))


def test_a_stream_of_evaluation_rows_is_refused_too(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter(feature_rows(4)))
    with pytest.raises(ValueError, match="the evaluation rows are a stream"):
        mixture_trainer(tmp_path, feature_rows(20), kwargs={"eval_dataset": stream})
    trainer = mixture_trainer(tmp_path, feature_rows(20))
    with pytest.raises(ValueError, match="the test rows are a stream"):
        trainer.predict(stream)
