"""Weighted classification against the stock trainer, a loop by hand and what is refused; FLOW's scores on pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from hf_ext import WeightedTrainer, add_flow_weights, add_original_class_losses, flow_temperature
from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_tokenizer
from tests.trainers.classifiers import tiny_bert
from tests.trainers.pictures import picture_rows, pixel_rows, tiny_processor, tiny_resnet, tiny_vit, weighted_config
from tests.trainers.runs import assert_same_weights, train, weights_of


def stock(folder: Path, rows: Dataset, model: Any = None, **changes: Any) -> Trainer:
    ours = weighted_config(folder, **changes).to_dict()
    names = ("output_dir", "use_cpu", "bf16", "report_to", "disable_tqdm", "per_device_train_batch_size", "max_steps",
             "learning_rate", "optim", "logging_steps", "save_strategy", "dataloader_pin_memory", "seed",
             "gradient_accumulation_steps")  # fmt: skip
    args = TrainingArguments(**{name: ours[name] for name in names})
    return Trainer(tiny_resnet() if model is None else model, args, train_dataset=rows)


def ours(folder: Path, rows: Dataset, model: Any = None, **changes: Any) -> WeightedTrainer:
    kwargs = changes.pop("kwargs", {})
    return WeightedTrainer(
        tiny_resnet() if model is None else model, weighted_config(folder, **changes), train_dataset=rows, **kwargs
    )


def pictures(folder: Path, rows: Dataset, model: Any = None, **changes: Any) -> WeightedTrainer:
    return ours(folder, rows, model, kwargs={"processing_class": tiny_processor()}, **changes)


@pytest.mark.parametrize("weights", [None, 1.0])
@pytest.mark.parametrize("normalize", ["weights", "rows"])
def test_without_weights_or_with_ones_it_is_the_stock_trainer_bit_for_bit(tmp_path, weights, normalize):
    rows = pixel_rows(22)
    theirs = stock(tmp_path / "stock", rows, max_steps=8)
    weighted = rows if weights is None else rows.add_column("weight", [weights] * 22).with_format("torch")
    trainer = ours(tmp_path, weighted, max_steps=8, normalize=normalize)
    assert train(trainer) == train(theirs)
    assert_same_weights(trainer.model, theirs.model)


@pytest.mark.parametrize("normalize", ["weights", "rows"])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_accumulated_micro_batches_are_one_batch(tmp_path, normalize, batch, accumulation):
    weight = np.linspace(0.1, 2, 16)
    rows = pixel_rows(16).add_column("weight", weight).with_format("torch")
    with torch.no_grad():  # a model without normalisation over the batch
        logits = tiny_vit().eval()(rows["pixel_values"][:]).logits.double()
    total = (torch.as_tensor(weight) * F.cross_entropy(logits, rows["label"][:], reduction="none")).view(4, 4).sum(1)
    expected = total / (torch.as_tensor(weight).view(4, 4).sum(1) if normalize == "weights" else 4)
    trainer = ours(
        tmp_path, rows, tiny_vit(), normalize=normalize, per_device_train_batch_size=batch, learning_rate=0.0,
        gradient_accumulation_steps=accumulation, train_sampling_strategy="sequential",
    )  # fmt: skip
    np.testing.assert_allclose(train(trainer), expected, rtol=1e-5)


def test_pictures_are_read_through_the_processor_and_are_the_pixels(tmp_path):
    assert train(pictures(tmp_path, picture_rows(16))) == train(ours(tmp_path / "pixels", pixel_rows(16)))
    transformed = picture_rows(16).with_transform(
        lambda batch: {
            "pixel_values": tiny_processor()(batch["image"], return_tensors="pt")["pixel_values"],
            "label": batch["label"],
        }
    )
    by_transform = ours(tmp_path / "transform", transformed, remove_unused_columns=False)
    assert train(by_transform) == train(ours(tmp_path / "again", pixel_rows(16)))


def test_a_probe_trains_the_head_alone_and_leaves_statistics_and_the_next_training_free(tmp_path):
    rows = picture_rows(24)
    model = tiny_resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(pictures(tmp_path / "probe", rows, model, head_only=True))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert all(value.requires_grad for value in model.parameters())
    train(pictures(tmp_path / "all", rows, model))
    assert "resnet.embedder.embedder.convolution.weight" in {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert not torch.equal(
        model.resnet.embedder.embedder.normalization.running_mean,
        before["resnet.embedder.embedder.normalization.running_mean"],
    )


def test_a_probe_s_losses_are_those_of_a_linear_head_on_frozen_features(tmp_path):
    rows = pixel_rows(16)
    model = tiny_resnet()
    with torch.no_grad():
        features = model.resnet.eval()(rows["pixel_values"][:]).pooler_output.flatten(1)
    weight = model.classifier[1].weight.detach().clone()
    bias = model.classifier[1].bias.detach().clone()
    expected = []
    for step in range(4):  # gradient descent by hand
        part = slice(4 * step, 4 * step + 4)
        logits = features[part] @ weight.T + bias
        labels = rows["label"][part]
        expected.append(F.cross_entropy(logits, labels).item())
        error = (logits.softmax(-1) - F.one_hot(labels, 3)) / 4
        weight -= 0.1 * error.T @ features[part]
        bias -= 0.1 * error.sum(0)
    trainer = ours(
        tmp_path, rows, model, head_only=True, train_sampling_strategy="sequential", lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(train(trainer), expected, rtol=1e-5)


def test_scores_are_the_losses_of_a_plain_forward_and_give_flow_s_weights(tmp_path):
    model = tiny_resnet(seed=3).train()
    rows = picture_rows(20)
    scored = add_original_class_losses(rows, model, tiny_processor(), batch_size=7, show_progress=False)
    assert model.training
    with torch.no_grad():
        logits = tiny_resnet(seed=3).eval()(pixel_rows(20)["pixel_values"][:]).logits
    losses = -logits.double().log_softmax(-1)[torch.arange(20), torch.tensor(rows["label"][:])].numpy()
    np.testing.assert_allclose(scored["original_nll_sum"][:], losses, rtol=1e-5)
    assert set(scored["original_num_tokens"]) == {1}
    assert flow_temperature(scored) == pytest.approx(float(np.median(losses)), rel=1e-5)
    weight = np.asarray(add_flow_weights(scored)["weight"])
    expected = np.exp(-losses / np.median(losses))
    np.testing.assert_allclose(weight / weight.mean(), expected / expected.mean(), rtol=1e-5)
    same = add_original_class_losses(pixel_rows(20), model, show_progress=False)
    np.testing.assert_allclose(same["original_nll_sum"][:], losses, rtol=1e-5)


def test_texts_are_scored_through_their_collator():
    tokenizer = tiny_tokenizer()
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9], [10]], "label": [0, 2, 1], "text": ["a", "b", "c"]})
    model = tiny_bert()
    scored = add_original_class_losses(
        rows, model, data_collator=DataCollatorWithPadding(tokenizer), batch_size=2, show_progress=False
    )
    for row in scored:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits[0].double()
        assert row["original_nll_sum"] == pytest.approx(-float(logits.log_softmax(-1)[row["label"]]), rel=1e-5)


def test_evaluation_is_unweighted(tmp_path):
    rows = pixel_rows(16).add_column("weight", np.linspace(0, 3, 16)).with_format("torch")
    trainer = ours(tmp_path, rows, kwargs={"eval_dataset": rows})
    with torch.no_grad():
        expected = F.cross_entropy(tiny_resnet().eval()(rows["pixel_values"][:]).logits, rows["label"][:])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_a_weight_that_is_none_is_named(tmp_path, value):
    rows = pixel_rows(8).add_column("weight", [1.0] * 5 + [value] + [1.0] * 2)
    with pytest.raises(RowError, match="row 5, column 'weight': expected a finite number >= 0") as stopped:
        ours(tmp_path, rows)
    assert stopped.value.row_index == 5


def test_rows_that_cannot_be_read_are_named(tmp_path):
    rows = picture_rows(8)
    images = [None if i == 6 else value for i, value in enumerate(rows["image"][:])]
    features = Features({name: rows.features[name] for name in ("image", "label")})
    holes = Dataset.from_dict({"image": images, "label": rows["label"][:]}, features=features)
    with pytest.raises(RowError, match="row 6, column 'image': expected a picture, found None"):
        pictures(tmp_path, holes)
    with pytest.raises(ValueError, match=r"column 'image' is Value\('string'\), and no picture: cast it"):
        pictures(tmp_path, Dataset.from_dict({"image": ["a.png"], "label": [0]}))
    with pytest.raises(RowError, match="row 6, column 'image'"):
        add_original_class_losses(holes, tiny_resnet(), tiny_processor(), show_progress=False)
    with pytest.raises(RowError, match=r"row \d+, column 'label': 2 is none of the model's 2 classes"):
        add_original_class_losses(pixel_rows(8), tiny_resnet(classes=2), show_progress=False)
    with pytest.raises(ValueError, match="have no 'pixel_values', which ResNetForImageClassification reads"):
        add_original_class_losses(picture_rows(4), tiny_resnet(), show_progress=False)


def test_a_logit_that_is_no_number_stops_before_the_step_and_names_the_rows(tmp_path):
    rows = pixel_rows(8).with_format(None)
    spoilt = rows.map(lambda row, i: {"pixel_values": np.full((1, 12, 12), np.nan) if i == 5 else row["pixel_values"]},
                      with_indices=True)  # fmt: skip
    trainer = ours(tmp_path, spoilt.with_format("torch"), tiny_vit(), train_sampling_strategy="sequential")
    start = weights_of(trainer.model)
    with pytest.raises(NonFiniteError, match="logits") as stopped:
        train(trainer)
    assert stopped.value.row_indices == [5]
    assert start.keys() == weights_of(trainer.model).keys()


def test_what_it_cannot_honour_is_refused_by_name(tmp_path):
    rows = pixel_rows(8)
    regression = tiny_resnet(classes=1)
    cases = [
        (lambda: ours(tmp_path, rows, regression), "has one output"),
        (lambda: ours(tmp_path, rows, kwargs={"compute_loss_func": print}), "compute_loss_func is this trainer's own"),
        (lambda: weighted_config(tmp_path, label_smoothing_factor=0.1), "label_smoothing_factor"),
        (lambda: weighted_config(tmp_path, normalize="tokens"), "normalize must be one of"),
        (lambda: ours(tmp_path, rows.add_column("weight", [0.0] * 8)), "Every weight of the train dataset is 0"),
        (lambda: ours(tmp_path, rows, tiny_resnet().resnet, head_only=True), "does not tell its backbone"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    adapted = get_peft_model(tiny_vit(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="holds adapters"):
        add_original_class_losses(rows, adapted, show_progress=False)
    with pytest.raises(TypeError, match="needs a Dataset"):
        add_original_class_losses(rows.to_iterable_dataset(), tiny_resnet())


def test_the_saved_folder_is_stock_and_its_card_says_how_to_use_it(tmp_path):
    trainer = pictures(tmp_path, picture_rows(8), max_steps=2)
    train(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(AutoModelForImageClassification.from_pretrained(tmp_path / "saved"), trainer.model)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "image-classification" in card
    assert "label-noise" not in card
    assert "| `normalize` | weights |" in card
